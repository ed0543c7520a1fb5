"""Cut and Draw: what decides a layer's mask for one forward."""

import math
import struct
from dataclasses import dataclass
from typing import ClassVar

import torch

from .rules import Threshold


@dataclass(frozen=True)
class Cut:
    """Where a layer's mask ends: kept are the scores above ``threshold``, and those equal to it up to ``index``.

    data: int64 tensor [2] on the scores' device, (ordered key of the threshold, flat logical index of the last kept
    tie); it never visits the host unless read there. of: the function of the scores that was ranked.
    """

    data: torch.Tensor
    of: str

    @property
    def threshold(self) -> torch.Tensor:
        """The smallest kept |s| (of="abs") or s, NaN where a NaN is kept: float32 scalar on the scores' device."""
        key = self.data[0]
        if self.of == "abs":
            bits = key - 1
        else:
            bits = torch.where(key >= 0x80000000, key - 0x80000000, 0xFFFFFFFF - key)
        bits = torch.where(key == 0, 0x7FC00000, bits)
        return torch.where(bits >= 0x80000000, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)

    @property
    def index(self) -> torch.Tensor:
        """int64 scalar on the scores' device."""
        return self.data[1]

    def with_ties(self, index: torch.Tensor | int) -> "Cut":
        """The cut of the same threshold that keeps the scores equal to it up to ``index``."""
        return Cut(torch.stack([self.data[0], torch.zeros_like(self.data[1]) + index]), self.of)


@dataclass(frozen=True)
class Draw:
    """A mask drawn by a Bernoulli rule. bits: the kept weights, packed as ``pack_mask`` packs them."""

    bits: torch.Tensor
    of: ClassVar[str] = "sigmoid"


Selection = Cut | Draw


def constant_cut(rule: Threshold, device: torch.device) -> Cut:
    """The cut of a threshold rule, which needs no selection: the largest score not kept, and no tie of it kept."""
    key = _largest_dropped_key(rule)
    data = torch.full((2,), -1, dtype=torch.int64, device=device)
    data[:1].fill_(key)
    return Cut(data, rule.of)


def largest_dropped(rule: Threshold) -> float:
    """The largest float32 that is not above the cutoff, on the scale of |s| (of="abs") or of s."""
    return _float32_at_most(_bound(rule))


def _bound(rule):
    return _logit(rule.cutoff) if rule.of == "sigmoid" else rule.cutoff


def _largest_dropped_key(rule):
    bound, value = _bound(rule), largest_dropped(rule)
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    magnitude = bits & 0x7FFFFFFF
    if rule.of == "abs":
        return 0 if bound < 0 else magnitude + 1
    return 0xFFFFFFFF - bits if bits >= 0x80000000 and magnitude else magnitude + 0x80000000


def _logit(p):
    if p == 0:
        return -math.inf
    return math.inf if p == 1 else math.log(p) - math.log1p(-p)


def _float32_at_most(value):
    """The largest float32 not above ``value``."""
    if math.isinf(value):
        return value
    rounded = torch.tensor(value, dtype=torch.float64).to(torch.float32)
    if rounded.item() > value:
        rounded = torch.nextafter(rounded, torch.tensor(-math.inf))
    return rounded.item()
