"""One block's read of its scores: what lies above the bracket is counted, what lies in it is listed."""

import triton
import triton.language as tl

from .select_layer import TO_POSITION, bits_of, keys_at, mapped, ordered_key, word

SHELF = tl.constexpr(4)  # a warp's shelf takes one in 4 of its scores
BINS = tl.constexpr(2048)
BIN_BITS = tl.constexpr(11)


@triton.jit
def count_ties(scores, row, first, end, key, state, ties, TILE: tl.constexpr):
    """Counts the scores of this key from the logical index ``first`` to ``end``; returns the number above it."""
    equal = tl.zeros((TILE,), tl.int32)
    above = tl.zeros((TILE,), tl.int32)
    while first < end:
        index = first + tl.arange(0, TILE)
        inside = index < end
        keys = keys_at(scores, row, mapped(index, row, TO_POSITION), inside)
        equal += (inside & (keys == key)).to(tl.int32)
        above += (inside & (keys > key)).to(tl.int32)
        first += TILE
    count = tl.sum(equal)
    tl.store(ties + tl.program_id(0), count)
    tl.atomic_add(state + 3, count, sem="relaxed")
    return tl.sum(above)


@triton.jit
def of_threads(values, WARPS: tl.constexpr):
    """A warp's value for each of its threads."""
    return tl.reshape(tl.broadcast_to(values[:, None], (WARPS, 32)), (WARPS * 32,))


@triton.jit
def list_tiles(
    scores,
    row,
    first,
    end,
    highest,
    extent,
    state,
    bins,
    shelves,
    list_keys,
    list_positions,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Appends the scores from position ``first`` to ``end`` that are in the bracket to the layer's list, counts them in
    ``bins``; returns the number above the bracket.

    Each warp keeps the positions of its own on a shelf first: no warp waits for another, nor for an atomic, while it
    reads.
    """
    threads: tl.constexpr = WARPS * 32
    rows: tl.constexpr = TILE // threads
    room: tl.constexpr = CHUNK // SHELF // WARPS
    tl.static_assert(room >= rows * 32, "a shelf takes a tile")
    place = tl.arange(0, threads)
    down = tl.arange(0, rows)[:, None] * threads  # constants of the instructions
    shelf = shelves + tl.program_id(0).to(tl.int64) * (CHUNK // SHELF)
    own = shelf + place // 32 * room
    raw = tl.load(row + 3) != 0
    at = scores + tl.load(row) + first + place
    position = first + place
    left = end - first - place
    taken = tl.zeros((WARPS,), tl.int32)
    above = tl.zeros((threads,), tl.int32)
    while first < end:
        loaded = tl.load(at[None, :] + down, mask=down < left[None, :], other=float("nan"))
        keys = ordered_key(loaded, raw)
        above += tl.sum((keys > highest).to(tl.int32), 0)
        ones = (highest - keys <= extent).to(tl.int32)  # [rows, threads]
        columns = tl.reshape(tl.sum(ones, 0), (WARPS, 32))
        count = tl.sum(columns, 1)
        start = tl.where(taken + count <= room, taken, 0)  # a shelf that overflows is not read
        last = tl.reshape(start[:, None] + tl.cumsum(columns, 1) - columns - 1, (threads,))
        # Untrue, and said for Triton 3.6 alone: it keeps the order in which the tile was loaded, and saves its way
        # through 32 KB of shared memory. No store of two scores comes of it: slots are known to be multiples of 1 only.
        slot = tl.max_contiguous(last[None, :] + tl.cumsum(ones, 0), [1, 2])
        tl.store(own[None, :] + slot, position[None, :] + down, mask=ones != 0)
        taken += count
        at += TILE
        position += TILE
        left -= TILE
        first += TILE
    tl.debug_barrier()  # a warp's lanes read what other lanes wrote
    count = tl.sum(taken)
    most = tl.max(taken)
    start = tl.atomic_add(state + 3, count, sem="relaxed")
    if most > room:
        tl.store(state + 4, 1)
    elif start + count <= word(row + 5):
        own_taken = of_threads(taken, WARPS)
        slot = start + of_threads(tl.cumsum(taken, 0) - taken, WARPS)
        digit_at = tl.maximum(bits_of(extent) - BIN_BITS, 0).to(tl.uint32)
        each = place % 32
        list_keys += tl.load(row + 4)
        list_positions += tl.load(row + 4)
        while most > 0:
            inside = each < own_taken
            position = tl.load(own + each, mask=inside, other=0, cache_modifier=".cg")
            keys = keys_at(scores, row, position, inside)
            tl.store(list_keys + slot + each, keys.to(tl.int32, bitcast=True), mask=inside)
            tl.store(list_positions + slot + each, position, mask=inside)
            tl.atomic_add(bins + ((highest - keys) >> digit_at).to(tl.int32), 1, mask=inside, sem="relaxed")
            each += 32
            most -= 32
    return tl.sum(above)
