"""Launches depthwise convolutions: filters with one input channel, any number of them to a channel."""

from .kernels.depthwise import depthwise_product_kernel, depthwise_weight_grad_kernel
from .launch import launch
from .product import geometry, pixels_of, rounded_up

_PIXELS, _CHANNELS = 64, 64  # of a tile
_MOST_SPLITS = 64


def depthwise_product(src, filters, bias, out, rows, columns, groups: int) -> None:
    """out (n, c, h, w) at the pixels of the two axes; filters: views (o, taps_h, taps_w) of all groups, as tuple
    (weight, scores or packed mask, index strides, cut, of, signs)."""
    weight, scores, index, cut, of, signs = filters
    channels, pixels = out.shape[1], pixels_of(out, src)
    forward = src.shape[1] == groups
    multiplier = weight.shape[0] // groups
    args = (
        src,
        src.stride(),
        tuple(src.shape[2:]),
        *((weight, weight.stride(), None) if signs is None else signs.args),
        scores,
        None if of == "bits" else scores.stride(),
        index,
        cut,
        bias,
        out,
        out.stride(),
        tuple(out.shape[2:]),
        pixels,
        geometry(rows, columns),
    )
    launch(
        depthwise_product_kernel,
        (-(-pixels // _PIXELS), -(-channels // _CHANNELS)),
        src,
        args,
        CHANNELS=channels,
        FILTERS=1 if forward else multiplier,
        SHARED=multiplier if forward else 1,
        TAPS_H=weight.shape[1],
        TAPS_W=weight.shape[2],
        OF=of,
        BIAS=bias is not None,
        BLOCK_P=_PIXELS,
        BLOCK_C=_CHANNELS,
    )


def depthwise_weight_grad(dy, x, grads, rows, columns, groups: int):
    """(dS, dW) of filters (o, 1, kh, kw)."""
    filters, _, kh, kw = grads.shape
    pixels = pixels_of(dy, x)
    if pixels == 0:
        return grads.of_nothing()
    per_split = rounded_up(-(-pixels // (_PIXELS * _MOST_SPLITS)))
    partials = grads.partials(-(-pixels // (_PIXELS * per_split)))
    images = (dy, dy.stride(), tuple(dy.shape[2:]), x, x.stride(), tuple(x.shape[2:]), pixels, geometry(rows, columns))
    launch(
        depthwise_weight_grad_kernel,
        (-(-filters // _CHANNELS), kh * kw, len(partials)),
        x,
        (*images, partials),
        FILTERS=filters,
        SHARED=filters // groups,
        TAPS=kh * kw,
        KW=kw,
        STEPS=per_split,
        BLOCK_P=_PIXELS,
        BLOCK_C=_CHANNELS,
    )
    return grads.of_sum(partials)
