"""A mask packed to 1 bit per weight: its size, and how many weights it keeps. ``reference.pack_mask`` is the layout."""

import torch


def packed_bytes(numel: int) -> int:
    """Bytes of the packed mask of ``numel`` weights: whole words of 64, and one more that kernels may read."""
    return (numel + 63) // 64 * 8 + 8


def popcount(bits: torch.Tensor) -> torch.Tensor:
    """The number of weights that a packed mask keeps, int64 scalar."""
    b = bits - ((bits >> 1) & 0x55)
    b = (b & 0x33) + ((b >> 2) & 0x33)
    return ((b + (b >> 4)) & 0x0F).sum()


def full_bits(numel: int, device: torch.device) -> torch.Tensor:
    """The packed mask that keeps all of ``numel`` weights."""
    whole, rest = divmod(numel, 8)
    bits = torch.zeros(packed_bytes(numel), dtype=torch.uint8, device=device)
    bits[:whole] = 255
    bits[whole] = (1 << rest) - 1
    return bits
