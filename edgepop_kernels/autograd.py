"""The autograd Functions: one forward, one backward formula each (straight-through, Ramanujan et al. 2020, eq. 3).

    dX = dY applied to W*M        dS = dW_eff * W * map'(S)        dW = dW_eff * M, or dW_eff where W scores itself

Saved for backward: x, weight, scores as they are, and the cut (16 bytes) or the packed mask (1 bit per weight).
"""

import torch
from torch.autograd.function import once_differentiable

from . import ops


def _wants(ctx, scores_is_weight, of):
    """(dx wanted, dS wanted, which dW) from the inputs (x, weight, scores, ...) that require a gradient."""
    dx, dw, ds = ctx.needs_input_grad[:3]
    if scores_is_weight:
        return dx, False, "all" if dw else "none"
    return dx, ds and of != "bits", "kept" if dw else "none"


def _save(ctx, x, weight, scores, cut, of):
    """scores None: the weight scores itself (Discovering Neural Wirings)."""
    ctx.of = of
    ctx.wants = _wants(ctx, scores is None, of)
    _, ds, dw = ctx.wants
    ctx.save_for_backward(x if ds or dw != "none" else None, weight, scores, cut)


def _saved(ctx):
    x, weight, scores, cut = ctx.saved_tensors
    return x, (weight, weight if scores is None else scores, cut, ctx.of)


def _bias_grad(dy, channel_dim, bias_dtype):
    dims = [d for d in range(dy.dim()) if d != channel_dim % dy.dim()]
    total = torch.float64 if dy.dtype == torch.float64 else torch.float32
    return (dy.sum(dims, dtype=total) if dims else dy).to(bias_dtype)


class MaskedLinear(torch.autograd.Function):
    """y = x (W*M)^T + b for x of shape (..., in)."""

    @staticmethod
    def forward(ctx, x, weight, scores, cut, bias, of):
        _save(ctx, x, weight, scores, cut, of)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return ops.masked_linear(x, weight, weight if scores is None else scores, cut, of, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, mask = _saved(ctx)
        wants_dx, wants_ds, weight_grad = ctx.wants
        dx = ds = dw = db = None
        if wants_dx:
            dx = ops.masked_linear_dx(dy, *mask)
        if wants_ds or weight_grad != "none":
            ds, dw = ops.masked_linear_dw(dy, x, *mask, wants_ds, weight_grad)
        if ctx.needs_input_grad[4]:
            db = _bias_grad(dy, -1, ctx.bias_dtype)
        return dx, dw if weight_grad != "none" else None, ds if wants_ds else None, None, db, None


class MaskedConv2d(torch.autograd.Function):
    """y = conv2d(x, W*M) + b for x of shape (N, C, H, W)."""

    @staticmethod
    def forward(ctx, x, weight, scores, cut, bias, of, geometry, x_channels_last, y_channels_last):
        _save(ctx, x, weight, scores, cut, of)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.geometry, ctx.x_size, ctx.x_channels_last = geometry, x.shape, x_channels_last
        scores = weight if scores is None else scores
        return ops.masked_conv2d(x, weight, scores, cut, of, bias, *geometry, y_channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, mask = _saved(ctx)
        wants_dx, wants_ds, weight_grad = ctx.wants
        dx = ds = dw = db = None
        if wants_dx:
            dx = ops.masked_conv2d_dx(dy, *mask, ctx.x_size, *ctx.geometry, ctx.x_channels_last)
        if wants_ds or weight_grad != "none":
            ds, dw = ops.masked_conv2d_dw(dy, x, *mask, wants_ds, weight_grad, *ctx.geometry)
        if ctx.needs_input_grad[4]:
            db = _bias_grad(dy, 1, ctx.bias_dtype)
        gradients = dx, dw if weight_grad != "none" else None, ds if wants_ds else None, None, db
        return *gradients, None, None, None, None
