"""Scores in the order in which they lie in memory, and what that is in logical order."""

import functools

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


@functools.cache
def _in_memory_order(shape, strides):
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
