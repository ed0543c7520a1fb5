"""Bernoulli masks, packed: the integers of ``reference.draw``, bit for bit.

Philox4x32-10 is Triton's own; the exponential is computed in integers, so that no rounding mode can change a mask.
"""

import triton
import triton.language as tl


@triton.jit
def multiply_high(a, b):
    return (a.to(tl.uint64) * b >> 32).to(tl.uint32)


@triton.jit
def exp_minus(magnitude):
    """exp(-|s|) in units of 2^-31, uint32; ``magnitude``: bits of |s|, 22 and above give 0."""
    t = tl.minimum(magnitude, 0x41B00000).to(tl.float32, bitcast=True)
    fixed = (t * 67108864.0).to(tl.int32).to(tl.uint32)
    exponent = multiply_high(fixed, 3098164009)
    fraction = exponent << 7
    power = tl.full(magnitude.shape, 236086, tl.uint32)
    power = 2743352 - multiply_high(power, fraction)
    power = 20577648 - multiply_high(power, fraction)
    power = 119168801 - multiply_high(power, fraction)
    power = 515878639 - multiply_high(power, fraction)
    power = 1488522040 - multiply_high(power, fraction)
    power = 0x80000000 - multiply_high(power, fraction)
    return power >> (exponent >> 25)


@triton.jit
def drawn(score_bits, random):
    """Bool tile: u < sigmoid(s) for u = (random / 2^8 + 1/2) / 2^24; never for NaN."""
    magnitude = score_bits & 0x7FFFFFFF
    u = (2 * (random >> 8) + 1).to(tl.uint64)
    rest = (1 << 25) - u
    odds = exp_minus(magnitude).to(tl.uint64)
    positive = score_bits == magnitude
    kept = tl.where(positive, u * odds < rest << 31, u << 31 < rest * odds)
    return kept & (magnitude <= 0x7F800000)


@triton.jit
def draw_kernel(scores, seed, bits, numel, words, WORDS: tl.constexpr):
    """A block draws WORDS words of 64 weights; a run of 16 weights of a word is one int16 of ``bits``."""
    word = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)[:, None]  # [WORDS, 1]
    lane = tl.arange(0, 16)[None, :]  # [1, 16]
    block = word * 16 + lane  # [WORDS, 16]
    low, high = (block & 0xFFFFFFFF).to(tl.uint32), (block >> 32).to(tl.uint32)
    zero = tl.zeros_like(low)
    r0, r1, r2, r3 = tl.philox(tl.load(seed).to(tl.uint64), low, high, zero, zero, 10)
    for run in tl.static_range(4):
        random = r0 if run == 0 else r1 if run == 1 else r2 if run == 2 else r3
        index = word * 64 + run * 16 + lane  # [WORDS, 16]
        inside = index < numel
        s = tl.load(scores + index, mask=inside, other=0.0)
        kept = drawn(s.to(tl.uint32, bitcast=True), random) & inside
        packed = tl.sum(tl.where(kept, 1 << lane, 0), 1)[:, None]  # [WORDS, 1]
        tl.store(bits + word * 4 + run, packed.to(tl.int16), mask=word < words)
