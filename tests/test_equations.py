"""Every mask rule against its published equation, forward and gradients, written out in float64 without autograd.

With Z the inputs of a layer, I its outputs and M the mask of scores S (or of W itself):

    I_v = sum_u w_uv m_uv Z_u        dw_eff_uv = <dL/dI_v, Z_u>        dL/dZ_u = sum_v w_uv m_uv dL/dI_v

Rules differ in m and in what dw_eff becomes. A convolution is this on the patches its filters see. The supermasks with
rescaling and masked biases are in test_supermasks, the draws of Bernoulli in test_random_masks, the graphs in
test_methods_graphs and test_methods_dynamic_graphs, Flipout in test_methods_bayesian.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

import edgepop_kernels as ek
from edgepop_kernels.testing.tolerances import assert_close

KEEP = 0.3


def largest(values, count):
    """1 at the ``count`` largest of distinct values."""
    kept = torch.zeros(values.numel(), dtype=torch.bool)
    kept[values.flatten().argsort(descending=True)[:count]] = True
    return kept.view(values.shape)


def top(values):
    return largest(values, values.numel() - int((1 - KEEP) * values.numel()))


def percentile(values):
    return values >= values.flatten().kthvalue(1 + round((1 - KEEP) * (values.numel() - 1))).values


class Equation(NamedTuple):
    """rule; m of S; dL/dS of (dw_eff, W, S), or None: the weight is ranked, and dL/dW is of every edge."""

    rule: object
    mask: Callable
    scores_grad: Callable | None


EQUATIONS = {
    # Ramanujan et al. 2020, section 3.1: s_uv moves by <dL/dI_v, Z_u w_uv>; the scores are |s|.
    "edge-popup": Equation(ek.TopK(KEEP), lambda s: top(s.abs()), lambda g, w, s: g * w * s.sign()),
    # The same on s itself, as Wortsman et al. 2020 (SupSup) rank.
    "edge-popup on raw scores": Equation(ek.TopK(KEEP, of="raw"), top, lambda g, w, s: g * w),
    # GetSubnetFaster: 1[s >= the q-th percentile], ties kept.
    "percentile": Equation(ek.Percentile(KEEP, of="raw"), percentile, lambda g, w, s: g * w),
    "percentile of magnitudes": Equation(
        ek.Percentile(KEEP), lambda s: percentile(s.abs()), lambda g, w, s: g * w * s.sign()
    ),
    # M = sigma(s) + stop(1[sigma(s) > tau] - sigma(s)).
    "supermask": Equation(
        ek.Threshold(0.4),
        lambda s: 1 / (1 + torch.exp(-s)) > 0.4,
        lambda g, w, s: g * w * torch.exp(-s) / (1 + torch.exp(-s)) ** 2,
    ),
    # Mallya et al. 2018 (Piggyback), binarised: 1[s > tau], gradient straight through.
    "threshold on raw scores": Equation(ek.Threshold(0.1, of="raw"), lambda s: s > 0.1, lambda g, w, s: g * w),
    # Wortsman et al. 2019: w_uv moves by <Z_u, -lr dL/dI_v> for every u, v.
    "neural wirings": Equation(ek.TopK(KEEP), lambda w: top(w.abs()), None),
}


class Operands(NamedTuple):
    """Of a layer: float32 leaves, the gradient of its output, and its two functions."""

    x: torch.Tensor
    weight: torch.Tensor
    scores: torch.Tensor
    dy: torch.Tensor
    fused: Callable
    patches: Callable  # x -> [batch, inputs of a unit, positions], the Z of every position
    scatter: Callable  # its transpose


def linear(out=13):
    x = torch.randn(6, 17)
    return Operands(
        x,
        torch.randn(out, 17),
        torch.randn(out, 17),
        torch.randn(6, out),
        ek.masked_linear,
        lambda x: x[:, :, None],
        lambda z: z[:, :, 0],
    )


def conv(out=7):
    geometry = dict(stride=2, padding=1)
    weight = torch.randn(out, 5, 3, 3)
    return Operands(
        torch.randn(3, 5, 9, 8),
        weight,
        torch.randn(weight.shape),
        torch.randn(3, out, 5, 4),
        lambda *args, **options: ek.masked_conv2d(*args, **geometry, **options),
        lambda x: F.unfold(x, 3, **geometry),
        lambda z: F.fold(z, (9, 8), 3, **geometry),
    )


LAYERS = pytest.mark.parametrize("make", [linear, conv])
BACKENDS = pytest.mark.parametrize("backend", ["native", "reference"])


def by_hand(operands, mask):
    """(I, dL/dZ, dw_eff) in float64 from the three equations."""
    x, weight, dy = (t.detach().double() for t in (operands.x, operands.weight, operands.dy))
    masked = (weight * mask).flatten(1)  # [v, u]
    z, g = operands.patches(x), dy.flatten(2) if dy.dim() == 4 else dy[:, :, None]  # [b, u, p], [b, v, p]
    y = torch.einsum("vu,bup->bvp", masked, z).view(dy.shape)
    dx = operands.scatter(torch.einsum("vu,bvp->bup", masked, g))
    return y, dx, torch.einsum("bvp,bup->vu", g, z).view(weight.shape)


def compare(**pairs):
    for name, (found, expected) in pairs.items():
        assert_close(name, found, expected, torch.float32)


@BACKENDS
@LAYERS
@pytest.mark.parametrize("name", EQUATIONS)
def test_rule_is_its_equation(name, make, backend):
    rule, mask_of, scores_grad = EQUATIONS[name]
    operands = make()
    x, weight = operands.x.requires_grad_(), operands.weight.requires_grad_()
    scores = None if scores_grad is None else operands.scores.requires_grad_()
    with ek.use_backend(backend):
        y = operands.fused(x, weight, scores, rule)
        y.backward(operands.dy)
    mask = mask_of((weight if scores is None else scores).detach().double())
    assert 0 < mask.sum() < mask.numel()
    want, dx, dw_eff = by_hand(operands, mask)
    if scores is None:
        compare(y=(y, want), dx=(x.grad, dx), dweight=(weight.grad, dw_eff))
        return
    ds = scores_grad(dw_eff, weight.detach().double(), scores.detach().double())
    # A weight that trains beside its scores: dL/dW = dw_eff where kept.
    compare(y=(y, want), dx=(x.grad, dx), dscores=(scores.grad, ds), dweight=(weight.grad, dw_eff * mask))


@BACKENDS
@LAYERS
def test_a_frozen_mask_is_its_equation(make, backend):
    """m given, as in fine-tuning and lottery tickets: dL/dW = dw_eff where kept, 0 elsewhere."""
    operands = make()
    x, weight, mask = operands.x.requires_grad_(), operands.weight.requires_grad_(), operands.scores > 0.5
    with ek.use_backend(backend):
        y = operands.fused(x, weight, ek.pack_mask(mask), ek.Frozen())
        y.backward(operands.dy)
    want, dx, dw_eff = by_hand(operands, mask)
    compare(y=(y, want), dx=(x.grad, dx), dweight=(weight.grad, dw_eff * mask))
    assert not weight.grad[~mask].any()


@BACKENDS
@LAYERS
@pytest.mark.parametrize("scored", [True, False], ids=["edge-popup", "neural wirings"])
def test_one_threshold_for_a_network_is_its_equation(scored, make, backend):
    """m = 1[|s| > tau], tau the one of the scores of all layers: E = {|w| > tau} of Wortsman et al. 2019."""
    first, second = make(), make(out=11)
    with torch.no_grad():
        second.scores.mul_(3)
        second.weight.mul_(3)
    ranked = [(o.scores if scored else o.weight).requires_grad_() for o in (first, second)]
    magnitudes = torch.cat([t.detach().abs().flatten() for t in ranked])
    tau = magnitudes.sort(descending=True).values[top(magnitudes).sum() - 1]
    rule = ek.GlobalTopK(KEEP)
    with ek.use_backend(backend):
        cuts = ek.select_all([t.detach() for t in ranked], [rule] * 2)
        for operands, values, cut in zip((first, second), ranked, cuts, strict=True):
            x, mask = operands.x.requires_grad_(), values.detach().abs() >= tau
            y = operands.fused(x, operands.weight, operands.scores if scored else None, rule, cut=cut)
            y.backward(operands.dy)
            want, dx, dw_eff = by_hand(operands, mask)
            grad = dw_eff * operands.weight.double() * values.double().sign() if scored else dw_eff
            compare(y=(y, want), dx=(x.grad, dx), dranked=(values.grad, grad.detach()))
