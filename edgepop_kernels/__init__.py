"""edgepop_kernels: masked training without paying for the mask."""

from .backends import backends, use_backend
from .cut import Cut
from .functional import mask, masked_conv2d, masked_linear, pack_mask, select, select_all, unpack_mask
from .rules import Frozen, Threshold, TopK, kept_count

__version__ = "0.1.0"

__all__ = [
    "Cut",
    "Frozen",
    "Threshold",
    "TopK",
    "backends",
    "kept_count",
    "mask",
    "masked_conv2d",
    "masked_linear",
    "pack_mask",
    "select",
    "select_all",
    "unpack_mask",
    "use_backend",
]
