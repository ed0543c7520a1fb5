"""Depthwise convolutions, one input channel to a filter: no reduction over channels, so no tensor cores.

    out[p, c] = sum over taps t and the filters o of channel c of (W*M)[o, t] * src[pixel(p, t), channel(o)]
    dW_eff[o, t] = sum over pixels p of dY[p, o] * X[pixel(p, t), channel(o)]

Tiles are pixels by channels, channels inside, where channels_last memory is contiguous. A filter and its bits are read
once per tile and tap; the source is read once per tap, through L1. Pixels, phases and taps as in the masked product.
"""

import triton
import triton.language as tl

from .bits import bit_of
from .mask import bounds, kept


@triton.jit
def depthwise_product_kernel(
    src,
    src_strides,  # n, c, h, w
    src_size,  # h, w
    weight,
    weight_strides,  # o, tap row, tap column
    signs,  # of the weight, packed, or None
    scores,  # as the weight, or the packed mask
    score_strides,
    index_strides,  # logical index of a weight: o, tap row, tap column, first
    cut,
    bias,
    out,
    out_strides,  # n, c, h, w
    out_size,  # h, w
    pixels,
    geometry,  # step_h, step_w, offset_h, offset_w, pitch_h, pitch_w
    CHANNELS: tl.constexpr,  # of out
    FILTERS: tl.constexpr,  # that end in one channel of out: 1 forward, the multiplier backward
    SHARED: tl.constexpr,  # filters that start from one channel of src: the multiplier forward, 1 backward
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    OF: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)  # [BP]
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)  # [BC]
    p_inside = p < pixels
    c_inside = c < CHANNELS
    o_w = p % out_size[1]
    o_h = (p // out_size[1]) % out_size[0]
    image = (p // (out_size[0] * out_size[1])).to(tl.int64)
    h0 = o_h * geometry[0] + geometry[2]
    w0 = o_w * geometry[1] + geometry[3]
    if signs is not None:
        magnitude = tl.load(weight).to(tl.float32)
    if OF != "bits":
        cut_bounds = bounds(cut, OF)

    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for i in range(FILTERS * TAPS_H * TAPS_W):
        kh = (i // TAPS_W) % TAPS_H
        kw = i % TAPS_W
        o = c * FILTERS + i // (TAPS_H * TAPS_W)  # [BC]
        index = o * index_strides[0] + kh * index_strides[1] + kw * index_strides[2] + index_strides[3]
        if signs is None:
            p_weight = weight + o * weight_strides[0] + kh * weight_strides[1] + kw * weight_strides[2]
            b_weight = tl.load(p_weight, mask=c_inside, other=0.0)
        else:
            b_weight = tl.where(bit_of(signs, index, c_inside), -magnitude, magnitude)
        if OF == "bits":
            keep = bit_of(scores, index, c_inside)
        else:
            p_scores = scores + o * score_strides[0] + kh * score_strides[1] + kw * score_strides[2]
            keep = kept(tl.load(p_scores, mask=c_inside, other=0.0), index <= cut_bounds[2], cut_bounds, OF)
        masked = tl.where(keep, b_weight, 0.0).to(src.dtype.element_ty).to(tl.float32)  # [BC]

        h = h0 + kh * geometry[4]  # [BP]
        w = w0 + kw * geometry[5]
        in_image = (h >= 0) & (h < src_size[0]) & (w >= 0) & (w < src_size[1]) & p_inside
        src_p = image * src_strides[0] + h * src_strides[2] + w * src_strides[3]
        p_src = src + src_p[:, None] + (o // SHARED)[None, :] * src_strides[1]  # [BP, BC]
        b_src = tl.load(p_src, mask=in_image[:, None] & c_inside[None, :], other=0.0)
        acc += b_src.to(tl.float32) * masked[None, :]

    if BIAS:
        acc += tl.load(bias + c, mask=c_inside, other=0.0).to(tl.float32)[None, :]
    out_p = image * out_strides[0] + o_h * out_strides[2] + o_w * out_strides[3]
    p_out = out + out_p[:, None] + c[None, :] * out_strides[1]
    tl.store(p_out, acc.to(out.dtype.element_ty), mask=p_inside[:, None] & c_inside[None, :])


@triton.jit
def depthwise_weight_grad_kernel(
    dy,
    dy_strides,  # n, c, h, w
    dy_size,  # h, w
    x,
    x_strides,  # n, c, h, w
    x_size,  # h, w
    pixels,
    geometry,  # step_h, step_w, offset_h, offset_w, pitch_h, pitch_w
    partials,  # float32 [split, o, tap]
    FILTERS: tl.constexpr,
    SHARED: tl.constexpr,  # filters that start from one channel of x
    TAPS: tl.constexpr,
    KW: tl.constexpr,
    STEPS: tl.constexpr,  # of one split
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    o = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)  # [BC]
    tap = tl.program_id(1)
    split = tl.program_id(2)
    o_inside = o < FILTERS
    kh = (tap // KW) * geometry[4] + geometry[2]
    kw = (tap % KW) * geometry[5] + geometry[3]

    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for i in range(STEPS):
        p = (split * STEPS + i) * BLOCK_P + tl.arange(0, BLOCK_P)  # [BP]
        p_inside = p < pixels
        o_w = p % dy_size[1]
        o_h = (p // dy_size[1]) % dy_size[0]
        image = (p // (dy_size[0] * dy_size[1])).to(tl.int64)
        h = o_h * geometry[0] + kh
        w = o_w * geometry[1] + kw
        in_image = (h >= 0) & (h < x_size[0]) & (w >= 0) & (w < x_size[1]) & p_inside
        inside = in_image[:, None] & o_inside[None, :]  # [BP, BC]
        dy_p = image * dy_strides[0] + o_h * dy_strides[2] + o_w * dy_strides[3]
        x_p = image * x_strides[0] + h * x_strides[2] + w * x_strides[3]
        b_dy = tl.load(dy + dy_p[:, None] + o[None, :] * dy_strides[1], mask=inside, other=0.0)
        b_x = tl.load(x + x_p[:, None] + (o // SHARED)[None, :] * x_strides[1], mask=inside, other=0.0)
        acc += b_dy.to(tl.float32) * b_x.to(tl.float32)
    tl.store(partials + (split * FILTERS + o) * TAPS + tap, tl.sum(acc, 0), mask=o_inside)
