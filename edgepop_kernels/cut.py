"""Cut: what selection returns for a layer."""

import math
import struct
from dataclasses import dataclass

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


def constant_cut(rule: Threshold, device: torch.device) -> Cut:
    """The cut of a threshold rule, which needs no selection: the largest score not kept, and no tie of it kept."""
    key = _largest_dropped_key(rule)
    data = torch.full((2,), -1, dtype=torch.int64, device=device)
    data[:1].fill_(key)
    return Cut(data, rule.of)


def _largest_dropped_key(rule):
    if rule.of == "sigmoid":
        bound = _logit(rule.cutoff)
    else:
        bound = rule.cutoff
    value = _float32_at_most(bound)
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
