"""The rule of a mask that stays."""

from dataclasses import dataclass
from typing import ClassVar

from .rule import Rule


@dataclass(frozen=True)
class Frozen(Rule):
    """A rule that keeps a fixed set of weights. In the scores' place stands the mask: a bool tensor of the weight's
    shape, or the packed bits of ``edgepop_kernels.pack_mask``. No gradient goes to it; a trained weight gets it only
    where kept."""

    of: ClassVar[str] = "bits"
    fixed: ClassVar[bool] = True
