"""The cut of a layer whose scores in the bracket have been listed, by one block."""

import triton
import triton.language as tl

from .select_layer import HIGHEST_KEY, TO_INDEX, TO_POSITION, bits_of, keys_at, mapped, nth_smallest, pick, word
from .select_scan import BIN_BITS, BINS


@triton.jit
def listed_tile(scores, row, first, size, highest, extent, listed, list_keys, list_positions, TILE: tl.constexpr):
    """(keys, positions, which are in the bracket) of a TILE of the list, or of the layer where there is none."""
    slot = first + tl.arange(0, TILE)
    inside = slot < size
    if listed:
        keys = tl.load(list_keys + slot, mask=inside, other=0, cache_modifier=".cg").to(tl.uint32, bitcast=True)
        inside = inside & (highest - keys <= extent)
        position = tl.load(list_positions + slot, mask=inside, other=0, cache_modifier=".cg")
    else:
        keys = keys_at(scores, row, slot, inside)
        inside = inside & (highest - keys <= extent)
        position = slot
    return keys, position, inside


@triton.jit
def equal_tile(scores, row, first, key, TILE: tl.constexpr):
    """1 for each of the TILE scores from the logical index ``first`` on that has this key, int32."""
    index = first + tl.arange(0, TILE)
    inside = index < tl.load(row + 1)
    return (inside & (keys_at(scores, row, mapped(index, row, TO_POSITION), inside) == key)).to(tl.int32)


@triton.jit
def nth_tie(scores, row, key, want, tied, ties, CHUNK: tl.constexpr, TILE: tl.constexpr):
    """The logical index of the want-th score of this key; ``tied``: ``ties`` has their number in each chunk."""
    numel = word(row + 1)
    first = tl.zeros((), tl.int32)
    if tied:
        chunk = tl.zeros((), tl.int32)
        at = tl.arange(0, TILE)
        counts = tl.load(ties + at, mask=at * CHUNK < numel, other=0, cache_modifier=".cg")
        passed = tl.sum(counts)
        while passed < want:
            want -= passed
            chunk += TILE
            inside = chunk + at < tl.cdiv(numel, CHUNK)
            counts = tl.load(ties + chunk + at, mask=inside, other=0, cache_modifier=".cg")
            passed = tl.sum(counts)
        here, passed, _ = pick(counts, want)
        want -= passed
        first = (chunk + here) * CHUNK
    equal = equal_tile(scores, row, first, key, TILE)
    passed = tl.sum(equal)
    while passed < want:
        want -= passed
        first += TILE
        equal = equal_tile(scores, row, first, key, TILE)
        passed = tl.sum(equal)
    here, _, _ = pick(equal, want)
    return first + here


@triton.jit
def settle(
    scores,
    row,
    cut,
    bracket,
    lists,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    NARROW: tl.constexpr,
    ROOM: tl.constexpr,
):
    """Writes the layer's cut: the want-th of the ``found`` scores whose keys are in the bracket, from the largest key
    and there from the lowest index on; where the bracket has no want-th, the kept-th of the layer."""
    highest, extent, want, found, complete = bracket
    ties, bins, list_keys, list_positions = lists
    list_keys += tl.load(row + 4)
    list_positions += tl.load(row + 4)
    numel = word(row + 1)
    hit = (want >= 1) & (want <= found)
    tied = hit & (extent == 0)
    listed = hit & (extent > 0) & complete
    highest = tl.where(hit, highest, HIGHEST_KEY)
    extent = tl.where(hit, extent, HIGHEST_KEY)
    want = tl.where(hit, want, word(row + 2))
    left = tl.where(hit, found, numel)
    size = tl.where(listed, found, numel)
    every = tl.arange(0, BINS)
    span = extent
    while (left > ROOM) & (extent > 0):
        digit_at = tl.maximum(bits_of(extent) - BIN_BITS, 0)
        if (not listed) | (extent < span):  # the first digit of what is listed was counted by all blocks
            tl.store(bins + every, 0)
            tl.debug_barrier()
            first = tl.zeros((), tl.int32)
            while first < size:
                keys, _, inside = listed_tile(
                    scores, row, first, size, highest, extent, listed, list_keys, list_positions, TILE
                )
                digits = ((highest - keys) >> digit_at.to(tl.uint32)).to(tl.int32)
                tl.atomic_add(bins + digits, 1, mask=inside, sem="relaxed")
                first += TILE
            tl.debug_barrier()
        digit, before, left = pick(tl.load(bins + every, cache_modifier=".cg"), want)
        tl.debug_barrier()
        want -= before
        highest -= digit.to(tl.uint32) << digit_at.to(tl.uint32)
        extent = tl.minimum((tl.full((), 1, tl.uint32) << digit_at.to(tl.uint32)) - 1, extent)
    if tied | (left > ROOM):  # one key
        key = highest
        index = nth_tie(scores, row, key, want, tied, ties, CHUNK, NARROW)
    else:
        room = word(row + 5)  # the survivors are behind the list
        taken = tl.zeros((), tl.int32)
        first = tl.zeros((), tl.int32)
        while first < size:
            keys, position, inside = listed_tile(
                scores, row, first, size, highest, extent, listed, list_keys, list_positions, TILE
            )
            upto = taken + tl.cumsum(inside.to(tl.int32), 0)
            at = room + upto - 1
            tl.store(list_keys + at, keys.to(tl.int32, bitcast=True), mask=inside)
            tl.store(list_positions + at, position, mask=inside)
            taken = tl.max(upto)
            first += TILE
        tl.debug_barrier()
        at = tl.arange(0, ROOM)
        inside = at < left
        keys = tl.load(list_keys + room + at, mask=inside, other=0, cache_modifier=".cg").to(tl.uint32, bitcast=True)
        depths = tl.where(inside, highest - keys, HIGHEST_KEY)
        depth, want = nth_smallest(depths, want, bits_of(extent))
        inside = inside & (depths == depth)
        position = tl.load(list_positions + room + at, mask=inside, other=0, cache_modifier=".cg")
        indices = tl.where(inside, mapped(position, row, TO_INDEX).to(tl.uint32), HIGHEST_KEY)
        index, _ = nth_smallest(indices, want, bits_of(numel - 1))
        index = index.to(tl.int32)
        key = highest - depth
    tl.store(cut, key.to(tl.int64))
    tl.store(cut + 1, index.to(tl.int64))
