"""The mask predicate, inlined into every kernel that reads a weight.

A cut is int64 [2] = (ordered key, logical index of the last kept tie): an element is kept when its key is above the
cut's, or equal to it at an index not above the cut's. Here the key is never built. ``rank`` maps the score's bits to
a uint32 that falls as the score rises, and "key(s) >= key" is the one unsigned comparison ``rank(s) < bound(key)``:

    of == "abs"          rank = 2 * (inf - |bits|): one three-operand addition, the sign drops out of the top
    of == "raw", ...     rank = inf' - image(bits), with the monotone image of the number line

In both, numbers rank below every NaN, and no rank is 0xFFFFFFFF: bound 0 keeps nothing, bound 0xFFFFFFFF everything.
Ties are settled by position: ``bound(key)`` holds up to the cut's index, ``bound(key + 1)`` after it.
"""

import triton
import triton.language as tl


@triton.jit
def rank(scores, OF: tl.constexpr):
    """uint32 of the scores' shape: 0 at +inf, rising as the ordered key falls; -0.0 one above 0.0."""
    bits = scores.to(tl.uint32, bitcast=True)
    if OF == "abs":
        return 0xFF000000 - (bits + bits)
    negative = scores.to(tl.int32, bitcast=True) >> 31
    image = bits ^ (negative.to(tl.uint32, bitcast=True) | 0x80000000)
    return tl.minimum(0xFF800000 - image, 0xFFFFFFFE)


@triton.jit
def bound(key, OF: tl.constexpr):
    """Scalar uint32 b with rank(s) < b exactly where the ordered key of s is at least ``key`` (int64 scalar)."""
    if OF == "abs":
        b = tl.where(key > 0x7F800001, 0, 2 * (0x7F800001 - key) + 1)
    else:
        lowest = tl.where(key == 0x80000000, 0x7FFFFFFF, tl.maximum(key, 0x007FFFFF))  # -0.0 ties with 0.0
        b = tl.where(key > 0xFF800000, 0, 0xFF800000 - lowest + 1)
    return tl.where(key <= 0, 0xFFFFFFFF, b).to(tl.uint32)


@triton.jit
def bounds(cut, OF: tl.constexpr):
    """(bound up to the cut's index, bound after it, the index as int64) of the cut at this address."""
    key = tl.load(cut)
    return bound(key, OF), bound(key + 1, OF), tl.load(cut + 1)


@triton.jit
def kept(scores, tied, cut_bounds, OF: tl.constexpr):
    """Bool tile: which scores the cut keeps. ``tied``: bool tile, logical index not above the cut's."""
    return rank(scores, OF) < tl.where(tied, cut_bounds[0], cut_bounds[1])
