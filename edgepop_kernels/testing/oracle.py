"""Masked linear and convolution straight from the definition, in float64, sharing no code with the package's paths.

The mask is a stable descending sort; the forward pass multiplies it in and calls torch's own layer; autograd does the
rest through one straight-through Function. Slow and memory-hungry on purpose: nothing here is worth being clever about.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from edgepop_kernels.rules import Frozen, Rule, Threshold, TopK


def mask(scores: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The bool mask of ``scores`` (any shape and strides) under ``rule``; contiguous."""
    s = scores.detach().contiguous()
    if isinstance(rule, Frozen):
        return s.bool()
    if isinstance(rule, Threshold):
        cutoff = _logit(rule.cutoff) if rule.of == "sigmoid" else rule.cutoff
        value = _mapped(s, rule.of).double()
        return value >= cutoff if rule.inclusive else value > cutoff
    assert isinstance(rule, TopK), rule
    key = _mapped(s, rule.of).flatten().double()
    key = torch.where(key.isnan(), -math.inf, key)
    # Only a raw -inf shares its key with NaN: a second, stable sort puts the numbers first.
    order = torch.sort(-key, stable=True).indices
    is_nan = s.flatten()[order].isnan()
    order = order[torch.sort(is_nan.to(torch.uint8), stable=True).indices]
    keep = s.numel() - int((1 - rule.keep) * s.numel())
    out = torch.zeros(s.numel(), dtype=torch.bool, device=s.device)
    out[order[:keep]] = True
    return out.view(s.shape)


def _mapped(s: torch.Tensor, of: str) -> torch.Tensor:
    # A sigmoid is compared before it is applied (s > logit(cutoff)): in float32 it saturates at 1 from s = 17.
    return s.abs() if of == "abs" else s


def _logit(p: float) -> float:
    if p in (0.0, 1.0):
        return -math.inf if p == 0.0 else math.inf
    return math.log(p) - math.log1p(-p)


class _StraightThrough(torch.autograd.Function):
    """Forward: the mask. Backward: as if it had been map(scores)."""

    @staticmethod
    def forward(ctx, scores, m, of):
        ctx.save_for_backward(scores)
        ctx.of = of
        return m.to(scores.dtype)

    @staticmethod
    def backward(ctx, grad):
        (s,) = ctx.saved_tensors
        if ctx.of == "abs":
            grad = grad * s.sign()
        elif ctx.of == "sigmoid":
            grad = grad * s.sigmoid() * (1 - s.sigmoid())
        return grad, None, None


class _ChooseEdges(torch.autograd.Function):
    """Forward: the kept weights. Backward: the gradient of every edge (Wortsman et al. 2019)."""

    @staticmethod
    def forward(ctx, weight, m):
        return weight * m

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def effective_weight(weight: torch.Tensor, scores: torch.Tensor | None, rule: Rule, m: torch.Tensor) -> torch.Tensor:
    if scores is None:
        return _ChooseEdges.apply(weight, m)
    if isinstance(rule, Frozen):
        return weight * m
    return weight * _StraightThrough.apply(scores, m, rule.of)


class Answer(NamedTuple):
    """Output and gradients, float64; ``dscores`` is None where the rule gives none, ``dbias`` without a bias."""

    y: torch.Tensor
    dx: torch.Tensor
    dweight: torch.Tensor
    dscores: torch.Tensor | None
    dbias: torch.Tensor | None


def answer(
    layer: Callable[..., torch.Tensor],
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None,
    dy: torch.Tensor | None = None,
) -> Answer:
    """Run ``layer(x, effective weight, bias)`` in float64 and pull ``dy`` (default: ones) back through it."""
    m = mask(weight if scores is None else scores, rule)
    x, weight, bias = (None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias))
    learned = scores is not None and not isinstance(rule, Frozen)
    scores = scores.detach().double().requires_grad_() if learned else scores
    y = layer(x, effective_weight(weight, scores, rule, m), bias)
    y.backward(torch.ones_like(y) if dy is None else dy.double())
    return Answer(y.detach(), x.grad, weight.grad, *(None if t is None else t.grad for t in (scores, bias)))


def linear(x, weight, bias):
    return F.linear(x, weight, bias)


def conv2d(stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros") -> Callable[..., torch.Tensor]:
    """A convolution layer for ``answer``; ``padding_mode`` and ``padding="same"`` as in ``torch.nn.Conv2d``."""

    def layer(x, weight, bias):
        if padding_mode == "zeros":
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        ph, pw = (padding, padding) if isinstance(padding, int) else padding
        x = F.pad(x, (pw, pw, ph, ph), mode=padding_mode)
        return F.conv2d(x, weight, bias, stride, 0, dilation, groups)

    return layer


def conv_transpose2d(stride=1, padding=0, output_padding=0, groups=1, dilation=1) -> Callable[..., torch.Tensor]:
    """A transposed convolution layer for ``answer``."""
    return lambda x, weight, bias: F.conv_transpose2d(
        x, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose1d(stride=1, padding=0, output_padding=0, groups=1, dilation=1) -> Callable[..., torch.Tensor]:
    """A one-dimensional transposed convolution layer for ``answer``."""
    return lambda x, weight, bias: F.conv_transpose1d(
        x, weight, bias, stride, padding, output_padding, groups, dilation
    )
