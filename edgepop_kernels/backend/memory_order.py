"""Scores in the order in which they lie in memory, what that is in logical order, and where they lie in tables that are
made once."""

import functools
from typing import NamedTuple

import torch


def filling(scores: torch.Tensor) -> tuple[torch.Tensor, tuple[tuple[int, ...], tuple[int, ...]]]:
    """(scores, (sizes, index strides)): the scores themselves where they fill their memory in any order of at most
    four dimensions from an aligned address, as contiguous and channels_last parameters do; else a contiguous copy."""
    if scores.data_ptr() % 16 == 0:
        dimensions = _in_memory_order(tuple(scores.shape), scores.stride())
        if dimensions is not None:
            return scores, dimensions
    scores = scores.clone(memory_format=torch.contiguous_format)
    return scores, _in_memory_order(tuple(scores.shape), scores.stride())


class Places(NamedTuple):
    """The places where tensors of four bytes an element begin, in elements from ``base``.

    A copy is elsewhere in every call: its place is no part of what a table is cached by, and is written into the table
    on the device, so that a CUDA graph can hold a call with copies too.
    """

    base: torch.Tensor
    offsets: tuple[int, ...]  # 0 for copies
    copies: dict[int, int]  # offset by index

    @classmethod
    def of(cls, tensors: list[torch.Tensor], copied: list[bool]) -> "Places":
        base = next((t for t, is_copy in zip(tensors, copied, strict=True) if not is_copy), tensors[0])
        offsets = [(t.data_ptr() - base.data_ptr()) // 4 for t in tensors]
        fixed = tuple(0 if is_copy else o for o, is_copy in zip(offsets, copied, strict=True))
        return cls(base, fixed, {i: offsets[i] for i, is_copy in enumerate(copied) if is_copy})

    def within(self, table: torch.Tensor) -> torch.Tensor:
        """The table, whose first column are the ``offsets``, with those of this call's copies."""
        if self.copies:
            table = table.clone()
            for i, offset in self.copies.items():
                table[i, 0].fill_(offset)
        return table


@functools.cache
def _in_memory_order(shape, strides):
    if 0 in shape:  # whose strides say nothing of an order
        return (1, 1, 1, 0), (0, 0, 0, 1)
    logical, dimensions = 1, []
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            dimensions.append((stride, size, logical))
        logical *= size
    merged, filled = [], 1
    for stride, size, index_stride in sorted(dimensions):
        if stride != filled:
            return None
        filled *= size
        if merged and merged[-1][0] * merged[-1][1] == index_stride:
            merged[-1] = (merged[-1][0] * size, merged[-1][1])
        else:
            merged.append((size, index_stride))
    if len(merged) > 4:
        return None
    merged += [(1, 0)] * (4 - len(merged))
    sizes, index_strides = zip(*reversed(merged), strict=True)
    return sizes, index_strides
