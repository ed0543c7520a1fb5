"""Launches the sums of blocks, a kernel for each dimension that blocks have, and the packed mask of those kept."""

import math

import torch
import triton.language as tl

from .kernels.blocks import block_bits_kernel, fold_kernel
from .launch import launch

_ELEMENTS = 4096  # of a tile of terms: 16 registers of a thread
_WARPS = 8
_WORDS = 16  # of packed bits that a program writes: 1024 weights


def block_sums(scores, block, of):
    counts = [n // size for n, size in zip(scores.shape, block, strict=True)]
    sums, last = scores.contiguous(), len(block) - 1
    read = False  # by the first kernel, which takes magnitudes: one runs even where a block is one score
    for d, size in enumerate(block):
        if size > 1 or (d == last and not read):
            magnitudes = of == "abs" and not read
            sums = _folded(sums, math.prod(counts[: d + 1]), size, math.prod(scores.shape[d + 1 :]), magnitudes)
            read = True
    return sums.view(counts)


def _folded(x, outer, terms, inner, magnitudes):
    """The sums along the dimension in the middle of x[outer, terms, inner], by as many kernels as it needs."""
    while True:
        # Halves down to the last _ELEMENTS add every _ELEMENTS-th term, which are sums of their own.
        apart = _ELEMENTS if terms > _ELEMENTS else 1
        of_each = -(-terms // apart)
        sums = torch.empty(outer * apart * inner, dtype=torch.float32, device=x.device)
        levels = (of_each - 1).bit_length()
        tile = max(_ELEMENTS >> levels, 1)
        launch(
            fold_kernel,
            (-(-sums.numel() // tile),),
            x,
            (x, sums, of_each, apart * inner, terms * inner, sums.numel()),
            ABS=magnitudes,
            TERMS=1 << levels,
            LEVELS=levels,
            TILE=tile,
            num_warps=_WARPS,
        )
        if apart == 1:
            return sums
        x, terms, magnitudes = sums, apart, False


def block_bits(sums, cut, block):
    numel = sums.numel() * math.prod(block)
    words = -(-numel // 64) + 1  # the last one stays zero
    if numel == 0:
        return torch.zeros(words * 8, dtype=torch.uint8, device=sums.device)
    bits = torch.empty(words * 8, dtype=torch.uint8, device=sums.device)
    sizes, blocks = _merged(sums.shape, block)
    operands = (sums.contiguous(), cut.contiguous(), bits.view(torch.int16), numel, words, *sizes, *blocks)
    index = tl.int32 if 64 * (words + _WORDS) < 2**31 else tl.int64
    launch(block_bits_kernel, (-(-words // _WORDS),), sums, operands, INDEX=index, WORDS=_WORDS)
    return bits


def _merged(counts, block):
    """The five dimensions of a weight and of its blocks, the first ones 1, with as few others as say the same: those
    next to each other where blocks are of one element in both, or all of the second."""
    dims = [(1, 1)]
    for count, size in zip(counts, block, strict=True):
        elements, of_block = dims[-1]
        if count == 1:  # all of it
            dims[-1] = (elements * size, of_block * size)
        elif size == 1 and of_block == 1:
            dims[-1] = (elements * count, 1)
        else:
            dims.append((count * size, size))
    if dims[0] == (1, 1) and len(dims) > 1:
        del dims[0]
    return zip(*([(1, 1)] * (5 - len(dims)) + dims), strict=True)
