"""supsup's layers under their own names, and in a bank, against stand-ins in plain PyTorch."""

import argparse
import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from foreign import supsup as theirs
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.compat import supsup as ours
from edgepop_kernels.testing.tolerances import assert_close

CONVS = ["MultitaskMaskConv", "FastMultitaskMaskConv", "StackedFastMultitaskMaskConv"]
LINEARS = ["FastMultitaskMaskLinear", "MultitaskMaskLinear"]
ARGUMENTS = {
    **dict.fromkeys(CONVS, (dict(groups=2, stride=2, padding=1), (4, 6, 3), (3, 4, 7, 7))),
    **dict.fromkeys(LINEARS, (dict(bias=False), (17, 9), (5, 17))),
}


@pytest.fixture(autouse=True)
def _nobody_said_anything(monkeypatch):
    monkeypatch.setattr(ours, "_args", None)


def pair(name, tasks=3, seed=0):
    options, sizes, _ = ARGUMENTS[name]
    made = []
    for module in (theirs, ours):
        torch.manual_seed(seed)
        with torch.no_grad():
            made.append(getattr(module, name)(*sizes, num_tasks=tasks, **options))
        made.append(torch.rand(3))
    (a, drawn_a, b, drawn_b) = made
    assert torch.equal(drawn_a, drawn_b)
    if name == "MultitaskMaskConv":
        b.sparsity = a.sparsity
    return a, b


@pytest.mark.parametrize("name", CONVS + LINEARS)
def test_it_starts_as_theirs_and_state_dicts_go_either_way(name):
    a, b = pair(name)
    assert list(a.state_dict()) == list(b.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert [p.requires_grad for p in a.parameters()] == [p.requires_grad for p in b.parameters()]
    other, _ = pair(name, seed=1)
    b.load_state_dict(other.state_dict())
    a.load_state_dict(b.state_dict())
    assert torch.equal(a.scores[2], other.scores[2])
    assert isinstance(b, nn.Conv2d if name in CONVS else nn.Linear) and repr(b).startswith(f"{name}(")


@pytest.mark.parametrize("name", CONVS + LINEARS)
def test_forwards_and_gradients_are_theirs(name):
    a, b = pair(name)
    x = torch.randn(ARGUMENTS[name][2])
    if name == "MultitaskMaskConv":
        a.sparsity = b.sparsity = 0.3
    for task in (0, 2, 0):
        results = []
        for layer in (a, b):
            layer.task = task
            layer.zero_grad()
            given = x.clone().requires_grad_()
            y = layer(given)
            y.square().sum().backward()
            results.append((y, given.grad, layer.scores[task].grad))
            assert [s.grad is not None for s in layer.scores] == [t == task for t in range(3)]
        for what, of_theirs, of_ours in zip(("y", "dx", "dS"), *results, strict=True):
            assert_close(what, of_ours, of_theirs, torch.float32)
        torch.optim.SGD(b.parameters(), lr=0.3).step()
        a.load_state_dict(b.state_dict())


@pytest.mark.parametrize("alphas", [[0.25] * 4, [0.0, 1.0, 0.0, 0.0], [0.7, 0.0, -0.2, 0.3]], ids=str)
@pytest.mark.parametrize("name", CONVS + LINEARS)
def test_a_superposition_is_theirs(name, alphas):
    a, b = pair(name, tasks=4)
    x, results = torch.randn(ARGUMENTS[name][2]), []
    for layer in (a, b):
        if hasattr(layer, "cache_masks"):
            layer.cache_masks()
        layer.task, layer.num_tasks_learned = -1, 3
        layer.alphas = torch.tensor(alphas).view(4, *[1] * layer.weight.dim()).requires_grad_()
        y = layer(x)
        results.append((y, torch.autograd.grad(y.square().sum(), layer.alphas)[0]))
    for what, of_theirs, of_ours in zip(("y", "alphas"), *results, strict=True):
        assert_close(what, of_ours, of_theirs, torch.float32)
    assert torch.equal(results[0][1] == 0, results[1][1] == 0)
    assert all(hasattr(a, name) == hasattr(b, name) for name in ("cache_masks", "clear_masks"))
    if hasattr(a, "stacked"):
        assert torch.equal(a.stacked, b.stacked)
        b.clear_masks()
        assert b.stacked is None
        with pytest.raises(AttributeError, match=r"^stacked: .* call cache_masks"):
            b(x)


def test_a_mask_conv_is_theirs():
    torch.manual_seed(0)
    a = theirs.MaskConv(4, 6, 3)
    torch.manual_seed(0)
    b = ours.MaskConv(4, 6, 3)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    a.sparsity = b.sparsity = 0.3
    x = torch.randn(2, 4, 7, 7)
    assert_close("y", b(x), a(x), torch.float32)
    assert list(a.state_dict()) == list(b.state_dict()) and b.sparsity == 0.3 and not b.weight.requires_grad
    converted = ek.convert(nn.Sequential(a))
    assert converted[0].rule == ek.TopK(0.3) and torch.equal(converted[0].mask(), b.mask())


def test_a_programs_args_are_read_when_layers_are_made():
    with pytest.raises(ValueError, match=r"^num_tasks: expected a whole number above 0, got None"):
        ours.MultitaskMaskConv(3, 4, 3)
    args = SimpleNamespace(num_tasks=2, sparsity=0.5, train_weight_tasks=0)
    ours.uses(args)
    args.num_tasks, args.sparsity = 5, 0.2  # as its experiments do, after the import
    layer = ours.MultitaskMaskConv(3, 4, 3)
    assert len(layer.scores) == 5 and layer.sparsity == 0.2 and not layer.weight.requires_grad
    assert not hasattr(ours.FastMultitaskMaskConv(3, 4, 3), "sparsity")  # which --er-sparsity looks for
    args.train_weight_tasks = 1
    layer, fast = ours.MultitaskMaskConv(3, 4, 3), ours.FastMultitaskMaskConv(3, 4, 3)
    assert layer.weight.requires_grad and ours.MaskConv(3, 4, 3).weight.requires_grad
    fast.task = 1
    x = torch.randn(2, 3, 5, 5)
    fast(x).sum().backward()
    assert torch.equal(fast.weight.grad != 0, (fast.scores[1] >= 0) & (fast.weight.grad != 0))
    assert (fast.weight.grad != 0).any()


@pytest.mark.parametrize("change", ["step", "data", "move", "copy"])
def test_a_mask_follows_its_scores(change):
    """Selections are remembered from task to task, and no longer than they hold."""
    _, layer = pair("MultitaskMaskConv")
    x = torch.randn(ARGUMENTS["MultitaskMaskConv"][2])
    layer.eval()
    for layer.task in (0, 1, 0, 1):
        layer(x)
    if change == "copy":
        layer = copy.deepcopy(layer)
    new = torch.randn_like(layer.scores[1])
    if change == "data":
        layer.scores[1].data = new
    elif change == "move":
        layer.double().float()
        layer.scores[1].data.copy_(new)
    else:
        with torch.no_grad():
            layer.scores[1].copy_(new)
    mask = ek.mask(new, ek.TopK(layer.sparsity))
    options, _, _ = ARGUMENTS["MultitaskMaskConv"]
    assert_close("y", layer(x), F.conv2d(x, layer.weight * mask, layer.bias, **options), torch.float32)


def network(module, tasks=3):
    bn = getattr(module, "MultitaskNonAffineBN", theirs.MultitaskNonAffineBN)
    return nn.Sequential(
        module.MultitaskMaskConv(3, 6, 3, bias=False, num_tasks=tasks),
        bn(6, num_tasks=tasks),
        nn.ReLU(),
        module.FastMultitaskMaskConv(6, 4, 3, bias=False, num_tasks=tasks),
        nn.Flatten(),
    )


def use(model, **what):
    for name, value in what.items():
        model.apply(lambda m, name=name, value=value: setattr(m, name, value))


def trained(module):
    model = network(module)
    for task in range(3):
        use(model, task=task)
        model(torch.randn(5, 3, 7, 7, generator=torch.Generator().manual_seed(task)))
    return model


@pytest.mark.parametrize("module", [theirs, ours], ids=["theirs", "ours"])
def test_a_bank_takes_a_network_of_theirs(module):
    model, x = trained(module).eval(), torch.randn(4, 3, 7, 7)
    outputs = []
    for task in range(3):
        use(model, task=task)
        outputs.append(model(x))
    for m in (model[0], model[3]):
        m.cache_masks()
    alphas = torch.tensor([0.2, 0.5, 0.3], requires_grad=True)
    use(model, task=-1, num_tasks_learned=3, alphas=alphas.view(3, 1, 1, 1, 1))
    mixed = model.train()(x)
    (slopes,) = torch.autograd.grad(mixed.square().sum(), alphas)
    bank = ek.MaskBank(model.eval())
    assert bank.model is model and bank.tasks == 3 and bank.task == 0
    assert model[0].rule == ek.TopK(0.5 if module is ours else theirs.MultitaskMaskConv.sparsity)
    assert model[3].rule == ek.Threshold(0.0, "raw", inclusive=True) and type(model[1]) is nn.BatchNorm2d
    assert sorted(model.state_dict()) == [
        *("0._extra_state", "0.scores", "0.weight", "1.num_batches_tracked", "1.running_mean", "1.running_var"),
        *("3._extra_state", "3.scores", "3.weight"),
    ]
    for task, expected in list(enumerate(outputs))[:-1]:  # the last norm has seen the superposed batch since
        bank.use(task)
        assert_close(f"task {task}", bank(x), expected, torch.float32)
    with bank.mix(alphas):
        again = bank(x)
        assert_close("mixed", again, mixed, torch.float32)
        assert_close("slopes", torch.autograd.grad(again.square().sum(), alphas)[0], slopes, torch.float32)
    assert bank.add() == 3


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_bank_takes_a_checkpoint_of_theirs(prefix, tmp_path):
    model = trained(theirs)
    other = ek.MaskBank(network(theirs))
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    args = argparse.Namespace(num_tasks=3, run_base_dir=tmp_path, device=torch.device("cpu"))
    torch.save({"epoch": 3, "state_dict": state, "best_acc1": [0.5] * 3, "args": args}, tmp_path / "final.pt")
    loaded = ek.load_checkpoint(other, tmp_path / "final.pt")
    assert str(loaded).splitlines()[0].startswith("read 17: 2 weight, 2 scores.0 as scores, 2 scores.1 as scores")
    bank = ek.MaskBank(model)
    assert loaded.left == () and loaded.missing == () and "epoch" in loaded.beside
    assert loaded.read_as[f"{prefix}0.scores.1"] == "tasks.1.0.scores"
    x = torch.randn(4, 3, 7, 7)
    for task in range(3):
        for b in (bank, other):
            b.use(task)
            b.eval()
        assert torch.equal(bank(x), other(x))
    assert other.tasks == 3


def test_a_checkpoint_that_does_not_fit_a_bank_changes_nothing():
    bank = ek.MaskBank(network(theirs))
    masks = [bank.masks(task) for task in range(3)]
    weight = bank.model[0].weight.clone()
    state = dict(trained(theirs).state_dict())
    for wrong, match in (
        ({"3.scores.1": torch.zeros(4, 6, 1, 1)}, r"tasks\.1\.3\.scores: expected shape"),
        ({"3.scores.4": torch.zeros(4, 6, 3, 3)}, r"tasks\.3: .*"),
        ({"0.weight": torch.zeros(6, 3, 1, 1)}, r"weight: expected shape"),
    ):
        with pytest.raises(ValueError, match=match):
            ek.load_checkpoint(bank, state | wrong)
        assert bank.tasks == 3 and torch.equal(bank.model[0].weight, weight)
        assert all(torch.equal(m, masks[t][n]) for t in range(3) for n, m in bank.masks(t).items())


def test_layers_that_hold_other_lists_are_refused_by_name():
    for model, match in (
        (nn.Sequential(theirs.IndividualHeads(3, 4, 3)), "IndividualHeads of supsup, holds lists of another kind"),
        (
            nn.Sequential(theirs.MultitaskMaskConv(3, 4, 3), theirs.MultitaskMaskConv(4, 4, 3, num_tasks=2)),
            "is of 3 tasks",
        ),
    ):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=match):
            ek.MaskBank(model)
        assert list(model.state_dict()) == list(before)
    with pytest.raises(ValueError, match=r"holds the scores of several tasks.*edgepop_kernels\.MaskBank\(model\)"):
        ek.convert(nn.Sequential(theirs.MultitaskMaskConv(3, 4, 3)))
