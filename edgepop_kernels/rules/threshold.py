"""The rule of a fixed threshold, and where exactly it lies among the float32 numbers."""

import math
import struct
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from ..cut import Cut
from .rule import Ops, Rule, checked_of

# Ordered keys (``reference.ordered_key``): below all numbers; and where -0.0 would be, which ties with 0.0.
_KEY_OF_NAN, _KEY_OF_NO_NUMBER = 0, 0x7FFFFFFF


@dataclass(frozen=True, repr=False)
class Threshold(Rule):
    """A rule that keeps the weights with ``of(score) > cutoff``, strictly; NaN is never kept.

    of: "sigmoid" (supermasks; ``cutoff`` in [0, 1], compared as s > logit(cutoff) in exact arithmetic), "abs" or "raw".
    inclusive: scores at the cutoff are kept too, ``of(score) >= cutoff``, zeros of either sign alike (SupSup's fast
    masks, of scores of at least 0).

    >>> ek.mask(torch.tensor([-1.0, 0.0, 1.0]), ek.Threshold(0.5))
    tensor([False, False,  True])
    """

    cutoff: float = 0.5
    of: Literal["sigmoid", "abs", "raw"] = "sigmoid"
    inclusive: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.cutoff, bool) or not isinstance(self.cutoff, (int, float)):
            raise TypeError(f"cutoff: expected a float, got {type(self.cutoff).__name__}")
        checked_of(self.of, ("sigmoid", "abs", "raw"))
        if not isinstance(self.inclusive, bool):
            raise TypeError(f"inclusive: expected a bool, got {type(self.inclusive).__name__}")
        if math.isnan(self.cutoff) or (self.of == "sigmoid" and not 0 <= self.cutoff <= 1):
            allowed = "a number in [0, 1]" if self.of == "sigmoid" else "a number"
            raise ValueError(f"cutoff: expected {allowed}, got {self.cutoff}")
        object.__setattr__(self, "cutoff", float(self.cutoff))
        _ = self._largest_dropped_key  # found now: torch.compile cannot follow how, and takes it as a number

    def __repr__(self) -> str:
        return f"Threshold(cutoff={self.cutoff}, of={self.of!r}{', inclusive=True' if self.inclusive else ''})"

    def select(self, scores: torch.Tensor, ops: Ops | None = None) -> Cut:
        """The cut at the largest score that is not kept, with no tie of it kept: a constant, whatever the scores."""
        data = torch.full((2,), -1, dtype=torch.int64, device=scores.device)
        data[:1].fill_(self._largest_dropped_key)
        return Cut(data, self.of)

    def _bound(self) -> float:
        return _logit(self.cutoff) if self.of == "sigmoid" else self.cutoff

    @cached_property
    def _largest_dropped_key(self) -> int:
        bound = self._bound()
        if self.of == "abs" and (bound < 0 or (self.inclusive and bound == 0)):
            return _KEY_OF_NAN
        if not self.inclusive:
            return self._key(_float32_at_most(bound))
        if bound == -math.inf:
            return _KEY_OF_NAN
        # Counted in keys: a processor that is told to flush denormals has no number between 0 and its neighbour.
        key = self._key(-_float32_at_most(-bound)) - 1
        return key - 1 if key == _KEY_OF_NO_NUMBER and self.of != "abs" else key

    def _key(self, value: float) -> int:
        """The ordered key (``reference.ordered_key``) of |s| or of s of that ``value``."""
        bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
        magnitude = bits & 0x7FFFFFFF
        if self.of == "abs":
            return magnitude + 1
        return 0xFFFFFFFF - bits if bits >= 0x80000000 and magnitude else magnitude + 0x80000000


def _logit(p: float) -> float:
    if p == 0:
        return -math.inf
    return math.inf if p == 1 else math.log(p) - math.log1p(-p)


def _float32_at_most(value: float) -> float:
    """The largest float32 not above ``value``."""
    if math.isinf(value):
        return value
    try:
        bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    except OverflowError:
        return _LARGEST if value > 0 else -math.inf
    rounded = _float32(bits)
    if rounded > value:  # then the number below, one bit pattern nearer to zero, or further from it
        bits = 0x80000001 if rounded == 0 else bits - 1 if rounded > 0 else bits + 1
    return _float32(bits)


def _float32(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return value


_LARGEST = _float32(0x7F7FFFFF)
