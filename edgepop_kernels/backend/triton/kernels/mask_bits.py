"""The mask of a cut, packed: one bit for each weight."""

import triton
import triton.language as tl

from .mask import bounds, kept


@triton.jit
def mask_bits_kernel(scores, cut, bits, numel, words, OF: tl.constexpr, WORDS: tl.constexpr):
    """A block packs WORDS words of 64 weights, as four runs of 16: one int16 of ``bits`` each."""
    run = tl.program_id(0).to(tl.int64) * (4 * WORDS) + tl.arange(0, 4 * WORDS)  # [4 * WORDS]
    lane = tl.arange(0, 16)[None, :]  # [1, 16]
    index = run[:, None] * 16 + lane  # [4 * WORDS, 16]
    inside = index < numel
    cut_bounds = bounds(cut, OF)
    s = tl.load(scores + index, mask=inside, other=0.0)
    keep = kept(s, index <= cut_bounds[2], cut_bounds, OF) & inside
    packed = tl.sum(tl.where(keep, 1 << lane, 0), 1)  # [4 * WORDS]
    tl.store(bits + run, packed.to(tl.int16), mask=run < 4 * words)
