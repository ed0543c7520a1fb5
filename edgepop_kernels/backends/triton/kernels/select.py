"""Exact selection for all layers of a network at once: the k-th largest of unique 64-bit composites.

    composite = (ordered key, complement of the logical index)

Composites are distinct, so the k-th largest is one element, the last one kept, whatever the order in which blocks
append: the result is the same on every run. Three kernels, each over all layers; nothing returns to the host.

    histogram   reads the scores, counts the leading 11 bits of the keys; the bin with the k-th score is the bracket
    compact     reads the scores, counts those above the bracket, appends those inside it to the layer's candidates
    finish      one block per layer: radix selection among the candidates, a digit per pass, until one is left

With a hint the bracket lies around the hint's key and the histogram is saved: one read of the scores. A bracket that
missed is seen by ``finish``, which leaves the layer to the next attempt; the last attempt, over a histogram, can only
overflow its candidates (many scores in one bin), and then walks the whole layer instead. Exact in every case.

A layer is read in memory order, ``layers`` saying how a position maps to the logical index.
"""

import triton
import triton.language as tl

# A row of `layers`: offset in elements from the first layer's scores, numel, kept, raw, first candidate, capacity,
# sizes of the inner three dimensions in memory, strides of the logical index in all four.
FIELDS = tl.constexpr(13)
BINS = tl.constexpr(2048)
HALF_WIDTH = tl.constexpr(1 << 16)  # keys on each side of a hint: 0.8 % of the score's value, scale-free
INDEX_BITS = tl.constexpr(31)
LAST_INDEX = tl.constexpr((1 << 31) - 1)


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
def picked(counts, want, SIZE: tl.constexpr):
    """(bin with the want-th largest, number in the bins above it, number in it); counts: [SIZE]."""
    counts = counts.to(tl.int64)
    above = tl.sum(counts) - tl.cumsum(counts, 0)  # [SIZE]
    here = (above < want) & (want <= above + counts)
    bins = tl.arange(0, SIZE).to(tl.int64)
    zero = tl.zeros_like(counts)
    return tl.sum(tl.where(here, bins, zero)), tl.sum(tl.where(here, above, zero)), tl.sum(tl.where(here, counts, zero))


@triton.jit
def bracket(row, layer, histograms, hints, WARM: tl.constexpr):
    """(lowest, highest) key, int64 scalars, between which the layer's last kept score is looked for."""
    if WARM:
        hint = tl.load(hints + 2 * layer)
        return tl.maximum(hint - HALF_WIDTH, 0), tl.minimum(hint + HALF_WIDTH, 0xFFFFFFFF)
    counts = tl.load(histograms + layer * BINS + tl.arange(0, BINS))
    digit, _, _ = picked(counts, tl.load(row + 2), BINS)
    shift = 20 + tl.load(row + 3)
    return digit << shift, ((digit + 1) << shift) - 1


@triton.jit
def tile_of_scores(scores, row, first, TILE: tl.constexpr):
    """(keys, positions, inside) of TILE scores from position ``first``, a multiple of TILE, of this row's layer."""
    scores_at = scores + tl.multiple_of(tl.load(row), 4)
    numel = tl.load(row + 1)
    position = first + tl.arange(0, TILE)
    inside = position < numel
    if first + TILE <= numel:  # no mask, so that four scores come with one load
        loaded = tl.load(scores_at + position)
    else:
        loaded = tl.load(scores_at + position, mask=inside, other=0.0)
    return ordered_key(loaded, tl.load(row + 3) != 0), position, inside


@triton.jit
def select_histogram_kernel(scores, layers, chunks, done, histograms, CHUNK: tl.constexpr, TILE: tl.constexpr):
    chunk = tl.program_id(0)
    layer = tl.load(chunks + 2 * chunk)
    row = layers + layer * FIELDS
    if tl.load(done + layer) == 0:
        first = tl.load(chunks + 2 * chunk + 1) * CHUNK
        counts = tl.zeros((BINS,), tl.int32)
        for i in range(CHUNK // TILE):
            keys, _, inside = tile_of_scores(scores, row, first + i * TILE, TILE)
            digits = (keys >> (20 + tl.load(row + 3)).to(tl.uint32)).to(tl.int32)
            counts += tl.histogram(digits, BINS, mask=inside)
        tl.atomic_add(histograms + layer * BINS + tl.arange(0, BINS), counts, mask=counts > 0)


@triton.jit
def select_compact_kernel(
    scores,  # of the first layer
    layers,
    chunks,
    done,
    histograms,
    hints,
    above,
    found,
    candidate_keys,
    candidate_positions,
    WARM: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    chunk = tl.program_id(0)
    layer = tl.load(chunks + 2 * chunk)
    row = layers + layer * FIELDS
    if tl.load(done + layer) == 0:
        lowest, highest = bracket(row, layer, histograms, hints, WARM)
        lowest = lowest.to(tl.uint32)
        highest = highest.to(tl.uint32)
        first_candidate = tl.load(row + 4)
        capacity = tl.load(row + 5)
        first = tl.load(chunks + 2 * chunk + 1) * CHUNK
        higher = 0
        for i in range(CHUNK // TILE):
            keys, position, inside = tile_of_scores(scores, row, first + i * TILE, TILE)
            higher += tl.sum((inside & (keys > highest)).to(tl.int32))
            candidate = inside & (keys >= lowest) & (keys <= highest)
            order = tl.cumsum(candidate.to(tl.int32), 0)
            count = tl.sum(candidate.to(tl.int32))
            slot = tl.atomic_add(found + layer, count) + order - 1
            fits = candidate & (slot < capacity)
            tl.store(candidate_keys + first_candidate + slot, keys.to(tl.int32, bitcast=True), mask=fits)
            tl.store(candidate_positions + first_candidate + slot, position, mask=fits)
        tl.atomic_add(above + layer, higher)


@triton.jit
def composites(scores, row, first, size, lowest, hit, candidate_keys, candidate_positions, TILE: tl.constexpr):
    """(composite int64, inside) of TILE candidates, or of TILE scores of the layer where the bracket failed."""
    slot = first + tl.arange(0, TILE)
    inside = slot < size
    if hit:
        keys = tl.load(candidate_keys + tl.load(row + 4) + slot, mask=inside, other=0).to(tl.uint32, bitcast=True)
        position = tl.load(candidate_positions + tl.load(row + 4) + slot, mask=inside, other=0)
    else:
        keys, position, _ = tile_of_scores(scores, row, first, TILE)
    n1 = tl.load(row + 6).to(tl.int32)
    n2 = tl.load(row + 7).to(tl.int32)
    n3 = tl.load(row + 8).to(tl.int32)
    index = (position % n3) * tl.load(row + 12)
    index += (position // n3 % n2) * tl.load(row + 11)
    index += (position // (n3 * n2) % n1) * tl.load(row + 10)
    index += (position // (n3 * n2 * n1)) * tl.load(row + 9)
    complement = LAST_INDEX - index
    return ((keys.to(tl.int64) - lowest) << INDEX_BITS) + complement, inside


@triton.jit
def select_finish_kernel(
    scores,
    layers,
    done,
    histograms,
    hints,
    above,
    found,
    candidate_keys,
    candidate_positions,
    cuts,
    WARM: tl.constexpr,
    LAST: tl.constexpr,
    TILE: tl.constexpr,
):
    layer = tl.program_id(0)
    row = layers + layer * FIELDS
    kept = tl.load(row + 2)
    want = kept - tl.load(above + layer)
    size = tl.load(found + layer).to(tl.int64)
    hit = (want >= 1) & (want <= size) & (size <= tl.load(row + 5))
    if (tl.load(done + layer) == 0) & (hit | LAST):
        lowest, _ = bracket(row, layer, histograms, hints, WARM)
        lowest = tl.where(hit, lowest, 0)
        size = tl.where(hit, size, tl.load(row + 1))
        want = tl.where(hit, want, kept)
        # Candidates of a bracket are within 2^21 keys of its lowest: composites below 2^52. Of a layer, below 2^63.
        resolved = tl.where(hit, 56, 64)  # bits from here up are known: `prefix`
        prefix = tl.zeros((), tl.int64)
        left = size
        while left > 1:
            digit_at = (resolved - 8).to(tl.int64)
            counts = tl.zeros((256,), tl.int32)
            first = tl.zeros((), tl.int32)
            while first < size:
                composite, inside = composites(
                    scores, row, first, size, lowest, hit, candidate_keys, candidate_positions, TILE
                )
                leading = composite >> digit_at
                inside = inside & ((leading >> 8) == prefix)
                counts += tl.histogram((leading & 255).to(tl.int32), 256, mask=inside)
                first += TILE
            digit, higher, left = picked(counts, want, 256)
            want -= higher
            prefix = (prefix << 8) + digit
            resolved -= 8
        one = tl.zeros((), tl.int64)
        first = tl.zeros((), tl.int32)
        while first < size:
            composite, inside = composites(
                scores, row, first, size, lowest, hit, candidate_keys, candidate_positions, TILE
            )
            inside = inside & ((composite >> tl.minimum(resolved, 63).to(tl.int64)) == prefix)
            one += tl.sum(tl.where(inside, composite, 0))
            first += TILE
        nothing = kept == 0
        tl.store(cuts + 2 * layer, tl.where(nothing, 1 << 32, (one >> INDEX_BITS) + lowest))
        index = LAST_INDEX - (one & LAST_INDEX)
        tl.store(cuts + 2 * layer + 1, tl.where(nothing, -1, index))
        tl.store(done + layer, 1)
