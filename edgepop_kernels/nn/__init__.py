"""Masked layers: torch's own layers with a mask that follows from scores.

Each is a subclass of the layer it replaces and keeps its constructor, attributes and parameter names. The mask is a
consequence of the scores, found in every forward; it exists as a tensor only in ``mask()``.
"""

from .masked import MaskedLayer
from .norm import NonAffineBatchNorm
from .products import MaskedConv2d, MaskedLinear
from .sparse import FusedSparseConv, FusedSparseLinear
from .subnet import FusedSubnetConv, FusedSubnetLinear
from .supermask import FusedSupermaskConv, FusedSupermaskLinear

__all__ = [
    "FusedSparseConv",
    "FusedSparseLinear",
    "FusedSubnetConv",
    "FusedSubnetLinear",
    "FusedSupermaskConv",
    "FusedSupermaskLinear",
    "MaskedConv2d",
    "MaskedLayer",
    "MaskedLinear",
    "NonAffineBatchNorm",
]
