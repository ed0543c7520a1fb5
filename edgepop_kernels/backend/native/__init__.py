"""The C++ kernels of csrc/ on CPU tensors: takes addresses and strides, calls edgepop_kernels._native.

Images, matrices and weights are not copied: the kernels read any strides. A linear layer is the 1x1 convolution whose
image is one row of pixels.
"""

from .compiled import misset, not_loaded, refuses, unavailable
from .mixtures import shares_of, superposed
from .plan import plan_conv2d, plan_linear
from .products import (
    masked_conv2d,
    masked_conv2d_dw,
    masked_conv2d_dx,
    masked_conv2d_update,
    masked_linear,
    masked_linear_dw,
    masked_linear_dx,
    masked_linear_update,
)
from .scores import block_bits, block_sums, draw, fingerprint, group_bits, mask_bits, select, select_planes, step

__all__ = [
    "block_bits",
    "block_sums",
    "draw",
    "fingerprint",
    "group_bits",
    "mask_bits",
    "masked_conv2d",
    "masked_conv2d_dw",
    "masked_conv2d_dx",
    "masked_conv2d_update",
    "masked_linear",
    "masked_linear_dw",
    "masked_linear_dx",
    "masked_linear_update",
    "misset",
    "not_loaded",
    "plan_conv2d",
    "plan_linear",
    "refuses",
    "select",
    "select_planes",
    "shares_of",
    "step",
    "superposed",
    "unavailable",
]
