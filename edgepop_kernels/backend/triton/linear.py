"""Masked linear layers: the 1x1 convolution of images of one pixel, as views."""

import torch

from .grads import ParameterGrads
from .launch import taken_apart, words
from .product import INT32, POINT, Filters, masked_product, weight_grad


def _switch():
    return torch.backends.cuda.matmul.fp32_precision


def _image(t):
    """(..., C) -> (rows, C, 1, 1). Rows are images: the offset of an image is the one that takes 64 bits."""
    rows = t.reshape(-1, t.shape[-1])
    if (rows.shape[1] - 1) * rows.stride(1) >= INT32:
        rows = rows.contiguous()
    # Axes of one pixel: any stride will do, and 0 tells triton no less of an address than it knew.
    return rows.as_strided((*rows.shape, 1, 1), (*rows.stride(), 0, 0))


def _filters(weight, scores, cut, of, signs, transposed):
    weight, signs = taken_apart(weight, scores, of, signs)
    index = (1, weight.shape[1]) if transposed else (weight.shape[1], 1)
    index += (0, 0, 0, 0)

    def view(t):
        return (t.t() if transposed else t)[:, :, None, None]

    ranked = words(scores) if of == "bits" else view(scores)
    return Filters(view(weight), 0, ranked, 0, index, index, cut, of, scores is weight, signs)


def masked_linear(x, weight, scores, cut, of, bias, signs=None):
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    filters = _filters(weight, scores, cut, of, signs, transposed=False)
    masked_product(_image(x), filters, bias, _image(y), POINT, POINT, 1, _switch())
    return y


def masked_linear_dx(dy, weight, scores, cut, of, signs=None):
    dx = dy.new_empty(*dy.shape[:-1], weight.shape[1])
    filters = _filters(weight, scores, cut, of, signs, transposed=True)
    masked_product(_image(dy), filters, None, _image(dx), POINT, POINT, 1, _switch())
    return dx


def masked_linear_dw(dy, x, weight, scores, cut, of, score_grad, weight_grad_of, signs=None, score_signs=None):
    laid_out, signs = taken_apart(weight, scores, of, signs)
    mask = (laid_out[:, :, None, None], scores if of == "bits" else scores[:, :, None, None], cut, of, signs)
    grads = ParameterGrads(mask, score_grad, weight_grad_of, score_signs)
    ds, dw = weight_grad(_image(dy), _image(x), grads, POINT, POINT, 1, _switch())
    return ds.view(scores.shape) if score_grad else ds, dw.view(weight.shape) if weight_grad_of != "none" else dw
