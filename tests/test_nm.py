"""N:M masks in layers and networks: edge-popup's and weights that score themselves."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.testing.tolerances import assert_close

AVAILABLE = [name for name, reason in ek.backends().items() if reason is None]
BACKENDS = [name for name in AVAILABLE if torch.cuda.is_available() or name not in ("triton", "cuda")]
RULE = ek.NM(2, 4)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 9, 3, groups=3), nn.Flatten(), nn.Linear(36, 6)
    )


def groups_kept(mask, m, dim=1):
    return mask.movedim(dim, -1).reshape(-1, m).sum(1)


def test_a_rule_says_what_it_takes():
    assert str(RULE) == "NM(n=2, m=4, of='abs', dim=1)" and ek.NM(2, 4).keep == 0.5 and hash(RULE) == hash(ek.NM(2, 4))
    for arguments, error, message in [
        ((0, 4), ValueError, "n: expected 1 to m=4 weights kept of a group, got 0"),
        ((5, 4), ValueError, "n: expected 1 to m=4 weights kept of a group, got 5"),
        ((1, 65), ValueError, "m: expected 1 to 64 weights in a group, got 65"),
        ((1, 0), ValueError, "m: expected 1 to 64 weights in a group, got 0"),
        ((2.0, 4), TypeError, "n: expected an int, got float"),
        ((2, True), TypeError, "m: expected an int, got bool"),
        ((2, 4, "sigmoid"), ValueError, "of: expected one of 'abs', 'raw', got 'sigmoid'"),
    ]:
        with pytest.raises(error, match=message):
            ek.NM(*arguments)
    with pytest.raises(ValueError, match="dim: expected 0 or 1, got 2"):
        ek.NM(2, 4, dim=2)
    message = r"rule: NM\(.*\) takes weights whose dimension 1 is a multiple of 4, got shape \(8, 6\)"
    for call in (
        lambda: ek.mask(torch.randn(8, 6), RULE),
        lambda: ek.select(torch.randn(8, 6), RULE),
        lambda: ek.masked_linear(torch.randn(2, 6), torch.randn(8, 6), torch.randn(8, 6), RULE),
        lambda: ek.FusedSubnetLinear(6, 8, rule=RULE),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=r"keep: this layer's rule, NM\(.*\), has none to set"):
        ek.FusedSubnetLinear(8, 8, rule=RULE).keep = 0.25


def test_convert_names_the_layer_that_has_no_whole_groups_and_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(ValueError, match=r"got shape \(8, 3, 3, 3\), of 0; exclude=\.\.\. leaves that dense"):
        ek.convert(model, RULE)
    assert type(model[1]) is nn.Conv2d
    ek.convert(model, RULE, exclude="0")
    assert groups_kept(model[1].mask(), 4).unique().tolist() == [2]
    with pytest.raises(ValueError, match="rule: FusedSupermaskLinear takes one of Threshold, Bernoulli, got NM"):
        ek.FusedSupermaskLinear(8, 8, rule=RULE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("of", ["abs", "raw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_and_gradients_are_those_of_the_mask(backend, of, dtype):
    torch.manual_seed(1)
    rule = ek.NM(1, 4, of)
    weight, scores = torch.randn(24, 20), torch.randn(24, 20, requires_grad=True)
    x = torch.randn(7, 20, dtype=dtype, requires_grad=True)
    dy = torch.randn(7, 24, dtype=dtype)
    with ek.use_backend(backend):
        y = ek.masked_linear(x, weight, scores, rule)
        y.backward(dy)
    mask = ek.mask(scores.detach(), rule).double()
    x64, w64, s64, dy64 = x.detach().double(), weight.double(), scores.detach().double(), dy.double()
    slope = s64.sign() if of == "abs" else 1.0
    expected = {"y": (y, x64 @ (w64 * mask).T), "dx": (x.grad, dy64 @ (w64 * mask))}
    expected["ds"] = (scores.grad, dy64.T @ x64 * w64 * slope)
    for name, (found, exact) in expected.items():
        assert_close(name, found, exact, dtype)


@pytest.mark.parametrize("method", ["subnet", "sparse"])
def test_a_network_trains_as_under_its_masks_and_keeps_its_structure(method):
    model = ek.convert(network(), RULE, method=method, scores="random", left="ignore", exclude=["2"])
    ek.share_selection(model)
    x, y = torch.randn(9, 4, 4, 4), torch.randint(6, (9,))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    masks = [model[i].mask() for i in (0, 4)]
    for _ in range(5):
        plain = ek.materialize(model, copy=True)
        torch.testing.assert_close(model(x), plain(x))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for before, i in zip(masks, (0, 4), strict=True):
        assert groups_kept(model[i].mask(), 4).unique().tolist() == [2] and not torch.equal(before, model[i].mask())
        assert model[i].keep == 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_score_themselves_get_the_gradient_of_every_edge(backend):
    torch.manual_seed(2)
    weight = torch.randn(6, 8, requires_grad=True)
    x, dy = torch.randn(5, 8), torch.randn(5, 6)
    with ek.use_backend(backend):
        y = ek.masked_linear(x, weight, None, RULE)
        y.backward(dy)
    torch.testing.assert_close(y.detach(), x @ (weight.detach() * ek.mask(weight.detach(), RULE)).T)
    torch.testing.assert_close(weight.grad, dy.T @ x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("itself", [False, True], ids=["scores", "weight"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_convolutions_are_those_of_the_mask(backend, itself, layout):
    torch.manual_seed(3)
    geometry = dict(stride=2, padding=1, dilation=1, groups=2)
    x = torch.randn(3, 8, 9, 7).to(memory_format=layout).requires_grad_()
    weight = torch.randn(10, 4, 3, 3).to(memory_format=layout).requires_grad_(itself)
    scores = None if itself else torch.randn(10, 4, 3, 3).to(memory_format=layout).requires_grad_()
    with ek.use_backend(backend):
        y = ek.masked_conv2d(x, weight, scores, RULE, **geometry)
        dy = torch.randn_like(y)
        y.backward(dy)
    ranked = (weight if itself else scores).detach()
    mask = ek.mask(ranked, RULE).double()
    x64 = x.detach().double().requires_grad_()
    effective = (weight.detach().double() * mask).requires_grad_()
    y64 = F.conv2d(x64, effective, **geometry)
    y64.backward(dy.double())
    assert_close("y", y, y64, torch.float32)
    assert_close("dx", x.grad, x64.grad, torch.float32)
    if itself:
        assert_close("dw", weight.grad, effective.grad, torch.float32)
    else:
        expected = effective.grad * weight.detach().double() * ranked.double().sign()
        assert_close("ds", scores.grad, expected, torch.float32)


def test_groups_of_a_transposed_layer_lie_along_its_inputs_by_dim_0():
    model = ek.convert(nn.Sequential(nn.ConvTranspose2d(8, 6, 3)), ek.NM(2, 4, dim=0))
    assert groups_kept(model[0].mask(), 4, dim=0).unique().tolist() == [2]
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(model(x), ek.materialize(model, copy=True)(x))


def test_a_deviation_follows_the_fraction_and_scores_may_start_from_weights():
    model = ek.convert(nn.Sequential(nn.Linear(32, 16)), ek.NM(1, 4), init="signed_constant", scale="paper")
    assert model[0].weight.abs().max().item() == pytest.approx((2 / (32 * 0.25)) ** 0.5)
    trained = nn.Sequential(nn.Linear(32, 16))
    weight = trained[0].weight.detach().clone()
    ek.convert(trained, RULE, scores="magnitude")
    assert torch.equal(trained[0].mask(), ek.mask(weight, RULE))


def test_the_rule_travels_and_a_fixed_mask_stays(tmp_path):
    model = ek.convert(network(), RULE, exclude=["2"], left="ignore", scores="magnitude")
    again = ek.convert(network(), keep=0.9, exclude=["2"], left="ignore")
    again.load_state_dict(model.state_dict())
    assert again[0].rule == RULE and torch.equal(again[4].mask(), model[4].mask())
    x = torch.randn(2, 4, 4, 4)
    expected = model(x)
    ek.save_packed(model, tmp_path / "net.safetensors")
    other = ek.convert(network(), RULE, exclude=["2"], left="ignore")
    ek.load_packed(tmp_path / "net.safetensors", other)
    torch.testing.assert_close(other(x), expected)
    ek.train_weights(model)
    assert groups_kept(model[0].mask(), 4).unique().tolist() == [2]
    torch.testing.assert_close(model(x), expected)
    assert "NM(n=2, m=4)" in str(ek.summary(again))


def test_a_compiled_network_and_a_copy_select_alike():
    torch._dynamo.reset()
    model = ek.convert(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), RULE)
    x = torch.randn(3, 16)
    expected = model(x)
    expected.sum().backward()
    grad = model[0].scores.grad.clone()
    model[0].scores.grad = None
    run = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    found = run(x)
    found.sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(run.get_parameter("_orig_mod.0.scores").grad, grad)
    torch._dynamo.reset()


def test_score_optimizers_step_them_as_torch_does():
    def trained(make):
        model = ek.convert(network(), RULE, exclude=["2"], left="ignore")
        optimizer = make(model)
        torch.manual_seed(3)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(9, 4, 4, 4)), torch.randint(6, (9,))).backward()
            optimizer.step()
        return [model[i].mask() for i in (0, 4)], model[4].scores.detach()

    torch.manual_seed(5)
    ours, mine = trained(lambda model: ek.optim.ScoreSGD(model, lr=0.3, momentum=0.9))
    torch.manual_seed(5)
    theirs, other = trained(lambda model: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9))
    torch.testing.assert_close(mine, other)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
