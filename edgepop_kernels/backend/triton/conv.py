"""Masked convolutions. The gradient to the input is one masked product per stride phase, each a convolution of
stride 1 with the taps that reach its pixels: no atomics, no tap multiplied by zero."""

import torch

from .depthwise import depthwise_product, depthwise_weight_grad
from .grads import ParameterGrads
from .kernels.bits import channels_inside_kernel
from .launch import launch, taken_apart, words
from .product import LEAST_K, Axis, Filters, masked_product, weight_grad

_BLOCK = 32  # words that a program copies: 1024 bits


def _switch():
    return torch.backends.cudnn.conv.fp32_precision


def _format(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format


def _channels_inside(t):
    """An image or filters in a layout that is read in vectors of channels. A copy costs one pass over them; read as
    they are, every tap of every row or column of tiles would gather them element by element."""
    if t.shape[1] < LEAST_K or t.stride(1) == 1:
        return t
    return t.contiguous(memory_format=torch.channels_last)


def _filters_inside(weight, scores, of, signs):
    """(weight, scores, signs) as ``_channels_inside`` has them; what scores itself still does."""
    inside = _channels_inside(weight)
    if of == "bits":
        scores = _bits_inside(words(scores), weight.shape)
    else:
        scores = inside if scores is weight else _channels_inside(scores)
    return inside, scores, signs and signs._replace(words=_bits_inside(signs.words, weight.shape))


def _bits_inside(bits, shape):
    """Packed filters, of several taps in a copy with channels inside, as ``_bit_strides`` has it."""
    o, c, kh, kw = shape
    if kh * kw == 1:
        return bits
    row, *_, padded = _bit_strides(shape)
    numel = o * row // 32
    copied = torch.empty(numel + 1, dtype=torch.int32, device=bits.device)  # a run may end in the word after its row
    sizes = {"CHANNELS": c, "PADDED": padded, "TAPS": kh * kw, "ROW": row // 32, "BLOCK": _BLOCK}
    launch(channels_inside_kernel, (-(-numel // _BLOCK),), bits, (bits, copied, numel), **sizes)
    return copied


def _bit_strides(shape):
    """Of a bit's index, over (o, c, kh, kw). Channels of a tap begin a word, few are folded with taps."""
    _, c, kh, kw = shape
    if kh * kw == 1:
        return c, 1, 0, 0
    padded = c if c < LEAST_K else -(-c // 32) * 32
    return -(-padded * kh * kw // 32) * 32, 1, kw * padded, padded


def _logical_strides(shape):
    _, c, kh, kw = shape
    return c * kh * kw, kh * kw, kw, 1


def _forward_axes(weight, stride, padding, dilation):
    geometry = zip(weight.shape[2:], stride, padding, dilation, strict=True)
    return [Axis(kernel, s, -p, d) for kernel, s, p, d in geometry]


def masked_conv2d(x, weight, scores, cut, of, bias, stride, padding, dilation, groups, channels_last, signs=None):
    weight, signs = taken_apart(weight, scores, of, signs)
    spatial = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    )
    size = (x.shape[0], weight.shape[0], *spatial)
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=_format(channels_last))
    o, c = weight.shape[:2]
    m, axes = o // groups, _forward_axes(weight, stride, padding, dilation)
    if c == 1 and groups > 1:
        filters = _depthwise(weight, scores, cut, of, signs, slice(None), slice(None))
        depthwise_product(x, filters, bias, y, *axes, groups)
        return y
    weight, scores, signs = _filters_inside(weight, scores, of, signs)

    def index(row, channel, tap_row, tap_column):
        return row, channel, tap_row, tap_column, m * row, 0

    filters = _grouped(weight, scores, cut, of, signs, lambda t: t[:m], m, index)
    masked_product(_channels_inside(x), filters, bias, y, *axes, groups, _switch())
    return y


def _depthwise(weight, scores, cut, of, signs, taps_h, taps_w):
    kh, kw = weight.shape[2:]
    (row, _, row_step), (column, _, column_step) = taps_h.indices(kh), taps_w.indices(kw)
    index = (kh * kw, row_step * kw, column_step, row * kw + column)
    taps = (slice(None), 0, taps_h, taps_w)
    return weight[taps], words(scores) if of == "bits" else scores[taps], index, cut, of, signs


def _grouped(weight, scores, cut, of, signs, view, rows_per_group, index):
    packed = of == "bits"
    return Filters(
        view(weight),
        rows_per_group * weight.stride(0),
        scores if packed else view(scores),
        0 if packed else rows_per_group * scores.stride(0),
        index(*_logical_strides(weight.shape)),
        index(*_bit_strides(weight.shape)),
        cut,
        of,
        scores is weight,
        signs,
    )


def masked_conv2d_dx(dy, weight, scores, cut, of, x_size, stride, padding, dilation, groups, channels_last, signs=None):
    weight, signs = taken_apart(weight, scores, of, signs)
    dx = torch.empty(x_size, dtype=dy.dtype, device=dy.device, memory_format=_format(channels_last))
    o, c, kh, kw = weight.shape
    m = o // groups
    if c > 1 or groups == 1:
        dy = _channels_inside(dy)
        weight, scores, signs = _filters_inside(weight, scores, of, signs)
    for row in range(min(stride[0], x_size[2])):
        taps_h, axis_h = _phase(row, kh, stride[0], padding[0], dilation[0])
        for column in range(min(stride[1], x_size[3])):
            taps_w, axis_w = _phase(column, kw, stride[1], padding[1], dilation[1])
            pixels = dx[:, :, row :: stride[0], column :: stride[1]]
            if not axis_h.taps or not axis_w.taps:
                pixels.zero_()
                continue
            if c == 1 and groups > 1:
                filters = _depthwise(weight, scores, cut, of, signs, taps_h, taps_w)
                depthwise_product(dy, filters, None, pixels, axis_h, axis_w, groups)
                continue

            def phase(t, taps=(taps_h, taps_w)):
                return t[:m, :, taps[0], taps[1]].transpose(0, 1)

            def index(row, channel, tap_row, tap_column, taps=(taps_h, taps_w)):
                first = taps[0].start * tap_row + taps[1].start * tap_column
                return channel, row, taps[0].step * tap_row, taps[1].step * tap_column, m * row, first

            filters = _grouped(weight, scores, cut, of, signs, phase, m, index)
            masked_product(dy, filters, None, pixels, axis_h, axis_w, groups, _switch())
    return dx


def _phase(residue, kernel, stride, padding, dilation):
    """The taps that reach the pixels residue, residue + stride, ..., and where their gradients come from.

    Pixel i of the phase and tap k meet output pixel (residue + i * stride + padding - k * dilation) / stride.
    """
    taps = [k for k in range(kernel) if (residue + padding - k * dilation) % stride == 0]
    if not taps:
        return slice(0, 0, 1), Axis(0, 1, 0, 0)
    step = taps[1] - taps[0] if len(taps) > 1 else 1
    axis = Axis(len(taps), 1, (residue + padding - taps[0] * dilation) // stride, -step * dilation // stride)
    return slice(taps[0], taps[-1] + 1, step), axis


def masked_conv2d_dw(
    dy,
    x,
    weight,
    scores,
    cut,
    of,
    score_grad,
    weight_grad_of,
    stride,
    padding,
    dilation,
    groups,
    signs=None,
    score_signs=None,
):
    weight, signs = taken_apart(weight, scores, of, signs)
    axes = _forward_axes(weight, stride, padding, dilation)
    grads = ParameterGrads((weight, scores, cut, of, signs), score_grad, weight_grad_of, score_signs)
    if weight.shape[1] == 1 and groups > 1:
        return depthwise_weight_grad(dy, x, grads, *axes, groups)
    return weight_grad(_channels_inside(dy), _channels_inside(x), grads, *axes, groups, _switch())
