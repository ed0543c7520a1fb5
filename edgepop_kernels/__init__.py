"""edgepop_kernels: masked training without paying for the mask."""

from . import init, optim
from .backends import backends, use_backend
from .convert import convert, materialize
from .cut import Cut, Draw
from .functional import mask, masked_conv2d, masked_linear, pack_mask, select, select_all, unpack_mask
from .graphed import graphed_step
from .nn import (
    FusedSparseConv,
    FusedSparseLinear,
    FusedSubnetConv,
    FusedSubnetLinear,
    FusedSupermaskConv,
    FusedSupermaskLinear,
    NonAffineBatchNorm,
)
from .phases import train_masks, train_weights
from .rules import Bernoulli, Frozen, GlobalTopK, Percentile, Threshold, TopK, kept_count
from .sharing import share_selection, unshare_selection

__version__ = "0.1.0"

__all__ = [
    "Bernoulli",
    "Cut",
    "Draw",
    "Frozen",
    "FusedSparseConv",
    "FusedSparseLinear",
    "FusedSubnetConv",
    "FusedSubnetLinear",
    "FusedSupermaskConv",
    "FusedSupermaskLinear",
    "GlobalTopK",
    "NonAffineBatchNorm",
    "Percentile",
    "Threshold",
    "TopK",
    "backends",
    "convert",
    "graphed_step",
    "init",
    "kept_count",
    "mask",
    "masked_conv2d",
    "masked_linear",
    "materialize",
    "optim",
    "pack_mask",
    "select",
    "select_all",
    "share_selection",
    "train_masks",
    "train_weights",
    "unpack_mask",
    "unshare_selection",
    "use_backend",
]
