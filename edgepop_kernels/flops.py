"""The number of floating-point operations that an op stands for, as torch counts those of dense layers: two a
multiplication.

A mask changes nothing: the dense products are computed.
"""

import math
from typing import Any

import torch


def linear(x: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any) -> int:
    """x (..., in), weight (out, in)."""
    return 2 * math.prod(x.shape[:-1]) * weight.numel()


def linear_dw(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any) -> int:
    """The same number for the gradient of the weight, of its scores, or of both."""
    return linear(x, weight)


def conv2d(x: torch.Tensor, weight: torch.Tensor, *_: Any, out_val: torch.Tensor, **__: Any) -> int:
    """out_val: the output (N, O, H', W'); weight (O, C / groups, kh, kw)."""
    return _conv(out_val, weight)


def conv2d_dx(dy: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any) -> int:
    """dy: the gradient of the output."""
    return _conv(dy, weight)


def conv2d_dw(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any) -> int:
    """dy: the gradient of the output."""
    return _conv(dy, weight)


def _conv(y: torch.Tensor, weight: torch.Tensor) -> int:
    batch, _, *pixels = y.shape
    return 2 * batch * math.prod(pixels) * weight.numel()
