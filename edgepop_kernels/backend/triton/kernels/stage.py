"""The effective weight in memory: W*M rounded to the activations' dtype, for the vendor's libraries.

Reads W and S once, writes once, in the order of the workspace: 4 + 4 + 2 bytes a weight for float32 W and half x.
"""

import triton
import triton.language as tl

from .bits import bit_of
from .mask import bounds, kept


@triton.jit
def stage_kernel(
    weight,
    weight_strides,  # a, b, c, d: the dimensions in the order of the workspace's memory
    signs,  # of the weight, packed, or None
    scores,  # as the weight, or the packed mask
    score_strides,
    index_strides,
    size,  # b, c, d
    numel,
    cut,
    workspace,
    OF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [B]
    inside = i < numel
    d = i % size[2]
    c = (i // size[2]) % size[1]
    b = (i // (size[2] * size[1])) % size[0]
    a = i // (size[2] * size[1] * size[0])
    index = a * index_strides[0] + b * index_strides[1] + c * index_strides[2] + d * index_strides[3]
    if signs is None:
        weight_d = a * weight_strides[0] + b * weight_strides[1] + c * weight_strides[2] + d * weight_strides[3]
        b_weight = tl.load(weight + weight_d, mask=inside, other=0.0)
    else:
        magnitude = tl.load(weight).to(tl.float32)
        b_weight = tl.where(bit_of(signs, index, inside), -magnitude, magnitude)
    if OF == "bits":
        keep = bit_of(scores, index, inside)
    else:
        p_scores = scores + a * score_strides[0] + b * score_strides[1] + c * score_strides[2] + d * score_strides[3]
        cut_bounds = bounds(cut, OF)
        keep = kept(tl.load(p_scores, mask=inside, other=0.0), index <= cut_bounds[2], cut_bounds, OF)
    tl.store(workspace + i, tl.where(keep, b_weight, 0.0).to(workspace.dtype.element_ty), mask=inside)
