"""Masked implicit GEMM: one kernel for the forward product and the gradient to the input, linear and convolution.

    out[m, p] = sum over taps t and channels k of (W*M)[m, k, t] * src[k, pixel(p, t)]

The masked weight is operand A: the tensor cores of sm_90 take only A from registers, so its tile is masked on the way
and never returns to shared memory. Pixels are the columns; the output is written transposed.

                 k                      p                     p
            +---------+          +-------------+        +-------------+
          m |  W * M  |    x   k |  src, tap t |   =  m |     out     |
            +---------+          +-------------+        +-------------+

The pixel a column reads at tap (i, j) is affine: h = oh * step_h + offset_h + i * pitch_h, w likewise. That is a
forward convolution (step = stride, pitch = dilation), and equally one stride phase of its transpose (step = 1): the
launcher slices output and filters by phase, and the kernel knows strides only. A linear layer has one tap.

The reduction runs over KT * ceil(KC / BLOCK_K) steps, tap by tap with the channels inside, a number known to the
compiler: with a bound known only at run time, ptxas makes every wgmma wait for the one before. FOLD packs taps and
channels into one axis, for layers whose channels would leave most of a step empty.
Traffic: each tile of W and S is read once per column of tiles, src once per row of tiles, both through L2.

The mask follows from scores and a cut, or is packed; a weight of one magnitude is that number and packed signs. Bits
are read by the word (``bits``), where all else is loaded in the layout that the tensor cores read. Instructions in a
step of the loop, and shared memory, for sm_90 (tiles 128x128x64, triton 3.9, 4096 x 4096, bfloat16 x):

                                  forward   backward
    weight and scores                 430        455    192 KB
    weight and packed mask            279        308    114 KB    (gathered by the byte: 828 and 698)
    signs and scores                  439        449    130 KB
    signs and packed mask             256        261     52 KB
"""

import triton
import triton.language as tl

from .bits import places, tile_of_bits
from .mask import bounds, kept


@triton.jit
def tile_of(program, rows, columns, BAND: tl.constexpr):
    """(row, column) of a tile: bands of BAND rows, column by column, so that tiles in flight share both operands."""
    band = program // (BAND * columns)
    first = band * BAND
    height = tl.minimum(rows - first, BAND)
    within = program % (BAND * columns)
    return first + within % height, within // height


@triton.jit
def masked_product_kernel(
    src,
    src_strides,  # n, c, h, w, group
    src_size,  # h, w
    weight,  # or, where there are signs, one number
    weight_strides,  # m, k, tap row, tap column, group
    signs,  # of the weight, packed, or None
    scores,  # as the weight, or the packed mask
    score_strides,
    index_strides,  # logical index of a weight: m, k, tap row, tap column, group, first
    bit_strides,  # likewise, of its bit in the packed mask and in signs: 1 along k, or along m
    cut,
    bias,
    out,
    out_strides,  # n, c, h, w, group, split
    out_size,  # h, w
    pixels,
    geometry,  # step_h, step_w, offset_h, offset_w, pitch_h, pitch_w
    MC: tl.constexpr,
    KC: tl.constexpr,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    OF: tl.constexpr,
    SAME: tl.constexpr,  # the weight scores itself
    RUN_M: tl.constexpr,  # how a tile reads packed bits: ``tile_of_bits``
    RUN_K: tl.constexpr,
    WITHIN: tl.constexpr,
    LOADED: tl.constexpr,  # as in ``places``
    BIAS: tl.constexpr,
    FOLD: tl.constexpr,
    STEPS: tl.constexpr,  # of one split
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BAND: tl.constexpr,
):
    TAPS: tl.constexpr = TAPS_H * TAPS_W
    PER_TAP: tl.constexpr = (KC + BLOCK_K - 1) // BLOCK_K
    group = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    i_m, i_n = tile_of(tl.program_id(0), tl.cdiv(MC, BLOCK_M), tl.cdiv(pixels, BLOCK_N), BAND)

    m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BM]
    m_inside = m < MC
    p = i_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BN]
    p_inside = p < pixels
    o_w = p % out_size[1]
    o_h = (p // out_size[1]) % out_size[0]
    image = (p // (out_size[0] * out_size[1])).to(tl.int64)
    h0 = (o_h * geometry[0] + geometry[2])[None, :]  # [1, BN]
    w0 = (o_w * geometry[1] + geometry[3])[None, :]

    src_p = src + group * src_strides[4] + (image * src_strides[0])[None, :]  # [1, BN]
    row = m.to(tl.int64)[:, None]  # [BM, 1]
    if signs is None:
        weight_m = weight + group * weight_strides[4] + row * weight_strides[0]
    else:
        magnitude = tl.load(weight + tl.zeros((1, 1), tl.int32)).to(tl.float32)
        plus = magnitude.to(src.dtype.element_ty).to(DOT)
        minus = (-magnitude).to(src.dtype.element_ty).to(DOT)
    if OF == "bits" or signs is not None:
        place = places(scores if signs is None else signs, RUN_M, RUN_K, BLOCK_M, BLOCK_K, LOADED)
        run_m = i_m * BLOCK_M + RUN_M * tl.arange(0, BLOCK_M // RUN_M)
        run_m_inside = run_m < MC
        bit_m = run_m.to(tl.int64)[:, None] * bit_strides[0] + group * bit_strides[4] + bit_strides[5]
        word_m = bit_m >> 5  # [BM / RUN_M, 1]
        bit_m = (bit_m & 31).to(tl.int32)
    if OF != "bits":
        scores_m = scores + group * score_strides[4] + row * score_strides[0]
        cut_bounds = bounds(cut, OF)
        index_m = row * index_strides[0] + group * index_strides[4] + index_strides[5]
        # The largest index within a row that still counts as tied: one 32-bit comparison per weight in the loop.
        room = tl.minimum(tl.maximum(cut_bounds[2] - index_m, -1), 0x7FFFFFFF).to(tl.int32)  # [BM, 1]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for i in range(STEPS):
        step = split * STEPS + i
        if FOLD:
            first_k, end_k = step * BLOCK_K, TAPS * KC
            folded = first_k + tl.arange(0, BLOCK_K)
            k = folded % KC  # [BK]
            k_inside = folded < end_k
            tap_src = (folded // KC)[:, None]  # [BK, 1]
            tap_weight = (folded // KC)[None, :]  # [1, BK]
        else:
            if TAPS == 1:
                first_k, end_k = step * BLOCK_K, KC
                tap_src = 0
            else:
                first_k = (step % PER_TAP) * BLOCK_K
                tap_src = step // PER_TAP
                end_k = tl.where(tap_src < TAPS, KC, 0)  # the last split may end early
            k = first_k + tl.arange(0, BLOCK_K)  # [BK]
            k_inside = k < end_k
            tap_weight = tap_src

        h = h0 + (tap_src // TAPS_W) * geometry[4]  # [1, BN], or [BK, BN] where folded
        w = w0 + (tap_src % TAPS_W) * geometry[5]
        in_image = (h >= 0) & (h < src_size[0]) & (w >= 0) & (w < src_size[1]) & p_inside[None, :]
        p_src = src_p + h * src_strides[2] + w * src_strides[3] + k[:, None] * src_strides[1]  # [BK, BN]
        b_src = tl.load(p_src, mask=in_image & k_inside[:, None], other=0.0)

        kh = tap_weight // TAPS_W
        kw = tap_weight % TAPS_W
        inside = m_inside[:, None] & k_inside[None, :]  # [BM, BK]
        if OF == "bits" or signs is not None:
            if RUN_K > 1:
                run_k = first_k + RUN_K * tl.arange(0, BLOCK_K // RUN_K)
                bit = bit_m + run_k[None, :]
                if not FOLD:
                    bit += kh * bit_strides[2] + kw * bit_strides[3]
                runs_inside = run_m_inside[:, None] & (run_k < end_k)[None, :]  # [BM, BK / RUN_K]
            else:
                bit = bit_m + kh * bit_strides[2] + kw * bit_strides[3] + k[None, :] * bit_strides[1]
                runs_inside = run_m_inside[:, None] & k_inside[None, :]  # [BM / RUN_M, BK]
        if signs is None:
            p_weight = weight_m + kh * weight_strides[2] + kw * weight_strides[3] + k[None, :] * weight_strides[1]
            b_weight = tl.load(p_weight, mask=inside, other=0.0)
        else:
            negative = tile_of_bits(signs + word_m, bit, runs_inside, place, RUN_M, RUN_K, WITHIN, BLOCK_M, BLOCK_K)
            b_weight = tl.where(negative, minus, plus)
        if OF == "bits":
            keep = tile_of_bits(scores + word_m, bit, runs_inside, place, RUN_M, RUN_K, WITHIN, BLOCK_M, BLOCK_K)
        else:
            if SAME:
                b_scores = b_weight
            else:
                p_scores = scores_m + kh * score_strides[2] + kw * score_strides[3] + k[None, :] * score_strides[1]
                b_scores = tl.load(p_scores, mask=inside, other=0.0)
            position = kh * index_strides[2] + kw * index_strides[3] + k[None, :] * index_strides[1]  # [1, BK]
            keep = kept(b_scores, position <= room, cut_bounds, OF)
        masked = tl.where(keep, b_weight, 0.0)
        if signs is None:
            masked = masked.to(src.dtype.element_ty).to(DOT)  # [BM, BK]
        acc = tl.dot(masked, b_src.to(DOT), acc, input_precision=PRECISION)  # [BM, BN]

    if BIAS:
        b_bias = tl.load(bias + group * MC + m, mask=m_inside, other=0.0)
        acc += b_bias.to(tl.float32)[:, None]
    out_p = image * out_strides[0] + o_h * out_strides[2] + o_w * out_strides[3]
    p_out = out + group * out_strides[4] + split * out_strides[5] + out_p[None, :] + row * out_strides[1]
    tl.store(p_out, acc.to(out.dtype.element_ty), mask=m_inside[:, None] & p_inside[None, :])


@triton.jit
def sum_splits_kernel(
    partials,  # float32 [split, n, h, w, c]
    bias,
    out,
    out_strides,  # n, c, h, w
    out_size,  # c, h, w
    numel,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = sum of the splits in their order, plus the bias: the same bits on every run."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [B]
    inside = i < numel
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(SPLITS):
        acc += tl.load(partials + split * numel + i, mask=inside, other=0.0)
    c = i % out_size[0]
    w = (i // out_size[0]) % out_size[2]
    h = (i // (out_size[0] * out_size[2])) % out_size[1]
    n = i // (out_size[0] * out_size[2] * out_size[1])
    if BIAS:
        acc += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    p_out = out + n * out_strides[0] + c * out_strides[1] + h * out_strides[2] + w * out_strides[3]
    tl.store(p_out, acc.to(out.dtype.element_ty), mask=inside)
