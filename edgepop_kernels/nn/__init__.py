"""Masked layers: torch's own layers with a mask that follows from scores.

Each is a subclass of the layer it replaces and keeps its constructor, attributes and parameter names. The mask is a
consequence of the scores, found in every forward; it exists as a tensor only in ``mask()``. What torch's layers are to
us is a table (``kinds``), what trains in them the other axis (``subnet``, ``supermask``, ``sparse``): a class is where
they meet.
"""

from .attention import SplitAttention
from .kinds import KINDS
from .masked import CLASSES, MaskedLayer
from .norm import NonAffineBatchNorm
from .sparse import (
    FusedSparseConv,
    FusedSparseConv1d,
    FusedSparseConv3d,
    FusedSparseConvTranspose1d,
    FusedSparseConvTranspose2d,
    FusedSparseLinear,
)
from .subnet import (
    FusedSubnetConv,
    FusedSubnetConv1d,
    FusedSubnetConv3d,
    FusedSubnetConvTranspose1d,
    FusedSubnetConvTranspose2d,
    FusedSubnetLinear,
)
from .supermask import (
    FusedSupermaskConv,
    FusedSupermaskConv1d,
    FusedSupermaskConv3d,
    FusedSupermaskConvTranspose1d,
    FusedSupermaskConvTranspose2d,
    FusedSupermaskLinear,
)

__all__ = [
    "CLASSES",
    "KINDS",
    "FusedSparseConv",
    "FusedSparseConv1d",
    "FusedSparseConv3d",
    "FusedSparseConvTranspose1d",
    "FusedSparseConvTranspose2d",
    "FusedSparseLinear",
    "FusedSubnetConv",
    "FusedSubnetConv1d",
    "FusedSubnetConv3d",
    "FusedSubnetConvTranspose1d",
    "FusedSubnetConvTranspose2d",
    "FusedSubnetLinear",
    "FusedSupermaskConv",
    "FusedSupermaskConv1d",
    "FusedSupermaskConv3d",
    "FusedSupermaskConvTranspose1d",
    "FusedSupermaskConvTranspose2d",
    "FusedSupermaskLinear",
    "MaskedLayer",
    "NonAffineBatchNorm",
    "SplitAttention",
]
