"""Masked transposed products: convolutions of two dimensions and of one, and matrices that stand (in, out)."""

import torch
import torch.nn.functional as F

from .. import checks
from ..autograd import MaskedConvTranspose2d, MaskedTransposedLinear, Spends, apply
from ..checks import TransposedGeometry
from ..cut import Selection
from ..rules import Rule
from .calls import autocast, checked_cut, is_channels_last, masking, one_pixel_high


def masked_conv_transpose2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    *,
    cut: Selection | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes ``F.conv_transpose2d(x, weight * mask, bias, ...)`` with the mask applied inside: a masked convolution's
    gradient to its input, by the same kernels.

    x               (N, C, H, W) or (C, H, W), float32, bfloat16 or float16, NCHW, channels_last or any strides
    weight          (C, O / groups, kh, kw), float32 or x's dtype
    bias            (O,) or None; added to sums that are rounded to x's dtype
    output_padding  rows and columns more at the end, fewer than stride or dilation
    returns         (N, O, H', W') in x's dtype, channels_last where x or weight is

    scores, cut, signs, gradients, errors: as in ``masked_linear``.
    """
    geometry: TransposedGeometry = (stride, padding, output_padding, dilation, groups)
    return conv_transpose2d_product(
        x, weight, scores, rule, bias, geometry, checked_cut(cut, weight, rule), signs=signs
    )


def conv_transpose2d_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None,
    geometry: TransposedGeometry,
    cut: Selection | None,
    watched: bool | None = None,
    update: Spends | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """``masked_conv_transpose2d`` for layers, as ``linear_product``. geometry: stride, padding, output_padding,
    dilation, groups."""
    x, weight, bias = autocast(x, weight, bias, signs)
    stride, padding, extra, dilation, groups = checks.conv_transpose2d(x, weight, scores, rule, bias, *geometry, signs)
    if x.dim() == 3:
        return conv_transpose2d_product(x[None], weight, scores, rule, bias, geometry, cut, watched, update, signs)[0]
    y_size = (
        len(x),
        weight.shape[1] * groups,
        *checks.transposed_size(x.shape[2:], weight.shape[2:], stride, padding, extra, dilation),
    )
    # The convolution of an output with a stride or more of output_padding has rows beyond those of x: of zeros, here.
    below, right = (e // s for e, s in zip(extra, stride, strict=True))
    if below or right:
        x = F.pad(x, (0, right, 0, below))
    scores, data, bits, of, planes = masking(weight, scores, rule, cut)
    x_channels_last = is_channels_last(x)
    return apply(
        MaskedConvTranspose2d,
        x,
        weight,
        scores,
        data,
        bits if planes is None else planes[0],
        of,
        bias,
        y_size,
        (stride, padding, dilation, groups),
        x_channels_last,
        x_channels_last or is_channels_last(weight),
        update,
        signs,
        planes,
    )


def masked_conv_transpose1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int] = 1,
    padding: int | tuple[int] = 0,
    output_padding: int | tuple[int] = 0,
    groups: int = 1,
    dilation: int | tuple[int] = 1,
    *,
    cut: Selection | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes ``F.conv_transpose1d(x, weight * mask, bias, ...)``: ``masked_conv_transpose2d`` of images one pixel
    high.

    x        (N, C, L) or (C, L), float32, bfloat16 or float16, any strides
    weight   (C, O / groups, k), float32 or x's dtype
    returns  (N, O, L') in x's dtype

    The other arguments, gradients, errors: as in ``masked_conv_transpose2d``.
    """
    geometry = checks.conv_transpose1d(x, weight, scores, rule, stride, padding, output_padding, dilation, groups)
    return conv_transpose1d_product(
        x, weight, scores, rule, bias, geometry, checked_cut(cut, weight, rule), signs=signs
    )


def conv_transpose1d_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None,
    geometry: TransposedGeometry,
    cut: Selection | None,
    watched: bool | None = None,
    update: None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """``masked_conv_transpose1d`` for layers, as ``linear_product``. geometry: that of the images, their height
    first."""
    x, weight, scores = one_pixel_high(x, weight, scores)
    return conv_transpose2d_product(x, weight, scores, rule, bias, geometry, cut, watched, update, signs).squeeze(-2)


def transposed_linear_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None,
    geometry: object,
    cut: Selection | None,
    watched: bool | None = None,
    update: Spends | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x @ (weight * mask) + bias`` for layers, of a weight (in_features, out_features); as ``linear_product``."""
    x, weight, bias = autocast(x, weight, bias, signs)
    checks.transposed_linear(x, weight, scores, rule, bias, signs)
    scores, data, bits, of, planes = masking(weight, scores, rule, cut)
    bits = bits if planes is None else planes[0]
    return apply(MaskedTransposedLinear, x, weight, scores, data, bits, of, bias, update, signs, planes)
