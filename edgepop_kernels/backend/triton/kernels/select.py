"""Exact selection for all layers of a network at once: the k-th largest score, ties by the lower logical index.

(key, logical index) is unique, so the last kept one is one element whatever the order in which blocks append: the
result is the same on every run. At most two launches, each over all layers; nothing returns to the host.

    sample      two blocks a layer: 16384 of its scores say between which two keys, the bracket, the last kept one lies,
                with four standard deviations to spare: 3 % of the scores of a large layer
    compact     reads the scores, counts those above the bracket, lists those inside it and counts the leading digit of
                their place in it. The block that is done last with a layer settles it: those of the one digit that
                matters, a 2048th of the list, are searched in registers, bit by bit

With a hint, ``compact`` comes first, the bracket being what lies around the hint's key: one read of the scores. Where
that missed, the layer's last block samples it, and ``compact`` comes again; done layers exit at once.

A bracket of one key holds ties only, and these are not listed: the blocks read the scores in logical order and leave
their counts, and the last block looks through one block's scores. A sampled bracket that missed, or one of several keys
with more scores than the list has room for, leaves the last block the whole layer to walk. Exact in every case.

A layer is read in memory order, ``layers`` saying how a position maps to the logical index, and back.
"""

import triton
import triton.language as tl

from .select_layer import FIELDS, HIGHEST_KEY, word
from .select_sample import sampled_end
from .select_scan import BINS, count_ties, list_tiles
from .select_settle import settle

# Words of a layer, zero at the start: settled; of the attempt: blocks done, above the bracket, in it, shelf overflowed.
STATE = tl.constexpr(5)
_HALF_WIDTH = tl.constexpr(1 << 16)  # keys on each side of a hint: 0.8 % of the score's value, scale-free


@triton.jit
def select_sample_kernel(scores, layers, brackets, SAMPLE: tl.constexpr):
    layer = tl.program_id(0) // 2
    lower = tl.program_id(0) % 2
    end = sampled_end(scores, layers + layer * FIELDS, lower, SAMPLE)
    tl.store(brackets + tl.program_id(0), end.to(tl.int32, bitcast=True))


@triton.jit
def select_compact_kernel(
    scores,  # where a layer's offset counts from
    layers,
    chunks,
    hints,
    brackets,
    states,
    bins,
    ties,
    shelves,
    list_keys,
    list_positions,
    cuts,
    WARM: tl.constexpr,  # the brackets are around the hints, and those for the next attempt are written
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    NARROW: tl.constexpr,
    WARPS: tl.constexpr,
    SAMPLE: tl.constexpr,
    ROOM: tl.constexpr,
):
    layer = tl.load(chunks + 2 * tl.program_id(0))
    chunk = tl.load(chunks + 2 * tl.program_id(0) + 1)
    row = layers + layer * FIELDS
    cut = cuts + 2 * layer
    state = states + layer * STATE
    bins += layer * BINS
    kept = word(row + 2)
    if kept == 0:
        tl.store(cut, 1 << 32)
        tl.store(cut + 1, -1)
    elif tl.load(state) == 0:
        numel = word(row + 1)
        if WARM:
            hint = tl.minimum(tl.maximum(tl.load(hints + 2 * layer), 0), HIGHEST_KEY)
            lowest = tl.maximum(hint - _HALF_WIDTH, 0).to(tl.uint32)
            highest = tl.minimum(hint + _HALF_WIDTH, HIGHEST_KEY).to(tl.uint32)
            whole = numel <= word(row + 5)
            lowest = tl.where(whole, 0, lowest)
            highest = tl.where(whole, HIGHEST_KEY, highest)
        else:
            highest = tl.load(brackets + 2 * layer).to(tl.uint32, bitcast=True)
            lowest = tl.load(brackets + 2 * layer + 1).to(tl.uint32, bitcast=True)
        # NaN, of key 0, is not listed: what a tile has past the end of its layer is NaN too.
        extent = highest - tl.maximum(lowest, tl.minimum(highest, 1))
        first = chunk * CHUNK
        end = tl.minimum(first + CHUNK, numel)
        if extent == 0:
            above = count_ties(scores, row, first, end, highest, state, ties, NARROW)
        else:
            above = list_tiles(
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
                CHUNK,
                TILE,
                WARPS,
            )
        tl.atomic_add(state + 2, above, sem="relaxed")
        # All that the block's threads have written comes before thread 0 says so: the barrier, then its release. Who is
        # last acquires it, and from there on reads what blocks share past the L1 of its own multiprocessor (.cg).
        tl.debug_barrier()
        done = tl.atomic_add(state + 1, 1, sem="acq_rel", scope="gpu") + 1
        if done == tl.cdiv(numel, CHUNK):
            want = kept - tl.load(state + 2, cache_modifier=".cg")
            found = tl.load(state + 3, cache_modifier=".cg")
            complete = (found <= word(row + 5)) & (tl.load(state + 4, cache_modifier=".cg") == 0)
            if WARM and ((want < 1) | (want > found) | (not complete)):
                for lower in tl.static_range(2):
                    end_key = sampled_end(scores, row, lower, SAMPLE)
                    tl.store(brackets + 2 * layer + lower, end_key.to(tl.int32, bitcast=True))
                # Every warp has loaded the state by itself: none may still be about to when thread 0 zeroes it.
                tl.debug_barrier()
                for field in range(1, STATE):
                    tl.store(state + field, 0)
                tl.store(bins + tl.arange(0, BINS), 0)
            else:
                of_layer = ties + tl.program_id(0) - chunk
                bracket = (highest, extent, want, found, complete)
                lists = (of_layer, bins, list_keys, list_positions)
                settle(scores, row, cut, bracket, lists, CHUNK, 2 * NARROW, NARROW, ROOM)
                tl.store(state, 1)
