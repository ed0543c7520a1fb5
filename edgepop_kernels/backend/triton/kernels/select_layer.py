"""One layer as selection sees it: its row in the table, the keys of its scores, positions and logical indices; and the
n-th of a few values."""

import triton
import triton.language as tl

# A row of `layers`: offset in elements from `scores`, numel, kept, raw, first listed, room of the list, then from a
# position in memory to the logical index: the sizes of the inner three dimensions, the strides of all four; and from
# the logical index to the position.
FIELDS = tl.constexpr(20)
TO_INDEX = tl.constexpr(6)
TO_POSITION = tl.constexpr(13)
HIGHEST_KEY = tl.constexpr(0xFFFFFFFF)  # no score's


@triton.jit
def ordered_key(scores, raw):
    """uint32 ordered as the scores are selected: NaN 0, -0.0 and 0.0 equal; ``raw``: by s, else by |s|."""
    bits = scores.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    key = magnitude + 1
    if raw:
        negative = (bits > magnitude) & (magnitude != 0)
        key = tl.where(negative, 0xFFFFFFFF - bits, magnitude + 0x80000000)
    return tl.where(magnitude > 0x7F800000, 0, key)


@triton.jit
def keys_at(scores, row, position, inside):
    loaded = tl.load(scores + tl.load(row) + position, mask=inside, other=0.0)
    return ordered_key(loaded, tl.load(row + 3) != 0)


@triton.jit
def word(address):
    return tl.load(address).to(tl.int32)


@triton.jit
def bits_of(value):
    """The bits that a number below 2^32 takes."""
    return tl.sum(((value.to(tl.uint32) >> tl.arange(0, 32).to(tl.uint32)) != 0).to(tl.int32))


@triton.jit
def mapped(number, row, MAP: tl.constexpr):
    """The logical indices at these positions (TO_INDEX), or the positions of these indices (TO_POSITION); int32."""
    n1 = word(row + MAP)
    n2 = word(row + MAP + 1)
    n3 = word(row + MAP + 2)
    outer = number // n3
    result = (number - outer * n3) * word(row + MAP + 6)
    number = outer
    outer = number // n2
    result += (number - outer * n2) * word(row + MAP + 5)
    number = outer
    outer = number // n1
    return result + (number - outer * n1) * word(row + MAP + 4) + outer * word(row + MAP + 3)


@triton.jit
def pick(counts, want):
    """(the bin that holds the want-th element, the number in the bins before it, the number in it); int32 scalars."""
    upto = tl.cumsum(counts, 0)
    before = upto - counts
    here = (before < want) & (want <= upto)
    bins = tl.arange(0, counts.shape[0])
    return tl.sum(tl.where(here, bins, 0)), tl.sum(tl.where(here, before, 0)), tl.sum(tl.where(here, counts, 0))


@triton.jit
def nth_smallest(values, want, bits):
    """(the want-th smallest of uint32 values that take this many bits, which one it is of those equal to it, from 1).
    Values that are not to be found are 0xFFFFFFFF."""
    least = tl.zeros((), tl.uint32)
    smaller = tl.zeros((), tl.int32)
    while bits > 0:
        bits -= 1
        middle = least + (tl.full((), 1, tl.uint32) << bits.to(tl.uint32))
        below = tl.sum((values < middle).to(tl.int32))
        least = tl.where(below < want, middle, least)
        smaller = tl.where(below < want, below, smaller)
    return least, want - smaller
