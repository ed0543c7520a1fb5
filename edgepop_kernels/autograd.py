"""The autograd Functions: one forward, one backward formula each (straight-through, Ramanujan et al. 2020, eq. 3).

    dX = dY applied to W*M        dS = dW_eff * W * map'(S)        dW = dW_eff * M, or dW_eff where W scores itself

Saved for backward: x, weight, scores as they are, and the cut (16 bytes) or the packed mask (1 bit per weight).

``update`` (None: there is none) is how an optimizer spends dS inside backward: ``optim.backward.Use``.
"""

import torch
from torch.autograd.function import once_differentiable

from . import ops
from .reference import map_derivative


def _save(ctx, x, weight, scores, cut, bits, of, update):
    """scores None: the weight scores itself (Discovering Neural Wirings), or ``bits`` are a fixed mask.

    ctx.wants: (dx wanted, dS wanted, which dW) from the inputs (x, weight, scores, ...) that require a gradient.
    """
    dx, dw, ds = ctx.needs_input_grad[:3]
    scores_itself = scores is None and bits is None
    ctx.wants = dx, ds, ("all" if scores_itself else "kept") if dw else "none"
    ctx.of, ctx.update = of, update if ds else None
    ctx.save_for_backward(x if ds or dw else None, weight, scores, cut, bits)


def _saved(ctx):
    """What ``_save`` kept. An optimizer that updates the scores is asked first whether this backward wants their
    gradient, and raises where it cannot be spent; then they are the very ones that it will write."""
    if ctx.update is None:
        return ctx.saved_tensors
    ctx.wants = ctx.wants[0], ctx.update.begin(ctx), ctx.wants[2]
    x, weight, scores, cut, bits = ctx.saved_tensors
    return x, weight, ctx.update.scores if ctx.wants[1] else scores, cut, bits


def _mask(weight, scores, cut, bits, of):
    """The mask as the ops take it: (weight, scores or packed bits, cut, of)."""
    if bits is not None:
        return weight, bits, None, "bits"
    return weight, weight if scores is None else scores, cut, of


def _parameter_grads(op, ctx, dy, x, weight, scores, cut, bits, *geometry):
    """(dW, dS), None for what is not asked for, and for a dS that an optimizer has spent. Last of all in a backward:
    scores may have changed after it."""
    (_, wants_ds, weight_grad), of = ctx.wants, ctx.of
    grads = getattr(ops, f"{op}_dw")

    def with_ds(cut, weight_grad):
        if ctx.update is None:
            return grads(dy, x, weight, scores, cut, of, True, weight_grad, *geometry)
        return None, ctx.update.spend(op, dy, x, weight, cut, of, weight_grad, *geometry)

    ds = dw = None
    if wants_ds and bits is None:
        ds, dw = with_ds(cut, weight_grad)
    else:
        if weight_grad != "none":
            _, dw = grads(dy, x, *_mask(weight, scores, cut, bits, of), False, weight_grad, *geometry)
        if wants_ds:  # the mask is in bits, map'(S) in the scores: one call for each
            ds, _ = with_ds(None, "none")
    return dw if weight_grad != "none" else None, ds


def _bias_grad(dy, channel_dim, bias_dtype):
    dims = [d for d in range(dy.dim()) if d != channel_dim % dy.dim()]
    total = torch.float64 if dy.dtype == torch.float64 else torch.float32
    return (dy.sum(dims, dtype=total) if dims else dy).to(bias_dtype)


class MaskedLinear(torch.autograd.Function):
    """y = x (W*M)^T + b for x of shape (..., in)."""

    @staticmethod
    def forward(ctx, x, weight, scores, cut, bits, of, bias, update):
        _save(ctx, x, weight, scores, cut, bits, of, update)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return ops.masked_linear(x, *_mask(weight, scores, cut, bits, of), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, *mask = _saved(ctx)
        dx = db = None
        if ctx.wants[0]:
            dx = ops.masked_linear_dx(dy, *_mask(*mask, ctx.of))
        if ctx.needs_input_grad[6]:
            db = _bias_grad(dy, -1, ctx.bias_dtype)
        dw, ds = _parameter_grads("masked_linear", ctx, dy, x, *mask)
        return dx, dw, ds, None, None, None, db, None


class MaskedConv2d(torch.autograd.Function):
    """y = conv2d(x, W*M) + b for x of shape (N, C, H, W)."""

    @staticmethod
    def forward(ctx, x, weight, scores, cut, bits, of, bias, geometry, x_channels_last, y_channels_last, update):
        _save(ctx, x, weight, scores, cut, bits, of, update)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.geometry, ctx.x_size, ctx.x_channels_last = geometry, x.shape, x_channels_last
        return ops.masked_conv2d(x, *_mask(weight, scores, cut, bits, of), bias, *geometry, y_channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, *mask = _saved(ctx)
        dx = db = None
        if ctx.wants[0]:
            dx = ops.masked_conv2d_dx(dy, *_mask(*mask, ctx.of), ctx.x_size, *ctx.geometry, ctx.x_channels_last)
        if ctx.needs_input_grad[6]:
            db = _bias_grad(dy, 1, ctx.bias_dtype)
        dw, ds = _parameter_grads("masked_conv2d", ctx, dy, x, *mask, *ctx.geometry)
        return dx, dw, ds, None, None, None, db, None, None, None, None


class StraightThrough(torch.autograd.Function):
    """A mask of the scores' shape, or the number of weights it keeps, in float32: dS = g * map'(S)."""

    @staticmethod
    def forward(ctx, scores, mask_or_count, of):
        ctx.of = of
        ctx.save_for_backward(scores)
        return mask_or_count.to(torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (scores,) = ctx.saved_tensors
        derivative = map_derivative(scores, ctx.of)
        return (g.expand_as(scores) if derivative is None else g * derivative), None, None
