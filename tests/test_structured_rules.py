"""Masks of groups, blocks and channels in layers and networks: edge-popup's and weights that score themselves."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kernels import AVAILABLE, ON_CPU, ON_GPU
from structures import check_structure, network
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.testing.tolerances import assert_close

BACKENDS = AVAILABLE if ON_GPU else ON_CPU
RULES = [
    *(ek.NM(2, 4), ek.NM(1, 4, "raw"), ek.Block(0.5, (1, 4)), ek.Block(0.3, (3, 2)), ek.Block(0.4, (6, 2), "raw")),
    *(ek.Channels(0.25), ek.Channels(0.5, dim=1)),
]


def converted(rule, **options):
    """The network under the rule, but for a convolution that not all of them take."""
    return ek.convert(network(), rule, exclude=["2"], left="ignore", **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_and_gradients_are_those_of_the_mask(backend, rule, dtype):
    torch.manual_seed(1)
    weight, scores = torch.randn(24, 20), torch.randn(24, 20, requires_grad=True)
    x = torch.randn(7, 20, dtype=dtype, requires_grad=True)
    dy = torch.randn(7, 24, dtype=dtype)
    with ek.use_backend(backend):
        y = ek.masked_linear(x, weight, scores, rule)
        y.backward(dy)
    with ek.use_backend("reference"):
        mask = ek.mask(scores.detach(), rule)
    check_structure(mask, rule)
    effective, x64, dy64, s64 = weight.double() * mask, x.detach().double(), dy.double(), scores.detach().double()
    slope = s64.sign() if rule.of == "abs" else 1.0
    assert_close("y", y, x64 @ effective.T, dtype)
    assert_close("dx", x.grad, dy64 @ effective, dtype)
    assert_close("ds", scores.grad, dy64.T @ x64 * weight.double() * slope, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_score_themselves_get_the_gradient_of_every_edge(backend):
    for rule in RULES:
        weight = torch.randn(6, 8, requires_grad=True)
        x, dy = torch.randn(5, 8), torch.randn(5, 6)
        with ek.use_backend(backend):
            y = ek.masked_linear(x, weight, None, rule)
            y.backward(dy)
        torch.testing.assert_close(y.detach(), x @ (weight.detach() * ek.mask(weight.detach(), rule)).T)
        torch.testing.assert_close(weight.grad, dy.T @ x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("itself", [False, True], ids=["scores", "weight"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("rule", [ek.NM(2, 4), ek.Block(0.5, (1, 1, 3, 3)), ek.Channels(0.5)], ids=str)
def test_convolutions_are_those_of_the_mask(backend, itself, layout, rule):
    torch.manual_seed(3)
    geometry = dict(stride=2, padding=1, dilation=1, groups=2)
    x = torch.randn(3, 8, 9, 7).to(memory_format=layout).requires_grad_()
    weight = torch.randn(10, 4, 3, 3).to(memory_format=layout).requires_grad_(itself)
    scores = None if itself else torch.randn(10, 4, 3, 3).to(memory_format=layout).requires_grad_()
    with ek.use_backend(backend):
        y = ek.masked_conv2d(x, weight, scores, rule, **geometry)
        dy = torch.randn_like(y)
        y.backward(dy)
    ranked = (weight if itself else scores).detach()
    with ek.use_backend("reference"):
        mask = ek.mask(ranked, rule).double()
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


@pytest.mark.parametrize("given", [False, True], ids=["selects", "cut"])
@pytest.mark.parametrize("rule", [ek.NM(2, 4), ek.Block(0.5, (1, 1, 3)), ek.Block(0.5, (2, 4, 1))], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_of_one_dimension_go_by_the_shape_of_their_own_weight(transposed, rule, given):
    product = ek.masked_conv_transpose1d if transposed else ek.masked_conv1d
    torchs = F.conv_transpose1d if transposed else F.conv1d
    x, weight, scores = torch.randn(2, 4, 11), torch.randn(4, 4, 3), torch.randn(4, 4, 3)
    y = product(x, weight, scores, rule, cut=ek.select(scores, rule) if given else None)
    assert_close("y", y, torchs(x.double(), weight.double() * ek.mask(scores, rule)), torch.float32)
    kind = ek.FusedSubnetConvTranspose1d if transposed else ek.FusedSubnetConv1d
    layer = kind(4, 4, 3, rule=rule)
    assert_close("y", layer(x), layer.materialize().double()(x.double()), torch.float32)


@pytest.mark.parametrize("method", ["subnet", "sparse"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_network_trains_as_under_its_masks_and_keeps_its_structure(method, rule):
    model = converted(rule, method=method)
    ek.share_selection(model)
    x, y = torch.randn(9, 4, 4, 4), torch.randint(6, (9,))
    with torch.no_grad():
        for layer in (model[0], model[4]):
            (layer.weight if method == "sparse" else layer.scores).mul_(0.1)  # so that some steps change the mask
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    masks = [model[i].mask() for i in (0, 4)]
    for _ in range(20):
        plain = ek.materialize(model, copy=True).double()
        assert_close("y", model(x), plain(x.double()), torch.float32)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for i in (0, 4):
        check_structure(model[i].mask(), rule)
        assert model[i].keep == rule.keep
    assert any(not torch.equal(before, model[i].mask()) for before, i in zip(masks, (0, 4), strict=True))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_rule_travels_and_a_fixed_mask_stays(tmp_path, rule):
    model, again = converted(rule), converted(ek.TopK(0.9))
    again.load_state_dict(model.state_dict())
    assert again[0].rule == rule and torch.equal(again[4].mask(), model[4].mask())
    assert ek.summary(again).rows[0].rule == rule and type(rule).__name__ in str(ek.summary(again))
    x = torch.randn(2, 4, 4, 4)
    expected = model(x)
    ek.save_packed(model, tmp_path / "net.safetensors")
    other = converted(rule)
    ek.load_packed(tmp_path / "net.safetensors", other)
    torch.testing.assert_close(other(x), expected)
    ek.train_weights(model)
    check_structure(model[0].mask(), rule)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("rule", [ek.NM(2, 4), ek.Block(0.5), ek.Channels(0.5)], ids=str)
def test_a_compiled_network_and_a_copy_select_alike(rule):
    torch._dynamo.reset()
    model = ek.convert(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), rule)
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


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_score_optimizers_step_them_as_torch_does(rule):
    def trained(make):
        model = converted(rule)
        optimizer = make(model)
        torch.manual_seed(3)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(9, 4, 4, 4)), torch.randint(6, (9,))).backward()
            optimizer.step()
        return [model[i].mask() for i in (0, 4)], model[4].scores.detach()

    ours, mine = trained(lambda model: ek.optim.ScoreSGD(model, lr=0.3, momentum=0.9))
    theirs, other = trained(lambda model: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9))
    torch.testing.assert_close(mine, other)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
