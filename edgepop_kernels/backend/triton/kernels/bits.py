"""Packed bits, of a mask or of signs, as a tile of weights wants them: read by the word.

Flat logical index i is bit i % 8 of byte i // 8, hence bit i % 32 of little-endian word i // 32. Along one axis of a
tile of a product the index counts up by one, and a word is loaded for a run of up to 32 weights:

    from the run's first bit on      word  ......oo oooooooo  following  ........ .....ooo
    following:word >> bit % 32       run   ...ooooo oooooooo  one bit of it to each weight

Filters of several taps are copied for that first, channels inside (``channels_inside_kernel``). Words, for loads of
less than four bytes stay out of Triton's pipeline: each step of a loop would wait for memory.
"""

import triton
import triton.language as tl


@triton.jit
def word_of(words, bit, inside):
    """uint32 of the shape of ``bit``: the word in which it is, counted from this address; 0 where not ``inside``."""
    return tl.load(words + (bit >> 5), mask=inside, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def bit_of(words, bit, inside):
    """Bool of the shape of ``bit``; False where not ``inside``."""
    return ((word_of(words, bit, inside) >> (bit & 31).to(tl.uint32)) & 1) != 0


@triton.jit
def channels_inside_kernel(
    bits,  # [rows, channels, taps]
    copied,  # [rows, ROW words of taps, padded channels]
    words,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    TAPS: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copies packed filters: of each row first one tap with all its channels, then the next."""
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [B]
    lane = tl.arange(0, 32)[None, :]  # [1, 32]
    place = (word % ROW)[:, None] * 32 + lane  # [B, 32]
    tap, channel = place // PADDED, place % PADDED
    inside = (word < words)[:, None] & (tap < TAPS) & (channel < CHANNELS)
    bit = (word // ROW).to(tl.int64)[:, None] * (CHANNELS * TAPS) + channel * TAPS + tap
    packed = tl.sum(tl.where(bit_of(bits, bit, inside), 1 << lane, 0), 1)  # [B]
    tl.store(copied + word, packed.to(tl.int32), mask=word < words)


@triton.jit
def places(
    words, RUN_M: tl.constexpr, RUN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, LOADED: tl.constexpr
):
    """int32 [BM, 1] or [1, BK]: where in its run a weight is; LOADED: as if it came from memory, at ``words``.

    Triton computes a tile in the layout of the tensor cores where all that it is made of is loaded or constant. What
    comes of ``tl.arange`` keeps it in another, to be exchanged through shared memory in each step: for sm_90 256
    instructions in place of 362, signs and bits forward. Where several warps share the rows of a tile (sm_80), each
    would compute them.
    """
    if RUN_K > 1:
        place = (tl.arange(0, BLOCK_K) % RUN_K)[None, :]
    else:
        place = (tl.arange(0, BLOCK_M) % RUN_M)[:, None]
    if LOADED:
        place = tl.load(words + tl.zeros_like(place), mask=place < 0, other=place)
    return place


@triton.jit
def run_of(words, bit, inside, RUN: tl.constexpr, WITHIN: tl.constexpr):
    """uint32 of the shape of ``bit``: the RUN bits from it on, lowest first."""
    run = word_of(words, bit, inside)
    if RUN < 32 or not WITHIN:
        shift = (bit & 31).to(tl.uint32)
        run = run >> shift
        if not WITHIN:
            run |= (word_of(words, bit + 32, inside) << 1) << (31 - shift)
    return run


@triton.jit
def tile_of_bits(
    words,
    bit,
    inside,
    place,
    RUN_M: tl.constexpr,
    RUN_K: tl.constexpr,
    WITHIN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Bool [BM, BK] of runs of RUN_M weights down or RUN_K across; False where not ``inside``.

    words, bit: the first bit of each run, counted from this address, together [BM / RUN_M, BK / RUN_K]; ``inside``
    likewise. place: ``places``. WITHIN: whether no run goes on in a second word.
    """
    if RUN_K > 1:
        run = run_of(words, bit, inside, RUN_K, WITHIN)[:, :, None]
        spread = tl.broadcast_to(run, (BLOCK_M, BLOCK_K // RUN_K, RUN_K))
    else:
        run = run_of(words, bit, inside, RUN_M, WITHIN)[:, None, :]
        spread = tl.broadcast_to(run, (BLOCK_M // RUN_M, RUN_M, BLOCK_K))
    return ((tl.reshape(spread, (BLOCK_M, BLOCK_K)) >> place.to(tl.uint32)) & 1) != 0
