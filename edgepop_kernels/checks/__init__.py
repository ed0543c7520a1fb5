"""Checks of what the user functions accept. Each check names the argument, what it got, and what is allowed."""

from .geometry import Geometry, Geometry3d, TransposedGeometry, transposed_size
from .products import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, linear, transposed_linear
from .selections import cut, selected, selection, selections
from .values import mask_tensor, packed_bits, packed_shape, rule, score_tensor, tensor
from .weights import masked_weight, mixed_weight, mixture

__all__ = [
    "Geometry",
    "Geometry3d",
    "TransposedGeometry",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "cut",
    "linear",
    "mask_tensor",
    "masked_weight",
    "mixed_weight",
    "mixture",
    "packed_bits",
    "packed_shape",
    "rule",
    "score_tensor",
    "selected",
    "selection",
    "selections",
    "tensor",
    "transposed_linear",
    "transposed_size",
]
