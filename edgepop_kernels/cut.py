"""Cut and Bits: what decides a layer's mask for one forward."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Cut:
    """The end of a layer's mask: kept are the scores above ``threshold``, and those equal to it up to ``index``.

    data: int64 tensor [2] on the scores' device, (ordered key of the threshold, flat logical index of the last kept
    tie); it never visits the host unless read there. of: the function of the scores that was ranked. planes: uint8
    [1 or 2, bytes], where the pass that found the cut wrote them too: the mask, and of "abs" the scores' sign bits,
    each packed as ``pack_mask`` packs them, with a 1 in the last byte of the signs where a score is zero or NaN.
    """

    data: torch.Tensor
    of: str
    planes: torch.Tensor | None = None

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
        """The flat logical index of the last kept tie: int64 scalar on the scores' device."""
        return self.data[1]

    def with_ties(self, index: torch.Tensor | int) -> "Cut":
        """The cut of the same threshold that keeps the scores equal to it up to ``index``."""
        return Cut(torch.stack([self.data[0], torch.zeros_like(self.data[1]) + index]), self.of)


@dataclass(frozen=True)
class Bits:
    """A packed mask, where no cut of the scores stands for it: drawn, or of a structure.

    bits: the kept weights, packed as ``pack_mask`` packs them. of: the function of the scores that is differentiated.
    """

    bits: torch.Tensor
    of: str = "sigmoid"


Selection = Cut | Bits
