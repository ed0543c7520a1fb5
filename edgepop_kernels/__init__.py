"""edgepop_kernels: masked training without paying for the mask."""

from . import init
from .backends import backends, use_backend
from .convert import convert, materialize, share_selection, unshare_selection
from .cut import Cut
from .functional import mask, masked_conv2d, masked_linear, pack_mask, select, select_all, unpack_mask
from .nn import FusedSubnetConv, FusedSubnetLinear
from .rules import Frozen, Threshold, TopK, kept_count

__version__ = "0.1.0"

__all__ = [
    "Cut",
    "Frozen",
    "FusedSubnetConv",
    "FusedSubnetLinear",
    "Threshold",
    "TopK",
    "backends",
    "convert",
    "init",
    "kept_count",
    "mask",
    "masked_conv2d",
    "masked_linear",
    "materialize",
    "pack_mask",
    "select",
    "select_all",
    "share_selection",
    "unpack_mask",
    "unshare_selection",
    "use_backend",
]
