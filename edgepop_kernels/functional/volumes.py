"""Masked convolutions of three dimensions, as convolutions of images."""

import torch
import torch.nn.functional as F

from .. import checks
from ..checks import Geometry3d
from ..cut import Selection
from ..rules import Rule
from .calls import autocast, by_its_shape, checked_cut
from .convolution import conv2d_product


def masked_conv3d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] | str = 0,
    dilation: int | tuple[int, int, int] = 1,
    groups: int = 1,
    *,
    cut: Selection | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes ``F.conv3d(x, weight * mask, bias, ...)``: a two-dimensional convolution of images with kd times the
    channels, one image for each depth of the output. These images are made, and kept for the backward.

    x        (N, C, D, H, W) or (C, D, H, W), float32, bfloat16 or float16, any strides
    weight   (O, C / groups, kd, kh, kw), float32 or x's dtype
    padding  zeros on each side, or "valid", or "same" (stride 1)
    returns  (N, O, D', H', W') in x's dtype, channels_last_3d where x is

    scores, bias, cut, signs, gradients, errors: as in ``masked_linear``.
    """
    geometry: Geometry3d = (stride, padding, dilation, groups)
    return conv3d_product(x, weight, scores, rule, bias, geometry, checked_cut(cut, weight, rule), signs=signs)


def conv3d_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None,
    geometry: Geometry3d,
    cut: Selection | None,
    watched: bool | None = None,
    update: None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """``masked_conv3d`` for layers, as ``linear_product``. geometry: stride, padding, dilation, groups."""
    stride, padding, dilation, groups = checks.conv3d(x, weight, scores, rule, *geometry)
    if x.dim() == 4:
        return conv3d_product(x[None], weight, scores, rule, bias, geometry, cut, watched, update, signs)[0]
    cut = by_its_shape(weight, scores, rule, cut)
    x, weight, bias = autocast(x, weight, bias, signs)
    batch, taps = len(x), weight.shape[2]
    depth = _around(padding, dilation[0] * (taps - 1))
    last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
    images = _windows(F.pad(x, (0, 0, 0, 0, *depth)) if any(depth) else x, taps, stride[0], dilation[0], last)
    sides = padding if isinstance(padding, str) else padding[1:]
    # A filter's channels, and of each the taps along the depth: the order of the weight, of its scores and their bits.
    weight = weight.flatten(1, 2)
    if scores is not None and scores.dim() == 5:  # packed bits have no shape
        scores = scores.flatten(1, 2)
    plane = (stride[1:], sides, dilation[1:], groups)
    y = conv2d_product(images.flatten(0, 1), weight, scores, rule, bias, plane, cut, watched, update, signs)
    y = y.view(batch, images.shape[1], *y.shape[1:]).transpose(1, 2)
    return y if last else y.contiguous()


def _around(padding: tuple[int, int, int] | str, reach: int) -> tuple[int, int]:
    """Zeros before and behind along the depth; torch's "same" has the odd one behind."""
    if isinstance(padding, str):
        return reach // 2, reach - reach // 2
    return padding[0], padding[0]


def _windows(x: torch.Tensor, taps: int, stride: int, dilation: int, last: bool) -> torch.Tensor:
    """(N, D', C * taps, H, W): for each depth of the output what the taps along it read, each channel's side by side; a
    copy. last: images whose channels lie side by side."""
    end = x.shape[2] - dilation * (taps - 1)
    x = x.permute(0, 2, 3, 4, 1) if last else x.transpose(1, 2)
    parts = [x[:, t * dilation : t * dilation + end : stride] for t in range(taps)]
    if last:
        return torch.stack(parts, dim=5).flatten(4).permute(0, 1, 4, 2, 3)
    return torch.stack(parts, dim=3).flatten(2, 3)
