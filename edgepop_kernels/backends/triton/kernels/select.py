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

# A row of `layers`: offset in elements from the first layer's scores, numel, kept, raw, first listed, room of the list,
# then from a position in memory to the logical index: the sizes of the inner three dimensions, the strides of all four;
# and from the logical index to the position.
FIELDS = tl.constexpr(20)
_TO_INDEX = tl.constexpr(6)
_TO_POSITION = tl.constexpr(13)
# Words of a layer, zero at the start: settled; of the attempt: blocks done, above the bracket, in it, shelf overflowed.
STATE = tl.constexpr(5)
SHELF = tl.constexpr(4)  # a warp's shelf takes one in 4 of its scores
BINS = tl.constexpr(2048)
_BIN_BITS = tl.constexpr(11)
_HALF_WIDTH = tl.constexpr(1 << 16)  # keys on each side of a hint: 0.8 % of the score's value, scale-free
_HIGHEST_KEY = tl.constexpr(0xFFFFFFFF)  # no score's
_RUN = tl.constexpr(8)  # scores of a sample that are neighbours: a sector of memory
_DEVIATIONS = tl.constexpr(4.0)


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
    """The logical indices at these positions (_TO_INDEX), or the positions of these indices (_TO_POSITION); int32."""
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


@triton.jit
def sampled_end(scores, row, lower, SAMPLE: tl.constexpr):
    """The ``lower`` end, or the upper one, of the keys between which the last kept score is likely to lie; of all keys
    where the list has room for all of the layer's scores.

    Of each of SAMPLE / _RUN equal parts of the layer a run somewhere in it is read, so that no period in the scores, of
    channels or taps, is met in step.
    """
    runs: tl.constexpr = SAMPLE // _RUN
    numel = word(row + 1)
    end = tl.where(lower == 1, tl.zeros((), tl.uint32), _HIGHEST_KEY)
    if numel > word(row + 5):
        share = tl.load(row + 2).to(tl.float32) / numel.to(tl.float32)
        spread = _DEVIATIONS * tl.sqrt(SAMPLE * share * (1 - share)) + 1
        spread = tl.where(lower == 1, spread, -spread)
        rank = (SAMPLE * share + spread).to(tl.int32) + lower  # 1 is the largest
        if (rank >= 1) & (rank <= SAMPLE):
            element = tl.arange(0, SAMPLE)
            run = element // _RUN
            scrambled = run.to(tl.uint32) * 0x9E3779B1
            scrambled = (scrambled ^ (scrambled >> 15)) * 0x85EBCA77
            scrambled = scrambled ^ (scrambled >> 13)
            part = numel // runs
            begin = run * part + run * (numel % runs) // runs
            begin += tl.umulhi(scrambled, tl.maximum(part - (_RUN - 1), 1).to(tl.uint32)).to(tl.int32)
            position = tl.minimum(begin + element % _RUN, numel - 1)
            keys = keys_at(scores, row, position, position >= 0)
            depth, _ = nth_smallest(keys ^ _HIGHEST_KEY, rank, tl.full((), 32, tl.int32))
            end = depth ^ _HIGHEST_KEY
    return end


@triton.jit
def select_sample_kernel(scores, layers, brackets, SAMPLE: tl.constexpr):
    layer = tl.program_id(0) // 2
    lower = tl.program_id(0) % 2
    end = sampled_end(scores, layers + layer * FIELDS, lower, SAMPLE)
    tl.store(brackets + tl.program_id(0), end.to(tl.int32, bitcast=True))


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
    return (inside & (keys_at(scores, row, mapped(index, row, _TO_POSITION), inside) == key)).to(tl.int32)


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
    highest = tl.where(hit, highest, _HIGHEST_KEY)
    extent = tl.where(hit, extent, _HIGHEST_KEY)
    want = tl.where(hit, want, word(row + 2))
    left = tl.where(hit, found, numel)
    size = tl.where(listed, found, numel)
    every = tl.arange(0, BINS)
    span = extent
    while (left > ROOM) & (extent > 0):
        digit_at = tl.maximum(bits_of(extent) - _BIN_BITS, 0)
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
        depths = tl.where(inside, highest - keys, _HIGHEST_KEY)
        depth, want = nth_smallest(depths, want, bits_of(extent))
        inside = inside & (depths == depth)
        position = tl.load(list_positions + room + at, mask=inside, other=0, cache_modifier=".cg")
        indices = tl.where(inside, mapped(position, row, _TO_INDEX).to(tl.uint32), _HIGHEST_KEY)
        index, _ = nth_smallest(indices, want, bits_of(numel - 1))
        index = index.to(tl.int32)
        key = highest - depth
    tl.store(cut, key.to(tl.int64))
    tl.store(cut + 1, index.to(tl.int64))


@triton.jit
def count_ties(scores, row, first, end, key, state, ties, TILE: tl.constexpr):
    """Counts the scores of this key from the logical index ``first`` to ``end``; returns the number above it."""
    equal = tl.zeros((TILE,), tl.int32)
    above = tl.zeros((TILE,), tl.int32)
    while first < end:
        index = first + tl.arange(0, TILE)
        inside = index < end
        keys = keys_at(scores, row, mapped(index, row, _TO_POSITION), inside)
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
        digit_at = tl.maximum(bits_of(extent) - _BIN_BITS, 0).to(tl.uint32)
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


@triton.jit
def select_compact_kernel(
    scores,  # of the first layer
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
            hint = tl.minimum(tl.maximum(tl.load(hints + 2 * layer), 0), _HIGHEST_KEY)
            lowest = tl.maximum(hint - _HALF_WIDTH, 0).to(tl.uint32)
            highest = tl.minimum(hint + _HALF_WIDTH, _HIGHEST_KEY).to(tl.uint32)
            whole = numel <= word(row + 5)
            lowest = tl.where(whole, 0, lowest)
            highest = tl.where(whole, _HIGHEST_KEY, highest)
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
                for field in range(1, STATE):
                    tl.store(state + field, 0)
                tl.store(bins + tl.arange(0, BINS), 0)
            else:
                of_layer = ties + tl.program_id(0) - chunk
                bracket = (highest, extent, want, found, complete)
                lists = (of_layer, bins, list_keys, list_positions)
                settle(scores, row, cut, bracket, lists, CHUNK, 2 * NARROW, NARROW, ROOM)
                tl.store(state, 1)
