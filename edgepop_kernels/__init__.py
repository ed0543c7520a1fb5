"""edgepop_kernels: masked training without paying for the mask."""

import importlib
import warnings
from typing import TYPE_CHECKING

from . import init, interop, optim
from .attention import join_attention, split_attention
from .backend import backends, use_backend
from .bank import MaskBank
from .conversion import convert, materialize
from .cut import Bits, Cut
from .effective import masked, masked_weight, mixed_weight
from .export import PackedLayer, PackedState, load_packed, model_card, save_onnx, save_packed
from .functional import (
    masked_conv1d,
    masked_conv2d,
    masked_conv3d,
    masked_conv_transpose1d,
    masked_conv_transpose2d,
    masked_linear,
)
from .graphed import graphed_step
from .interop.load import Loaded, load_checkpoint
from .nn import (
    FusedSparseConv,
    FusedSparseConv1d,
    FusedSparseConv3d,
    FusedSparseConvTranspose1d,
    FusedSparseConvTranspose2d,
    FusedSparseLinear,
    FusedSubnetConv,
    FusedSubnetConv1d,
    FusedSubnetConv3d,
    FusedSubnetConvTranspose1d,
    FusedSubnetConvTranspose2d,
    FusedSubnetLinear,
    FusedSupermaskConv,
    FusedSupermaskConv1d,
    FusedSupermaskConv3d,
    FusedSupermaskConvTranspose1d,
    FusedSupermaskConvTranspose2d,
    FusedSupermaskLinear,
    NonAffineBatchNorm,
    SplitAttention,
)
from .overview import LeftDense, Summary, summary
from .packing import pack_weights, unpack_weights
from .phases import train_masks, train_weights
from .rules import NM, Bernoulli, Block, Channels, Frozen, GlobalTopK, Percentile, Rule, Threshold, TopK, kept_count
from .schedules import KeepSchedule, density, set_keep
from .selecting import mask, pack_mask, select, select_all, unpack_mask
from .sharing import share_selection, unshare_selection

if TYPE_CHECKING:
    from . import methods as methods

__version__ = "0.1.0"

__all__ = [
    "NM",
    "Bernoulli",
    "Bits",
    "Block",
    "Channels",
    "Cut",
    "Frozen",
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
    "GlobalTopK",
    "KeepSchedule",
    "LeftDense",
    "Loaded",
    "MaskBank",
    "NonAffineBatchNorm",
    "PackedLayer",
    "PackedState",
    "Percentile",
    "Rule",
    "SplitAttention",
    "Summary",
    "Threshold",
    "TopK",
    "backends",
    "convert",
    "density",
    "graphed_step",
    "init",
    "interop",
    "join_attention",
    "kept_count",
    "load_checkpoint",
    "load_packed",
    "mask",
    "masked",
    "masked_conv1d",
    "masked_conv2d",
    "masked_conv3d",
    "masked_conv_transpose1d",
    "masked_conv_transpose2d",
    "masked_linear",
    "masked_weight",
    "materialize",
    "mixed_weight",
    "model_card",
    "optim",
    "pack_mask",
    "pack_weights",
    "save_onnx",
    "save_packed",
    "select",
    "select_all",
    "set_keep",
    "share_selection",
    "split_attention",
    "summary",
    "train_masks",
    "train_weights",
    "unpack_mask",
    "unpack_weights",
    "unshare_selection",
    "use_backend",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "methods"])


if not TYPE_CHECKING:  # to a checker any name would be there

    def __getattr__(name: str) -> object:
        if name == "methods":  # made of this package's own names, so only once these are there
            return importlib.import_module(f"{__name__}.methods")
        if name == "Draw":
            message = "edgepop_kernels.Draw is called Bits, and is not only drawn"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            return Bits
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
