"""Between which two keys the last kept score of a layer is likely to lie, by a sample of its scores."""

import triton
import triton.language as tl

from .select_layer import HIGHEST_KEY, keys_at, nth_smallest, word

_RUN = tl.constexpr(8)  # scores of a sample that are neighbours: a sector of memory
_DEVIATIONS = tl.constexpr(4.0)


@triton.jit
def sampled_end(scores, row, lower, SAMPLE: tl.constexpr):
    """The ``lower`` end, or the upper one, of the keys between which the last kept score is likely to lie; of all keys
    where the list has room for all of the layer's scores.

    Of each of SAMPLE / _RUN equal parts of the layer a run somewhere in it is read, so that no period in the scores, of
    channels or taps, is met in step.
    """
    runs: tl.constexpr = SAMPLE // _RUN
    numel = word(row + 1)
    end = tl.where(lower == 1, tl.zeros((), tl.uint32), HIGHEST_KEY)
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
            depth, _ = nth_smallest(keys ^ HIGHEST_KEY, rank, tl.full((), 32, tl.int32))
            end = depth ^ HIGHEST_KEY
    return end
