"""Many masks over one set of weights: each task's own, superposed in one product, saved at a bit each."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.masks import full_bits
from edgepop_kernels.testing import inputs
from edgepop_kernels.testing.tolerances import assert_close, assert_same_bits

BITS = torch.zeros(2, 16, dtype=torch.uint8)
X = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def network(norm=True, **options):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2, groups=2, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 7),
    )
    options = {"keep": 0.3, "freeze_rest": True, "left": "ignore", **options}
    return ek.convert(model, init="kaiming_normal", **options)


def filled(tasks=4, frozen=(1, 3), **options):
    """A bank whose tasks have trained for a step."""
    bank = ek.MaskBank(network(**options))
    for task in range(tasks):
        bank.add()
        step(bank)
        if task in frozen:
            bank.freeze()
    return bank


def step(bank, optimizer=ek.optim.ScoreSGD):
    optimizer = optimizer([p for p in bank.parameters() if p.requires_grad], lr=0.1)
    bank.train()
    bank(X).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def everything(bank):
    outputs, used = [], bank.task
    for task in range(bank.tasks):
        bank.use(task)
        bank.eval()
        outputs.append(bank(X))
    bank.use(used)
    return torch.stack(outputs)


def stacked(masks, alphas):
    """The authors' superposition: masks of float32, times the shares, added up."""
    return (alphas.view(-1, *[1] * (masks[0].dim())) * torch.stack(masks).float()).sum(0)


@pytest.mark.parametrize("tasks", [1, 2, 5, 25])
@pytest.mark.parametrize("shape", [(1,), (3, 17), (63, 129), (17, 3, 3, 3), (300, 100)], ids=str)
def test_a_mixed_weight_is_the_sum_of_masks(shape, tasks):
    weight, g = torch.randn(shape), torch.randn(shape)
    masks = [torch.rand(shape) < 0.4 for _ in range(tasks)]
    alphas = torch.rand(tasks, requires_grad=True)
    bits = torch.stack([ek.pack_mask(m) for m in masks])
    mixed = ek.mixed_weight(weight, bits, alphas)
    wide = alphas.detach().double().requires_grad_()
    expected = weight.double() * (wide.view(-1, *[1] * len(shape)) * torch.stack(masks).double()).sum(0)
    assert_close("mixed", mixed, expected, torch.float32)
    slopes, wide_slopes = (torch.autograd.grad(y, a, g.to(y.dtype))[0] for y, a in ((mixed, alphas), (expected, wide)))
    assert_close("alphas", slopes, wide_slopes, torch.float32)


def test_a_mixed_weight_is_the_same_on_any_number_of_threads_and_in_any_layout():
    weight, g, alphas = torch.randn(97, 33, 3, 3), torch.randn(97, 33, 3, 3), torch.rand(9, requires_grad=True)
    bits = torch.stack([ek.pack_mask(torch.rand(weight.shape) < 0.5) for _ in range(9)])
    results, before = [], torch.get_num_threads()
    for threads, layout in ((1, "contiguous"), (2, "contiguous"), (2, "channels_last"), (1, "transposed")):
        torch.set_num_threads(threads)
        mixed = ek.mixed_weight(inputs.lay_out(weight, layout), bits, alphas)
        results.append((mixed.detach(), torch.autograd.grad(mixed, alphas, g)[0]))
    torch.set_num_threads(before)
    for mixed, slopes in results[1:]:
        assert_same_bits("mixed", mixed, results[0][0])
        assert_same_bits("alphas", slopes, results[0][1])


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 63, 64, 65, 128])
def test_a_mask_of_everything_is_packed_as_any(numel):
    assert torch.equal(full_bits(numel, torch.device("cpu")), ek.pack_mask(torch.ones(numel, dtype=torch.bool)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_mixed_weight_has_the_dtype_of_the_weight_and_trains_it(dtype):
    weight = torch.randn(40, 30, dtype=dtype, requires_grad=True)
    masks, alphas = [torch.rand(40, 30) < 0.5 for _ in range(3)], torch.rand(3, requires_grad=True)
    mixed = ek.mixed_weight(weight, torch.stack([ek.pack_mask(m) for m in masks]), alphas)
    assert mixed.dtype == dtype
    total = stacked(masks, alphas.detach().double())
    g = torch.randn(40, 30, dtype=dtype)
    dw, da = torch.autograd.grad(mixed, (weight, alphas), g)
    assert dw.dtype == dtype and da.dtype == torch.float32
    bound = torch.float32 if dtype == torch.float64 else dtype
    assert_close("mixed", mixed, weight.detach().double() * total, bound)
    assert_close("dW", dw, g.double() * total, bound)
    products = (g.double() * weight.detach().double()) * torch.stack(masks)
    assert_close("alphas", da, products.flatten(1).sum(1), torch.float32)


def test_no_mask_is_unpacked_as_a_whole():
    """Beside the mixed weight, an index of a part of the bits: a fraction of 25 masks of float32."""
    weight, alphas = torch.randn(1000, 1000), torch.rand(25, requires_grad=True)
    bits = torch.stack([ek.pack_mask(torch.rand(weight.shape) < 0.5) for _ in range(25)])
    with torch.profiler.profile(profile_memory=True) as profile:
        ek.mixed_weight(weight, bits, alphas).sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert weight.nbytes <= largest <= 2 * weight.nbytes < 25 * weight.nbytes


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((torch.ones(3), torch.zeros(2, 16), torch.ones(2)), TypeError, "^bits: expected packed uint8"),
        (
            (torch.ones(3), BITS[:, :8], torch.ones(2)),
            ValueError,
            r"^bits: expected \[tasks, 16\]",
        ),
        ((torch.ones(3), BITS[:0], torch.ones(0)), ValueError, r"^bits: expected \[tasks"),
        (
            (torch.ones(3), BITS, torch.ones(3)),
            ValueError,
            "^alphas: expected one for",
        ),
        (
            (torch.ones(3), BITS, torch.ones(2).int()),
            TypeError,
            "^alphas: expected float",
        ),
        ((torch.ones(3).int(), BITS, torch.ones(2)), TypeError, "^weight: expected"),
        (([1.0], BITS, torch.ones(2)), TypeError, "^weight: expected a torch.Tensor"),
    ],
)
def test_wrong_arguments_of_mixed_weight(arguments, error, match):
    with pytest.raises(error, match=match):
        ek.mixed_weight(*arguments)


def test_a_gradient_of_alphas_is_not_differentiated_again():
    alphas = torch.rand(2, requires_grad=True)
    bits = torch.stack([ek.pack_mask(torch.rand(5, 5) < 0.5) for _ in range(2)])
    (slopes,) = torch.autograd.grad(ek.mixed_weight(torch.randn(5, 5), bits, alphas).sum(), alphas, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^double backward"):
        slopes.sum().backward()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_superposed_network_is_the_authors_formulation(compiled):
    bank = filled()
    masks = [bank.masks(task) for task in range(4)]
    first, second, last = (bank.model[i] for i in (0, 3, 6))
    alphas = torch.rand(4, requires_grad=True)

    def theirs(x):
        w = [
            m.weight * stacked([masks[t][n] for t in range(4)], alphas)
            for n, m in zip("036", (first, second, last), strict=True)
        ]
        h = F.batch_norm(F.conv2d(x, w[0], padding=1), None, None, training=True).relu()
        h = F.conv2d(F.pad(h, (1, 1, 1, 1), mode="circular"), w[1], second.bias, stride=2, groups=2).relu()
        return F.linear(h.flatten(1), w[2], last.bias)

    run = torch.compile(bank.model, backend="aot_eager", fullgraph=True) if compiled else bank.model
    x, y = (X.clone().requires_grad_() for _ in range(2))
    for mode in (True, False):
        bank.train(mode)
        with bank.mix(alphas):
            ours = run(x)
            gradients = torch.autograd.grad(ours.square().sum(), (alphas, x))
        expected = theirs(y)
        assert_close("output", ours, expected, torch.float32)
        of_theirs = torch.autograd.grad(expected.square().sum(), (alphas, y))
        for name, a, b in zip(("alphas", "x"), gradients, of_theirs, strict=True):
            assert_close(name, a, b, torch.float32, factor=2)


def test_the_task_found_is_the_authors():
    torch.manual_seed(3)
    bank = filled(tasks=6, frozen=range(6), norm=False)
    masks = [bank.masks(task) for task in range(6)]
    layers = [bank.model[i] for i in (0, 3, 6)]

    def slopes(x, alphas):
        w = [m.weight * stacked([masks[t][n] for t in range(6)], alphas) for n, m in zip("036", layers, strict=True)]
        h = F.conv2d(x, w[0], padding=1).relu()
        h = F.conv2d(F.pad(h, (1, 1, 1, 1), mode="circular"), w[1], layers[1].bias, stride=2, groups=2).relu()
        logits = F.linear(h.flatten(1), w[2], layers[2].bias)
        loss = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        return torch.autograd.grad(loss, alphas)[0]

    for x in torch.randn(5, 2, 3, 6, 6):
        grad = slopes(x, torch.full((6,), 1 / 6, requires_grad=True))
        assert bank.infer(x) == int(grad.argmin())
        good = torch.ones(6, dtype=torch.bool)
        while good.sum() > 1:
            grad = slopes(x, (good / good.sum()).requires_grad_())
            good &= grad <= grad[good].median()
        assert bank.infer(x, halving=True) == int(good.nonzero())
    assert bank.infer(x, objective=lambda y: -y.logsumexp(1).mean()) in range(6)


def test_tasks_come_back_as_they_were():
    bank = filled()
    outputs, masks = everything(bank), [bank.masks(task) for task in range(4)]
    assert bank.tasks == 4 and bank.task == 3
    for task in (2, 0, 1, 3, 0):
        bank.use(task)
        bank.eval()
        assert torch.equal(bank(X), outputs[task])
        assert all(torch.equal(bank.model.get_submodule(n).mask(), m) for n, m in masks[task].items())
        assert bank.model[0].rule.fixed == (task in (1, 3)) and bank.model[0].scores.requires_grad == (task in (0, 2))
    assert bank.model[1].running_mean.abs().sum() > 0
    for task in (0, 2):
        bank.freeze(task)
        assert torch.equal(
            torch.stack(list(map(torch.sum, bank.masks(task).values()))),
            torch.stack(list(map(torch.sum, masks[task].values()))),
        )
    assert torch.equal(everything(bank), outputs)


def test_training_one_task_leaves_the_others():
    bank = filled()
    before = everything(bank)
    bank.use(2)
    step(bank)
    step(bank, torch.optim.Adam)
    after = everything(bank)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, True]


def test_a_new_task_starts_anew_or_like_another_or_from_masks():
    bank = filled(frozen=())
    masks, outputs = bank.masks(1), everything(bank)
    assert bank.add(like=1) == 4
    assert all(torch.equal(a, b) for a, b in zip(bank.masks(4).values(), masks.values(), strict=True))
    bank.eval()
    assert torch.equal(bank(X), outputs[1])
    bank.add()
    assert bank.model[1].running_mean.abs().sum() == 0 and int(bank.model[1].num_batches_tracked) == 0
    assert not torch.equal(bank.masks(5)["0"], masks["0"])
    given = {name: torch.rand(m.shape) < 0.5 for name, m in masks.items()}
    bank.add(masks=given)
    assert bank.model[0].rule.fixed and all(torch.equal(bank.masks(6)[n], m) for n, m in given.items())
    assert torch.equal(everything(bank)[:4], outputs)


@pytest.mark.parametrize(
    "rule", [ek.GlobalTopK(0.3), ek.Percentile(0.4), ek.Threshold(0.0, "raw", inclusive=True)], ids=str
)
def test_other_rules_and_a_shared_selection(rule):
    model = ek.share_selection(network(norm=False, keep=None, rule=rule))
    bank = ek.MaskBank(model)
    expected = []
    for _ in range(3):
        bank.add()
        step(bank)
        expected.append({name: m.mask() for name, m in bank._layers.items()})
    for task in range(3):
        assert all(torch.equal(m, expected[task][n]) for n, m in bank.masks(task).items())
    alphas = torch.tensor([0.0, 1.0, 0.0])
    bank.use(1)
    bank.eval()
    one = bank(X)
    with bank.mix(alphas):
        assert_close("one of three", bank(X), one, torch.float32)


def test_supermasks_and_one_dimension():
    model = nn.Sequential(
        nn.Conv1d(3, 5, 3, padding=2, stride=2, dilation=2, bias=False),
        nn.ReLU(),
        nn.Conv1d(5, 4, 3, padding="same", bias=False),
    )
    bank = ek.MaskBank(ek.convert(model, method="supermask", scores_init=None))
    for _ in range(3):
        bank.add()
    x, alphas = torch.randn(2, 3, 20), torch.rand(3)
    masks = [bank.masks(t) for t in range(3)]
    w = [m.weight * stacked([masks[t][n] for t in range(3)], alphas) for n, m in bank._layers.items()]
    expected = F.conv1d(F.conv1d(x, w[0], padding=2, stride=2, dilation=2).relu(), w[1], padding="same")
    with bank.mix(alphas):
        assert_close("output", bank(x), expected, torch.float32)
        assert_close("one image", bank(x[0]), expected[0], torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_reduced_precision_and_packed_weights(dtype):
    bank = filled(norm=False)
    alphas = torch.rand(4)
    with bank.mix(alphas):
        exact = bank(X)
        assert bank(X.to(dtype)).dtype == dtype
        assert_close("activations", bank(X.to(dtype)), exact, dtype, factor=2)
        with torch.autocast("cpu", dtype):
            assert_close("autocast", bank(X), exact, dtype, factor=2)
    for layer in bank._layers.values():
        ek.init.signed_constant_(layer.weight)
    with bank.mix(alphas):
        exact = bank(X)
    ek.pack_weights(bank.model)
    with bank.mix(alphas):
        assert torch.equal(bank(X), exact)
    bank.to(dtype)
    held = [t.dtype for state in bank._held for n, t in state.items() if n.endswith("scores")]
    assert held and set(held) == {torch.float32}


def test_a_mixture_ends_and_leaves_statistics_alone():
    bank = filled()
    bank.eval()
    before, statistics = bank(X), bank.model[1].running_mean.clone()
    alphas = torch.full((4,), 0.25)
    bank.train()
    bank.mix(alphas)
    bank(X)
    assert bank.model[1].running_mean is None
    for what in (bank.state_dict, lambda: copy.deepcopy(bank), lambda: ek.save_packed(bank, "never")):
        with pytest.raises(RuntimeError, match="the masks are mixed"):
            what()
    bank.mix(alphas)
    masks = bank.masks(3)
    bank.unmix()
    bank.eval()
    assert all(torch.equal(bank.model.get_submodule(n).mask(), mask) for n, mask in masks.items())
    assert torch.equal(bank.model[1].running_mean, statistics) and torch.equal(bank(X), before)
    bank.mix(alphas)
    assert bank.add(like=3) == 4
    bank.eval()
    assert torch.equal(bank.model[1].running_mean, statistics) and torch.equal(bank(X), before)
    bank.use(3)
    alphas = torch.full((5,), 0.2)
    bank.mix(alphas)
    bank.use(3)
    bank.eval()
    assert torch.equal(bank(X), before)
    bank.infer(X)
    assert torch.equal(bank(X), before) and bank.task == 3


def test_what_trains_beside_masks_is_of_a_task_and_does_not_superpose():
    bank = ek.MaskBank(network(freeze_rest=False))
    biases = []
    for _ in range(3):
        bank.add()
        step(bank)
        biases.append(bank.model[6].bias.detach().clone())
    assert not torch.equal(biases[0], biases[1])
    for task in (1, 0, 2):
        bank.use(task)
        assert torch.equal(bank.model[6].bias, biases[task])
    with pytest.raises(ValueError, match=r"^alphas: tasks differ in 1\.weight, 1\.bias, 3\.bias, 6\.bias too"):
        bank.mix(torch.full((3,), 1 / 3))


@pytest.mark.parametrize("through", ["state_dict", "file", "copy", "pickle"])
def test_a_bank_survives(through, tmp_path):
    bank = filled()
    bank.use(2)
    outputs = everything(bank)
    if through in ("state_dict", "file"):
        state = bank.state_dict()
        if through == "file":
            torch.save(state, tmp_path / "bank.pt")
            state = torch.load(tmp_path / "bank.pt", weights_only=True)
        other = filled(tasks=1, keep=0.5)
        other.load_state_dict(state)
        assert not any(
            a.data_ptr() == b.data_ptr() for a in state.values() for held in other._held for b in held.values()
        )
    elif through == "copy":
        other = copy.deepcopy(bank)
    else:
        stream = io.BytesIO()
        torch.save(bank, stream)
        stream.seek(0)
        other = torch.load(stream, weights_only=False)
    assert other.tasks == 4 and other.task == 2 and torch.equal(everything(other), outputs)
    alphas = torch.rand(4)
    with bank.mix(alphas), other.mix(alphas):
        assert torch.equal(bank(X), other(X))
    step(other)
    assert torch.equal(everything(bank), outputs)


def test_a_state_dict_of_another_network_is_refused():
    bank, other = filled(), ek.MaskBank(ek.convert(nn.Sequential(nn.Linear(3, 4)), freeze_rest=True))
    other.add()
    mask = other.masks(0)
    with pytest.raises(RuntimeError, match=r"tasks\.0\.0\.scores: expected shape \(4, 3\), got \(8, 3, 3, 3\)"):
        other.load_state_dict(bank.state_dict())
    assert other.tasks == 1 and torch.equal(other.masks(0)["0"], mask["0"])
    state = bank.state_dict()
    del state["tasks.1.3.mask_bits"]
    with pytest.raises(RuntimeError, match=r"tasks\.1\.3\.scores: expected it or 3\.mask_bits, one of the two"):
        filled(tasks=1).load_state_dict(state)


@pytest.mark.parametrize("packed", ["numbers", "signs", "seed"])
def test_a_packed_file_has_a_bit_a_weight_and_task(packed, tmp_path):
    model = network()
    if packed != "numbers":
        for i, layer in enumerate(m for m in model.modules() if hasattr(m, "mask_bits")):
            ek.init.packed_signed_constant_(layer, seed=i)
    if packed == "signs":
        ek.unpack_weights(model)
    bank = ek.MaskBank(model)
    for _ in range(5):
        bank.add()
        step(bank)
    outputs, file = everything(bank), tmp_path / "bank.safetensors"
    ek.save_packed(bank, file, accuracy=[0.5, 0.25])
    weights = sum(m._weight_shape().numel() for m in bank._layers.values())
    of_weights = {"numbers": 4 * weights, "signs": weights // 8, "seed": 0}[packed]
    assert file.stat().st_size < 5 * weights / 8 + of_weights + 6000
    for again in ("numbers", "bits"):
        other = filled(tasks=1, keep=0.9)
        if again == "bits" and packed != "numbers":
            for layer in other._layers.values():
                ek.init.packed_signed_constant_(layer, seed=9)
        assert ek.load_packed(file, other) is other and other.meta == {"accuracy": [0.5, 0.25]}
        assert other.tasks == 5 and other.task == 0 and torch.equal(everything(other), outputs)
    with pytest.raises(ValueError, match="holds the masks of several tasks"):
        ek.load_packed(file)
    with pytest.raises(ValueError, match="holds the masks of several tasks"):
        ek.load_packed(file, network())
    one = tmp_path / "one.safetensors"
    ek.save_packed(bank.model, one)
    with pytest.raises(ValueError, match="holds one network"):
        ek.load_packed(one, bank)


def test_a_damaged_file_or_that_of_another_network_changes_nothing(tmp_path):
    bank, file = filled(), tmp_path / "bank.safetensors"
    ek.save_packed(bank, file)
    other = filled(tasks=2)
    before = everything(other)
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        ek.load_packed(tmp_path / "damaged", other)
    wider = network()
    wider[6] = ek.FusedSubnetLinear(54, 8)
    ek.save_packed(filled_by(wider), tmp_path / "wider")
    with pytest.raises(ValueError, match=r"is of another network; 6: expected shape \[7, 54\], got \[8, 54\]"):
        ek.load_packed(tmp_path / "wider", other)
    ek.save_packed(filled(norm=False), tmp_path / "normless")
    with pytest.raises(ValueError, match=r"is of another network; model\.1.* it is in the network alone"):
        ek.load_packed(tmp_path / "normless", other)
    assert other.tasks == 2 and torch.equal(everything(other), before)
    with pytest.raises(ValueError, match=r"^model: the bank has no task yet"):
        ek.save_packed(ek.MaskBank(network()), tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def filled_by(model):
    bank = ek.MaskBank(model.requires_grad_(False))
    bank.add()
    return bank


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda bank: ek.MaskBank(3), TypeError, "^model: expected a torch.nn.Module"),
        (lambda bank: ek.MaskBank(bank), TypeError, "^model: expected a network, got a MaskBank"),
        (lambda bank: ek.materialize(bank), TypeError, r"^model: .*; materialize\(bank\.model, copy=True\) makes"),
        (lambda bank: ek.convert(bank), TypeError, "^model: expected a network, got a MaskBank; convert the network"),
        (lambda bank: ek.MaskBank(nn.Linear(3, 4)), ValueError, "^model: it has no masked layer"),
        (
            lambda bank: ek.MaskBank(ek.FusedSparseLinear(3, 4)),
            ValueError,
            "^model: it has no scores for a mask of each",
        ),
        (lambda bank: ek.MaskBank(frozen_for_good()), ValueError, "^model: it has no scores .* dropped by freeze"),
        (lambda bank: ek.MaskBank(ek.FusedSupermaskLinear(3, 4, rescale=True)), ValueError, "^model: it has rescaled"),
        (
            lambda bank: ek.MaskBank(ek.FusedSupermaskLinear(3, 4, mask_bias=True)),
            ValueError,
            "^model: it has a masked",
        ),
        (lambda bank: bank.use(4), ValueError, r"^task: expected a number in \[0, 4\), got 4"),
        (lambda bank: bank.use(-1), ValueError, r"^task: expected a number in \[0, 4\), got -1"),
        (lambda bank: bank.use("first"), TypeError, "^task: expected the number of a task, got str"),
        (lambda bank: bank.add(like=9), ValueError, "^like: expected a number in"),
        (lambda bank: bank.add({}, like=1), ValueError, "^like: expected masks or like, one of the two"),
        (lambda bank: bank.add({}), ValueError, "^masks: expected one for each masked layer, a mask of '0' too"),
        (lambda bank: bank.add([torch.ones(3)]), TypeError, "^masks: expected a dict"),
        (lambda bank: bank.add(bank.masks(0) | {"6": torch.ones(7, 54)}), TypeError, r"^masks\['6'\]: expected"),
        (lambda bank: bank.mix([0.1]), TypeError, "^alphas: expected a torch.Tensor"),
        (lambda bank: bank.mix(torch.ones(5)), ValueError, r"^alphas: expected one for each of 4 tasks, \[4\]"),
        (lambda bank: ek.MaskBank(network()).use(0), ValueError, "^task: .* there is none yet"),
        (lambda bank: ek.MaskBank(network()).freeze(), ValueError, "^task: there is none in use"),
        (lambda bank: ek.MaskBank(network()).infer(X), ValueError, "^task: there is none yet"),
        (lambda bank: ek.MaskBank(network()).mix(torch.ones(0)), ValueError, "^alphas: there is no task yet"),
        (lambda bank: bank.infer(X, objective=lambda y: y.sum() * torch.nan), ValueError, "^objective: its slopes"),
    ],
)
def test_wrong_calls_change_nothing(call, error, match):
    bank = filled()
    before = everything(bank)
    with pytest.raises(error, match=match):
        call(bank)
    bank.unmix()
    assert bank.tasks == 4 and bank.task == 3 and torch.equal(everything(bank), before)


def frozen_for_good():
    layer = ek.FusedSubnetLinear(3, 4)
    layer.freeze()
    return layer


def test_fused_backward_and_known_cuts_follow_the_task_in_use():
    bank = ek.MaskBank(network(norm=False))
    for _ in range(2):
        bank.add()
        optimizer = ek.optim.ScoreSGD(bank, lr=0.1, fused_backward=True)
        for _ in range(3):
            bank(X).square().mean().backward()
            optimizer.step()
        bank.eval()
        assert all(torch.equal(m.mask(), ek.mask(m.scores.detach().clone(), m.rule)) for m in bank._layers.values())
        bank.train()
    outputs = everything(bank)
    bank.use(0)
    bank.eval()
    assert torch.equal(bank(X), outputs[0]) and not torch.equal(outputs[0], outputs[1])


def test_whats_printed():
    assert repr(filled()).startswith("MaskBank(\n  tasks=4, task=3\n")
