"""Mask and signs of scores, one bit each, beside the cuts that were found: one launch for all layers.

Words of the signs plane's end are zero before, and stay so where every score has a sign.
"""

import triton
import triton.language as tl

from .select_layer import ordered_key

FIELDS = tl.constexpr(5)  # of a row of `layers`: the layer's place among cuts, its scores, numel, raw, its first word
ALIGNED = tl.constexpr(4)  # scores: where a layer begins


@triton.jit
def packed(bits, lane):
    """int32 [rows] of bool [rows, 32]."""
    return tl.sum(tl.where(bits, 1 << lane, 0), 1).to(tl.int32)


@triton.jit
def planes_kernel(
    scores,  # where a layer's offset counts from
    layers,
    chunks,  # layer, which chunk of it
    cuts,
    planes,  # int32 words
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    row = layers + tl.load(chunks + 2 * tl.program_id(0)) * FIELDS
    start = tl.load(chunks + 2 * tl.program_id(0) + 1) * CHUNK
    cut = cuts + 2 * tl.load(row)
    scores += tl.multiple_of(tl.load(row + 1), ALIGNED)
    numel = tl.load(row + 2).to(tl.int32)
    raw = tl.load(row + 3) != 0
    planes += tl.load(row + 4)
    words = (numel + 63) // 64 * 2 + 2  # of a plane
    key, last = tl.load(cut), tl.load(cut + 1)

    lane = tl.arange(0, 32)[None, :]  # [1, 32]
    unsigned = tl.zeros((TILE // 32, 32), tl.int32)
    for i in range(CHUNK // TILE):
        word = (start + i * TILE) // 32 + tl.arange(0, TILE // 32)  # [TILE / 32]
        index = word[:, None] * 32 + lane  # [TILE / 32, 32]
        inside = index < numel
        s = tl.load(scores + index, mask=inside, other=1.0)
        keep = ordered_key(s, raw).to(tl.int64) >= tl.where(index <= last, key, key + 1)
        in_plane = word * 32 < numel
        tl.store(planes + word, packed(keep & inside, lane), mask=in_plane)
        if not raw:
            tl.store(planes + words + word, packed((s.to(tl.int32, bitcast=True) < 0) & inside, lane), mask=in_plane)
            unsigned |= ((s == 0) | (s != s)).to(tl.int32)
    if tl.max(unsigned) != 0:  # never where raw
        tl.atomic_or(planes + 2 * words - 1, 1 << 24, sem="relaxed")
