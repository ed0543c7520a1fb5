"""The mask of the best of each group, packed: one bit for each weight."""

import triton
import triton.language as tl

from .select_layer import ordered_key


@triton.jit
def group_bits_kernel(
    scores,
    apart,
    bits,
    numel,
    words,
    KEPT: tl.constexpr,
    GROUP: tl.constexpr,
    RAW: tl.constexpr,
    WORDS: tl.constexpr,
):
    """A block packs WORDS words of 64 weights, as four runs of 16: one int16 of ``bits`` each.

    The GROUP scores of a group lie ``apart`` from each other; one is kept where fewer than KEPT of the others beat it,
    larger ones and of its equals the earlier. They are read once from memory: the other 2 (GROUP - 1) times from where
    their neighbours in the block, or in the next, have brought them.
    """
    run = tl.program_id(0).to(tl.int64) * (4 * WORDS) + tl.arange(0, 4 * WORDS)  # [4 * WORDS]
    lane = tl.arange(0, 16)[None, :]  # [1, 16]
    index = run[:, None] * 16 + lane  # [4 * WORDS, 16]
    inside = index < numel
    member = (index // apart) % GROUP  # [4 * WORDS, 16]
    own = ordered_key(tl.load(scores + index, mask=inside, other=0.0), RAW)
    beaten = tl.zeros((4 * WORDS, 16), tl.int32)
    for d in range(1, GROUP):
        later = inside & (member + d < GROUP)
        key = ordered_key(tl.load(scores + index + d * apart, mask=later, other=0.0), RAW)
        beaten += (later & (key > own)).to(tl.int32)
        earlier = inside & (member >= d)
        key = ordered_key(tl.load(scores + index - d * apart, mask=earlier, other=0.0), RAW)
        beaten += (earlier & (key >= own)).to(tl.int32)
    keep = inside & (beaten < KEPT)
    packed = tl.sum(tl.where(keep, 1 << lane, 0), 1)  # [4 * WORDS]
    tl.store(bits + run, packed.to(tl.int16), mask=run < 4 * words)
