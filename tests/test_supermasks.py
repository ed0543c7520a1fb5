"""Supermask layers against float64 autograd on the papers' expressions, and their life: convert, freeze, export."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek

CONV = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1, "groups": 2}


def linear(**options):
    return ek.FusedSupermaskLinear(5, 7, **options), torch.randn(3, 5), F.linear


def conv(**options):
    call = lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1, groups=2)  # noqa: E731
    return ek.FusedSupermaskConv(**CONV, **options), torch.randn(2, 4, 6, 6), call


BUILDERS = pytest.mark.parametrize("build", [linear, conv])


def randomise(layer):
    with torch.no_grad():
        for p in (layer.scores, layer.bias_scores):
            if p is not None:
                p.normal_()


def straight_through(scores, mask):
    """M = sigma(s) + stop(1[...] - sigma(s)): the mask's value, the sigmoid's gradient."""
    p = scores.sigmoid()
    return mask.double() + p - p.detach()


@BUILDERS
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("mask_bias", [False, True])
@pytest.mark.parametrize("rule", [ek.Threshold(0.5), ek.Threshold(0.3), ek.Bernoulli()])
def test_layer_is_its_equation(build, rescale, mask_bias, rule):
    """W_eff = W * M * n / sum(M), b_eff = b * M_b, M straight-through: value, dx and the gradients of both scores.

    n / sum(M): dynamic weight rescaling, Zhou et al. 2019, whose gradient also flows through sum(M); the masked bias
    and the threshold form M = sigma(s) + stop(1[sigma(s) > tau] - sigma(s)) are the thresholded supermask's.
    """
    layer, x, call = build(rule=rule, rescale=rescale, mask_bias=mask_bias)
    randomise(layer)
    x.requires_grad_()
    torch.manual_seed(11)
    y = layer(x)
    torch.manual_seed(11)  # the same draws, in the same order
    mask = ek.mask(layer.scores, rule)
    bias_mask = ek.mask(layer.bias_scores, rule) if mask_bias else torch.ones(layer.bias.shape)

    scores = layer.scores.detach().double().requires_grad_()
    bias_scores = layer.bias_scores.detach().double().requires_grad_() if mask_bias else None
    m = straight_through(scores, mask)
    weight = layer.weight.double() * m * (m.numel() / m.sum() if rescale else 1)
    bias = layer.bias.detach().double() * (straight_through(bias_scores, bias_mask) if mask_bias else 1)
    x64 = x.detach().double().requires_grad_()
    expected = call(x64, weight, bias)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.scores.grad.double(), scores.grad, rtol=1e-4, atol=1e-5)
    assert layer.weight.grad is None
    if mask_bias:
        torch.testing.assert_close(layer.bias_scores.grad.double(), bias_scores.grad, rtol=1e-4, atol=1e-5)
        assert layer.bias.grad is None


@pytest.mark.parametrize("of", ["abs", "raw"])
def test_rescaling_counts_as_the_mask_does(of):
    layer = ek.FusedSupermaskLinear(40, 30, rule=ek.Threshold(0.25, of), rescale=True)
    with torch.no_grad():
        layer.scores.copy_(torch.randint(-4, 5, (30, 40)) * 0.125)
    assert layer._scale(layer.select()).item() == pytest.approx(1200 / layer.mask().sum().item())


def test_a_layer_that_keeps_nothing_gives_its_bias():
    layer = ek.FusedSupermaskLinear(5, 7, rescale=True, scores_init=-1.0)
    y = layer(torch.randn(3, 5))
    torch.testing.assert_close(y, layer.bias.expand(3, 7))
    y.sum().backward()
    assert layer.scores.grad.isfinite().all() and torch.equal(layer.materialize().weight, torch.zeros(7, 5))


def test_constructor():
    layer = ek.FusedSupermaskConv(4, 6, (3, 5), 2, (1, 2), 1, 2, True, "reflect", mask_bias=True, scores_init=0.5)
    assert isinstance(layer, nn.Conv2d) and layer.rule == ek.Threshold(0.5)
    assert (layer.scores == 0.5).all() and (layer.bias_scores == 0.5).all() and layer.keep == 1.0
    assert {n for n, p in layer.named_parameters() if p.requires_grad} == {"scores", "bias_scores"}
    assert "mask_bias=True" in repr(layer)
    randomise(layer)
    layer.reset_parameters()
    assert (layer.scores == 0.5).all() and (layer.bias_scores == 0.5).all()


@BUILDERS
def test_scores_start_around_0_unless_at_a_constant(build):
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the bias's too: half are kept. From 1, where all are, SGD of 0.1 dropped none
    in 30 epochs of the digits."""
    layer, _, _ = build(mask_bias=True)
    bound = 1 / layer.weight[0].numel() ** 0.5
    for scores in (layer.scores, layer.bias_scores):
        assert scores.abs().max() <= bound and scores.unique().numel() == scores.numel()
    assert 0 < layer.keep < 1
    before = layer.scores.detach().clone()
    layer.reset_scores()
    assert not torch.equal(layer.scores, before)


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"rule": ek.TopK(0.5)}, ValueError, "rule"),
        ({"bias": False, "mask_bias": True}, ValueError, "mask_bias"),
        ({"scores_init": float("nan")}, ValueError, "scores_init"),
        ({"scores_init": "one"}, ValueError, "scores_init"),
    ],
)
def test_bad_options_are_named(options, error, name):
    with pytest.raises(error, match=rf"^{name}: ."):
        ek.FusedSupermaskLinear(3, 4, **options)


@BUILDERS
@pytest.mark.parametrize("rule", [ek.Threshold(0.5), ek.Bernoulli(at_eval="round")])
def test_freeze_and_materialize_keep_the_function(build, rule):
    layer, x, _ = build(rule=rule, rescale=True, mask_bias=True)
    randomise(layer)
    layer.eval()
    y = layer(x)
    torch.testing.assert_close(layer.materialize()(x), y)
    frozen = copy.deepcopy(layer)
    frozen.freeze()
    torch.testing.assert_close(frozen(x), y)
    assert list(frozen.state_dict()) == ["weight", "bias", "bias_mask", "mask_bits", "_extra_state"]
    fresh, _, _ = build(rule=rule, rescale=True, mask_bias=True)
    fresh.load_state_dict(frozen.state_dict())
    torch.testing.assert_close(fresh(x), y)
    plain = ek.materialize(nn.Sequential(layer))
    torch.testing.assert_close(plain(x), y)
    assert list(plain.state_dict()) == ["0.weight", "0.bias"] and type(plain[0]) in (nn.Conv2d, nn.Linear)
    assert set(vars(plain[0])) == set(vars(nn.Linear(1, 1) if plain[0].weight.dim() == 2 else nn.Conv2d(1, 1, 1)))


def test_convert_to_supermasks():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.Flatten(), nn.Linear(16, 3))
    weight = model[2].weight
    ek.convert(model, method="supermask", mask_bias=True, scores_init=0.2, rescale=True)
    assert isinstance(model[0], ek.FusedSupermaskConv) and isinstance(model[2], ek.FusedSupermaskLinear)
    assert model[2].weight is weight and model[0].bias_scores is None and model[2].bias_scores is not None
    ek.share_selection(model)
    model(torch.randn(2, 2, 4, 4)).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "scores" in n)
    with pytest.raises(ValueError, match=r"^method: ."):
        ek.convert(nn.Linear(2, 2), method="supermasks")
    with pytest.raises(TypeError, match=r"^rescale: ."):
        ek.convert(nn.Linear(2, 2), rescale=True)
    with pytest.raises(ValueError, match=r"^rule: ."):
        ek.convert(nn.Linear(2, 2), ek.TopK(0.5), method="supermask")


def test_scores_stay_float32():
    layer = ek.FusedSupermaskLinear(6, 5, mask_bias=True, rescale=True).bfloat16()
    assert layer.weight.dtype == torch.bfloat16 and layer.scores.dtype == layer.bias_scores.dtype == torch.float32
    y = layer(torch.randn(2, 6, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    y.sum().backward()


def test_non_affine_batch_norm():
    norm, plain = ek.NonAffineBatchNorm(4), nn.BatchNorm2d(4)
    x = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(norm(x), plain(x))
    assert not list(norm.parameters()) and torch.equal(norm.running_mean, plain.running_mean)


@pytest.mark.parametrize("of", ["sigmoid", "abs", "raw"])
def test_a_bias_score_that_is_not_finite(of):
    """NaN is never kept; the gradients of the others are theirs."""
    layer = ek.FusedSupermaskLinear(3, 4, mask_bias=True, rule=ek.Threshold(0.5, of))
    with torch.no_grad():
        layer.bias_scores.copy_(torch.tensor([math.nan, math.inf, -math.inf, 2.0]))
    y = layer(torch.zeros(1, 3))
    kept = torch.tensor([False, True, of == "abs", True])
    assert torch.equal(y[0], layer.bias * kept)
    y.sum().backward()
    slope = {"sigmoid": torch.tensor(2.0).sigmoid() * torch.tensor(-2.0).sigmoid(), "abs": 1.0, "raw": 1.0}[of]
    torch.testing.assert_close(layer.bias_scores.grad[3], layer.bias[3] * slope)
    assert layer.bias_scores.grad[1:].isfinite().all()
