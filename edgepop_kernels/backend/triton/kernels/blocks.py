"""The sums of blocks of scores, and the packed mask of the blocks that a cut keeps."""

import triton
import triton.language as tl

from .mask import bounds, kept


@triton.jit
def fold_kernel(
    x,
    y,
    terms,
    inner,
    span,
    numel,
    ABS: tl.constexpr,
    TERMS: tl.constexpr,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
):
    """``y[o, i] = sum over t of x[o * span + t * inner + i]``, in halves: of x[outer, span / inner, inner] the sum
    along the dimension in the middle, or of every so many of it where ``inner`` is several of its steps.

    A block has TILE of the ``numel`` sums. Their ``terms``, up to TERMS = 2 ** LEVELS and within the span, are padded
    with zeros: halves of a power of two are then those of the reference. A sum of two is exact in any order.
    """
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)  # [TILE]
    within = (place % inner)[None, :] + (tl.arange(0, TERMS).to(tl.int64) * inner)[:, None]  # [TERMS, TILE]
    inside = (place < numel)[None, :] & (tl.arange(0, TERMS) < terms)[:, None] & (within < span)
    sums = tl.load(x + (place // inner * span)[None, :] + within, mask=inside, other=0.0)  # [TERMS, TILE]
    if ABS:
        sums = tl.abs(sums)
    for level in tl.static_range(LEVELS):
        sums = tl.sum(tl.reshape(sums, (2, TERMS >> level + 1, TILE)), 0)  # [TERMS / 2 ** (level + 1), TILE]
    tl.store(y + place, tl.reshape(sums, (TILE,)), mask=place < numel)


@triton.jit
def _onto(index, block, blocks, size, of_block):
    """The index without its last dimension, of ``size`` elements, and the block's with it: ``blocks`` is the number of
    blocks in the dimensions further in. All but the sizes are tiles of one shape, or 1."""
    block += index % size // of_block * blocks
    return index // size, block


@triton.jit
def block_bits_kernel(
    sums,
    cut,
    bits,
    numel,
    words,
    size0,
    size1,
    size2,
    size3,
    size4,
    block0,
    block1,
    block2,
    block3,
    block4,
    INDEX: tl.constexpr,
    WORDS: tl.constexpr,
):
    """A program packs WORDS words of 64 weights, as four runs of 16: one int16 of ``bits`` each.

    size0 ... size4: elements in each dimension of the weight, of which blocks have block0 ... block4; those that are 1
    cost nothing, they are compiled as such. INDEX: the type of a place in the weight: a division of 64 bits takes many
    times one of 32.
    """
    run = tl.program_id(0).to(INDEX) * (4 * WORDS) + tl.arange(0, 4 * WORDS)  # [4 * WORDS]
    lane = tl.arange(0, 16)[None, :]  # [1, 16]
    index = run[:, None] * 16 + lane  # [4 * WORDS, 16]
    inside = index < numel
    block = tl.zeros_like(index)
    blocks = 1
    rest, block = _onto(index, block, blocks, size4, block4)
    blocks *= size4 // block4
    rest, block = _onto(rest, block, blocks, size3, block3)
    blocks *= size3 // block3
    rest, block = _onto(rest, block, blocks, size2, block2)
    blocks *= size2 // block2
    rest, block = _onto(rest, block, blocks, size1, block1)
    blocks *= size1 // block1
    block += rest // block0 * blocks
    cut_bounds = bounds(cut, "raw")
    s = tl.load(sums + block, mask=inside, other=0.0)
    keep = kept(s, block <= cut_bounds[2], cut_bounds, "raw") & inside
    packed = tl.sum(tl.where(keep, 1 << lane, 0), 1)  # [4 * WORDS]
    tl.store(bits + run, packed.to(tl.int16), mask=run < 4 * words)
