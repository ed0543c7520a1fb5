"""Gradient of the effective weight, with the straight-through gradients in the epilogue; linear and convolution.

    dW_eff[m, c, t] = sum over pixels p of dY[m, p] * X[c, pixel(p, t)]
    dS = dW_eff * W * map'(S)        dW = dW_eff * M, or dW_eff

               p                       c, at one tap             c, at one tap
          +-----------+            +--------------+          +--------------+
        m |    dY     |    x     p |   X, tap t   |   =    m |    dW_eff    |  -> dS, dW
          +-----------+            +--------------+          +--------------+

dW_eff stays in the accumulators: no weight-sized temporary. Where the weight has too few tiles to fill the device, the
pixels are split; the float32 partial sums are then added in a fixed order by ``sum_grads_kernel``, which holds the same
epilogue. FOLD packs taps and channels into the columns of one tile, for layers with few channels.
"""

import triton
import triton.language as tl

from .bits import bit_of, places, tile_of_bits
from .mask import bounds, kept
from .masked_product import tile_of


@triton.jit
def score_map_derivative(scores, OF: tl.constexpr):
    if OF == "abs":
        return tl.where(scores > 0, 1.0, tl.where(scores < 0, -1.0, scores))
    if OF == "sigmoid":
        p = 1 / (1 + tl.exp(-scores))
        return p * (1 - p)
    return tl.full(scores.shape, 1.0, tl.float32)


@triton.jit
def some_have_no_sign(score_signs, numel):
    """Bool scalar: whether one of ``numel`` scores is 0 or NaN, so that their sign plane does not tell map'."""
    return (tl.load(score_signs + (numel + 63) // 64 * 2 + 1) >> 24) != 0


@triton.jit
def at(base, strides, o, c, kh, kw):
    """Addresses of the weights (o, c, kh, kw) in a tensor of these four strides."""
    return base + o * strides[0] + c * strides[1] + kh * strides[2] + kw * strides[3]


@triton.jit
def filters_bits(
    packed,
    row,  # [BM, 1]: the filters' first bits
    bit,  # [1, BN], or [BM, BN]: of each weight, from there on
    inside,
    run,
    runs_inside,
    RUNS: tl.constexpr,  # whether neighbours along the tile's columns are neighbours in memory
    RUN: tl.constexpr,
    WITHIN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Bool [BM, BN]: the tile's bits of packed filters."""
    words, first = packed + (row >> 5), (row & 31).to(tl.int32)
    if RUNS:
        place = places(packed, 1, RUN, BLOCK_M, BLOCK_N, False)
        tile = tile_of_bits(words, first + run[None, :], runs_inside, place, 1, RUN, WITHIN, BLOCK_M, BLOCK_N)
    else:
        tile = bit_of(words, first + bit, inside)
    return tile


@triton.jit
def store_grads(
    dw_eff,
    inside,
    o,
    c,
    kh,
    kw,
    weight,
    weight_strides,
    negative,  # bool tile, the signs of a weight that is one number; or None
    scores,  # as the weight, or the packed mask
    score_strides,
    falling,  # bool tile, the signs of the scores; or None
    unsigned,  # bool scalar: ``some_have_no_sign``, or True where there is no such plane
    index_strides,
    cut,
    ds,
    ds_strides,
    dw,
    dw_strides,
    OF: tl.constexpr,
    SCORE_GRAD: tl.constexpr,
    WEIGHT_GRAD: tl.constexpr,
):
    by_sign: tl.constexpr = falling is not None
    if (SCORE_GRAD and not by_sign) or (WEIGHT_GRAD == "kept" and OF != "bits"):
        b_scores = tl.load(at(scores, score_strides, o, c, kh, kw), mask=inside, other=0.0)
    if SCORE_GRAD:
        if negative is None:
            b_weight = tl.load(at(weight, weight_strides, o, c, kh, kw), mask=inside, other=0.0).to(tl.float32)
        else:
            magnitude = tl.load(weight).to(tl.float32)
            b_weight = tl.where(negative, -magnitude, magnitude)
        b_ds = dw_eff * b_weight
        if not by_sign:
            b_ds *= score_map_derivative(b_scores, OF)
        elif unsigned:
            b_scores = tl.load(at(scores, score_strides, o, c, kh, kw), mask=inside, other=0.0)
            b_ds *= score_map_derivative(b_scores, OF)
        else:
            b_ds = tl.where(falling, -b_ds, b_ds)
        tl.store(at(ds, ds_strides, o, c, kh, kw), b_ds, mask=inside)
    if WEIGHT_GRAD != "none":
        if WEIGHT_GRAD == "kept":
            index = at(0, index_strides, o, c, kh, kw)
            if OF == "bits":
                keep = bit_of(scores, index, inside)
            else:
                cut_bounds = bounds(cut, OF)
                keep = kept(b_scores, index <= cut_bounds[2], cut_bounds, OF)
            dw_eff = tl.where(keep, dw_eff, 0.0)
        tl.store(at(dw, dw_strides, o, c, kh, kw), dw_eff.to(dw.dtype.element_ty), mask=inside)


@triton.jit
def weight_grad_kernel(
    dy,
    dy_strides,  # n, c, h, w
    dy_size,  # h, w
    x,
    x_strides,  # n, c, h, w
    x_size,  # h, w
    pixels,
    geometry,  # step_h, step_w, offset_h, offset_w, pitch_h, pitch_w
    partials,  # float32 [split, o, c, kh, kw], or None where there is one split
    numel,
    weight,
    weight_strides,
    signs,  # of the weight, packed, or None
    scores,
    score_strides,
    score_signs,  # packed, or None: ``ops``
    index_strides,
    cut,
    ds,
    ds_strides,
    dw,
    dw_strides,
    MC: tl.constexpr,
    KC: tl.constexpr,
    KW: tl.constexpr,
    TAPS: tl.constexpr,
    OF: tl.constexpr,
    SCORE_GRAD: tl.constexpr,
    WEIGHT_GRAD: tl.constexpr,
    FOLD: tl.constexpr,
    RUN: tl.constexpr,  # how a tile reads packed signs: ``tile_of_bits``
    WITHIN: tl.constexpr,
    STEPS: tl.constexpr,  # of one split
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BAND: tl.constexpr,
):
    PER_TAP: tl.constexpr = (KC + BLOCK_N - 1) // BLOCK_N
    COLUMNS: tl.constexpr = (TAPS * KC + BLOCK_N - 1) // BLOCK_N if FOLD else TAPS * PER_TAP
    group = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    i_m, i_n = tile_of(tl.program_id(0), tl.cdiv(MC, BLOCK_M), COLUMNS, BAND)

    m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BM]
    m_inside = m < MC
    if FOLD:
        column = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        c = column % KC  # [BN]
        tap = (column // KC)[None, :]  # [1, BN]
        c_inside = column < TAPS * KC
    elif TAPS == 1:
        c = i_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BN]
        tap = 0
        c_inside = c < KC
    else:
        c = (i_n % PER_TAP) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BN]
        tap = i_n // PER_TAP
        c_inside = c < KC
    kh = tap // KW
    kw = tap % KW
    o = (group * MC + m)[:, None]  # [BM, 1]
    dy_m = dy + o * dy_strides[1]
    x_c = x + (group * KC + c)[None, :] * x_strides[1]  # [1, BN]
    tap_h = kh * geometry[4] + geometry[2]
    tap_w = kw * geometry[5] + geometry[3]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for i in range(STEPS):
        p = (split * STEPS + i) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BK]
        p_inside = p < pixels
        o_w = p % dy_size[1]
        o_h = (p // dy_size[1]) % dy_size[0]
        image = (p // (dy_size[0] * dy_size[1])).to(tl.int64)
        dy_p = image * dy_strides[0] + o_h * dy_strides[2] + o_w * dy_strides[3]
        b_dy = tl.load(dy_m + dy_p[None, :], mask=m_inside[:, None] & p_inside[None, :], other=0.0)  # [BM, BK]

        h = (o_h * geometry[0])[:, None] + tap_h  # [BK, 1], or [BK, BN] where folded
        w = (o_w * geometry[1])[:, None] + tap_w
        in_image = (h >= 0) & (h < x_size[0]) & (w >= 0) & (w < x_size[1]) & p_inside[:, None]
        p_x = x_c + (image * x_strides[0])[:, None] + h * x_strides[2] + w * x_strides[3]
        b_x = tl.load(p_x, mask=in_image & c_inside[None, :], other=0.0)  # [BK, BN]
        acc = tl.dot(b_dy.to(DOT), b_x.to(DOT), acc, input_precision=PRECISION)  # [BM, BN]

    inside = m_inside[:, None] & c_inside[None, :]
    column = c.to(tl.int64)[None, :]
    if partials is not None:
        p_partial = at(partials + split.to(tl.int64) * numel, index_strides, o, column, kh, kw)
        tl.store(p_partial, acc, mask=inside)
    else:
        negative = None
        falling = None
        unsigned = True
        if signs is not None or score_signs is not None:
            row = o.to(tl.int64) * index_strides[0]  # [BM, 1]
            bit = kh * index_strides[2] + kw * index_strides[3] + c[None, :] * index_strides[1]
            run = i_n * BLOCK_N + RUN * tl.arange(0, BLOCK_N // RUN)
            runs_inside = m_inside[:, None] & (run < KC)[None, :]  # [BM, BN / RUN]
        if SCORE_GRAD and signs is not None:
            negative = filters_bits(signs, row, bit, inside, run, runs_inside, TAPS == 1, RUN, WITHIN, BLOCK_M, BLOCK_N)
        if SCORE_GRAD and score_signs is not None:
            unsigned = some_have_no_sign(score_signs, numel)
            falling = filters_bits(
                score_signs, row, bit, inside, run, runs_inside, TAPS == 1, RUN, WITHIN, BLOCK_M, BLOCK_N
            )
        store_grads(
            acc,
            inside,
            o,
            column,
            kh,
            kw,
            weight,
            weight_strides,
            negative,
            scores,
            score_strides,
            falling,
            unsigned,
            index_strides,
            cut,
            ds,
            ds_strides,
            dw,
            dw_strides,
            OF,
            SCORE_GRAD,
            WEIGHT_GRAD,
        )


@triton.jit
def sum_grads_kernel(
    partials,  # float32 [split, o, c, kh, kw]
    size,  # c, kh, kw
    numel,
    weight,
    weight_strides,
    signs,  # of the weight, packed, or None
    scores,
    score_strides,
    score_signs,  # packed, or None: ``ops``
    index_strides,
    cut,
    ds,
    ds_strides,
    dw,
    dw_strides,
    OF: tl.constexpr,
    SCORE_GRAD: tl.constexpr,
    WEIGHT_GRAD: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds the splits in their order, the same bits on every run, and stores the straight-through gradients."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    index = first + tl.arange(0, BLOCK)  # [B]
    inside = index < numel
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(SPLITS):
        acc += tl.load(partials + split * numel + index, mask=inside, other=0.0)
    kw = index % size[2]
    kh = (index // size[2]) % size[1]
    c = (index // (size[2] * size[1])) % size[0]
    o = index // (size[2] * size[1] * size[0])
    negative = None
    falling = None
    unsigned = True
    if SCORE_GRAD and signs is not None:
        negative = bit_of(signs + first // 32, tl.arange(0, BLOCK), inside)
    if SCORE_GRAD and score_signs is not None:
        unsigned = some_have_no_sign(score_signs, numel)
        falling = bit_of(score_signs + first // 32, tl.arange(0, BLOCK), inside)
    store_grads(
        acc,
        inside,
        o,
        c,
        kh,
        kw,
        weight,
        weight_strides,
        negative,
        scores,
        score_strides,
        falling,
        unsigned,
        index_strides,
        cut,
        ds,
        ds_strides,
        dw,
        dw_strides,
        OF,
        SCORE_GRAD,
        WEIGHT_GRAD,
    )
