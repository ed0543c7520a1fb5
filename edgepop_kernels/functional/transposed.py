"""Masked transposed products: convolutions of two dimensions and of one, and matrices that stand (in, out)."""

from typing import Any

import torch
import torch.nn.functional as F

from .. import checks
from ..autograd import MaskedConvTranspose2d, MaskedTransposedLinear, Prepared, Spends, apply
from ..backend import planned
from ..backend import prepared as _prepared
from ..checks import TransposedGeometry
from ..cut import Bits, Selection
from ..rules import Rule
from .calls import autocast, by_plan, checked_cut, is_channels_last, kept, key_of, masking, one_pixel_high


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
    cut = checked_cut(cut, weight, rule)
    geometry: TransposedGeometry = (stride, padding, output_padding, dilation, groups)
    if not all(type(g) in (int, tuple) for g in geometry):  # True and 1.0 are the key of 1, and no sizes
        cast_x, cast_weight, _ = autocast(x, weight, bias, signs)
        geometry = checks.conv_transpose2d(cast_x, cast_weight, scores, rule, bias, *geometry, signs)
    return conv_transpose2d_product(x, weight, scores, rule, bias, geometry, cut, signs=signs)


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
    key = key_of(x, weight, scores, rule, bias, geometry, watched, signs)
    prepared = None if key is None else _prepared.get(key)  # a compiled call would be guarded by the others there
    if prepared is None:
        stride, padding, extra, dilation, groups = checks.conv_transpose2d(
            x, weight, scores, rule, bias, *geometry, signs
        )
        if x.dim() == 3:
            return conv_transpose2d_product(x[None], weight, scores, rule, bias, geometry, cut, watched, update, signs)[
                0
            ]
        # The convolution of an output with a stride or more of output_padding has rows beyond those of x: of zeros.
        below, right = (e // s for e, s in zip(extra, stride, strict=True))
        if below or right:
            rest = extra[0] - below * stride[0], extra[1] - right * stride[1]
            x, geometry = F.pad(x, (0, right, 0, below)), (stride, padding, rest, dilation, groups)
            return conv_transpose2d_product(x, weight, scores, rule, bias, geometry, cut, watched, update, signs)
        pixels = checks.transposed_size(x.shape[2:], weight.shape[2:], stride, padding, extra, dilation)
        y_size = torch.Size((len(x), weight.shape[1] * groups, *pixels))
        exchanged = stride, padding, dilation, groups
        prepared = _prepare(key, MaskedConvTranspose2d, x, y_size, weight, scores, rule, exchanged)
    scores, data, bits, of, planes = masking(weight, scores, rule, cut)
    y = by_plan(prepared, x, weight, scores, data, bits, bias, update, planes, signs)
    if y is not None:
        return y
    return apply(
        MaskedConvTranspose2d,
        x,
        weight,
        scores,
        data,
        bits if planes is None else planes[0],
        of,
        bias,
        prepared.x_size,
        prepared.geometry,
        prepared.x_channels_last,
        prepared.x_channels_last or is_channels_last(weight),
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
    x, weight, scores, cut = one_pixel_high(x, weight, scores, rule, cut)
    return conv_transpose2d_product(x, weight, scores, rule, bias, geometry, cut, watched, update, signs).squeeze(-2)


def transposed_linear_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None,
    geometry: tuple[()],
    cut: Selection | None,
    watched: bool | None = None,
    update: Spends | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x @ (weight * mask) + bias`` for layers, of a weight (in_features, out_features); as ``linear_product``, with a
    geometry that is not that one's None."""
    x, weight, bias = autocast(x, weight, bias, signs)
    key = key_of(x, weight, scores, rule, bias, geometry, watched, signs)
    prepared = None if key is None else _prepared.get(key)  # a compiled call would be guarded by the others there
    if prepared is None:
        checks.transposed_linear(x, weight, scores, rule, bias, signs)
        y_size = torch.Size((*x.shape[:-1], weight.shape[1]))
        prepared = _prepare(key, MaskedTransposedLinear, x, y_size, weight, scores, rule)
    scores, data, bits, of, planes = masking(weight, scores, rule, cut)
    y = by_plan(prepared, x, weight, scores, data, bits, bias, update, planes, signs)
    if y is not None:
        return y
    bits = bits if planes is None else planes[0]
    return apply(MaskedTransposedLinear, x, weight, scores, data, bits, of, bias, update, signs, planes)


class _Exchanged:
    """A plan with the ways there and back exchanged: ``forward`` is its ``dx``, and ``dx`` its forward."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan

    def forward(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        ranked: torch.Tensor,
        cut: torch.Tensor | None,
        bias: torch.Tensor | None,
        y: None,
        planes: torch.Tensor | None,
        signs: torch.Tensor | None,
    ) -> torch.Tensor:
        made: torch.Tensor = self.plan.dx(x, weight, ranked, cut, None, planes, signs)
        if bias is None:
            return made
        return made.add_(bias.view(-1, 1, 1) if weight.dim() == 4 else bias)

    def dx(
        self,
        dy: torch.Tensor,
        weight: torch.Tensor,
        ranked: torch.Tensor,
        cut: torch.Tensor | None,
        dx: None,
        planes: torch.Tensor | None,
        signs: torch.Tensor | None,
    ) -> torch.Tensor:
        made: torch.Tensor = self.plan.forward(dy, weight, ranked, cut, None, None, planes, signs)
        return made

    def dw(self, dy: torch.Tensor, x: torch.Tensor, *how: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        ds, dw = self.plan.dw(x, dy, *how)
        return ds, dw


def _prepare(
    key: tuple[Any, ...] | None,
    function: type[MaskedTransposedLinear] | type[MaskedConvTranspose2d],
    x: torch.Tensor,
    y_size: torch.Size,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    geometry: tuple[Any, ...] = (),
) -> Prepared:
    """Prepares a call whose arguments are checked: by the plan of the product whose x is this one's y."""
    of, x_channels_last = "bits" if rule.fixed else rule.of, bool(geometry) and is_channels_last(x)
    plan = dy_stride = None
    if key is not None and rule.selects is not Bits:
        last = bool(geometry) and (x_channels_last or is_channels_last(weight))
        memory_format = torch.channels_last if last else torch.contiguous_format
        y = torch.empty(y_size, dtype=x.dtype, device=x.device, memory_format=memory_format)
        formats = dict(x_channels_last=last, y_channels_last=x_channels_last) if geometry else {}
        of_ranked = weight if scores is None else scores
        found = planned(function.op, y, weight, of_ranked, of, *geometry, **formats)
        if found is not None:
            plan, dy_stride = _Exchanged(found), y.stride()
    return kept(key, Prepared(plan, of, function, geometry, y_size, x_channels_last, dy_stride))
