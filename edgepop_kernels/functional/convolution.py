"""Masked convolutions, of two dimensions and of one."""

import torch
import torch.nn.functional as F

from .. import checks
from ..autograd import MaskedConv2d, Spends, apply
from ..backend import prepared as _prepared
from ..checks import Geometry
from ..cut import Selection
from ..rules import Rule
from .calls import (
    autocast,
    by_plan,
    checked_cut,
    is_channels_last,
    key_of,
    masking,
    one_pixel_high,
    prepare,
)


def masked_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    cut: Selection | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes ``F.conv2d(x, weight * mask, bias, ...)`` with the mask of ``scores`` under ``rule`` applied inside.

    x        (N, C, H, W) or (C, H, W), float32, bfloat16 or float16, NCHW, channels_last or any strides
    weight   (O, C / groups, kh, kw), float32 or x's dtype
    padding  zeros on each side, or "valid", or "same" (stride 1)
    returns  (N, O, H', W') in x's dtype, channels_last where x or weight is

    scores, bias, cut, signs, gradients, errors: as in ``masked_linear``.
    """
    cut = checked_cut(cut, weight, rule)
    geometry: Geometry = (stride, padding, dilation, groups)
    if not all(type(g) in (int, tuple, str) for g in geometry):  # True and 1.0 are the key of 1, and no sizes
        cast_x, cast_weight, _ = autocast(x, weight, bias, signs)
        geometry = checks.conv2d(cast_x, cast_weight, scores, rule, bias, *geometry, signs)
    return conv2d_product(x, weight, scores, rule, bias, geometry, cut, signs=signs)


def conv2d_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None,
    geometry: Geometry,
    cut: Selection | None,
    watched: bool | None = None,
    update: Spends | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """``masked_conv2d`` for layers, as ``linear_product``. geometry: stride, padding, dilation, groups."""
    x, weight, bias = autocast(x, weight, bias, signs)
    key = key_of(x, weight, scores, rule, bias, geometry, watched, signs)
    prepared = None if key is None else _prepared.get(key)  # a compiled call would be guarded by the others there
    if prepared is None:
        stride, padding, dilation, groups = checks.conv2d(x, weight, scores, rule, bias, *geometry, signs)
        if x.dim() == 3:
            geometry = (stride, padding, dilation, groups)
            return conv2d_product(x[None], weight, scores, rule, bias, geometry, cut, watched, update, signs)[0]
        if padding == "same":
            x, padding = _pad_same(x, weight, dilation)
            geometry = (stride, padding, dilation, groups)
            return conv2d_product(x, weight, scores, rule, bias, geometry, cut, watched, update, signs)
        prepared = prepare(key, MaskedConv2d, x, weight, scores, rule, signs, (stride, padding, dilation, groups))
    scores, data, bits, of, planes = masking(weight, scores, rule, cut)
    y = by_plan(prepared, x, weight, scores, data, bits, bias, update, planes, signs)
    if y is not None:
        return y
    bits = bits if planes is None else planes[0]
    x_channels_last = prepared.x_channels_last
    y_channels_last = x_channels_last or is_channels_last(weight)
    return apply(
        MaskedConv2d,
        x,
        weight,
        scores,
        data,
        bits,
        of,
        bias,
        prepared.geometry,
        x_channels_last,
        y_channels_last,
        update,
        signs,
        planes,
    )


def masked_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int] = 1,
    padding: int | tuple[int] | str = 0,
    dilation: int | tuple[int] = 1,
    groups: int = 1,
    *,
    cut: Selection | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes ``F.conv1d(x, weight * mask, bias, ...)``: a two-dimensional convolution of images one pixel high.

    x        (N, C, L) or (C, L), float32, bfloat16 or float16, any strides
    weight   (O, C / groups, k), float32 or x's dtype
    padding  zeros on each side, or "valid", or "same" (stride 1)
    returns  (N, O, L') in x's dtype

    scores, bias, cut, signs, gradients, errors: as in ``masked_linear``.
    """
    geometry = checks.conv1d(x, weight, scores, rule, stride, padding, dilation, groups)
    return conv1d_product(x, weight, scores, rule, bias, geometry, checked_cut(cut, weight, rule), signs=signs)


def conv1d_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None,
    geometry: Geometry,
    cut: Selection | None,
    watched: bool | None = None,
    update: None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """``masked_conv1d`` for layers, as ``linear_product``. geometry: that of the images, their height first."""
    x, weight, scores, cut = one_pixel_high(x, weight, scores, rule, cut)
    return conv2d_product(x, weight, scores, rule, bias, geometry, cut, watched, update, signs).squeeze(-2)


def _pad_same(x: torch.Tensor, weight: torch.Tensor, dilation: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, int]]:
    """Pads as torch's "same" does: dilation * (kernel - 1) zeros in all, the odd one behind (below, right)."""
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    before = [t // 2 for t in total]
    odd = [t % 2 for t in total]
    if any(odd):
        x = F.pad(x, (0, odd[1], 0, odd[0]))
    return x, (before[0], before[1])
