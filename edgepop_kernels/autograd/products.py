"""The Functions of masked products: linear, and convolution."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops, torch_private
from .calls import once, refuse_jvp
from .context import Context, Spends, bias_grad, dx_mask, mask_of, masked_parameter_grads, save_operands, saved_operands


class MaskedLinear(torch.autograd.Function):
    """y = x (W*M)^T + b for x of shape (..., in)."""

    op = "masked_linear"

    @staticmethod
    def compute(
        x: Tensor,
        weight: Tensor,
        scores: Tensor | None,
        cut: Tensor | None,
        bits: Tensor | None,
        of: str,
        bias: Tensor | None,
        update: Spends | None,
        signs: Tensor | None,
        planes: Tensor | None,
    ) -> Tensor:
        return ops.masked_linear(x, *mask_of(weight, scores, cut, bits, of), bias, signs)

    @staticmethod
    def save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scores, cut, bits, of, bias, update, signs, planes = inputs
        save_operands(ctx, x, weight, scores, cut, bits, of, update, signs, planes)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def forward(ctx: Context, *inputs: Any) -> Tensor:
        y = MaskedLinear.compute(*inputs)
        MaskedLinear.save(ctx, inputs, y)
        return y

    @staticmethod
    @once
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, ds, db = MaskedLinear.gradients(ctx, dy, ctx.needs_input_grad[6])
        return dx, dw, ds, None, None, None, db, None, None, None

    @staticmethod
    def gradients(ctx: Context, dy: Tensor, wants_db: bool) -> tuple[Tensor | None, ...]:
        x, weight, scores, cut, bits, signs, planes = saved_operands(ctx)
        dx = db = None
        if ctx.wants[0]:
            dx = ops.masked_linear_dx(dy, *dx_mask(weight, scores, cut, bits, ctx.of, signs, planes), signs)
        if wants_db:
            db = bias_grad(dy, -1, ctx.bias_dtype)
        dw, ds = masked_parameter_grads("masked_linear", ctx, dy, x, weight, scores, cut, bits, signs, planes)
        return dx, dw, ds, db


class MaskedConv2d(torch.autograd.Function):
    """y = conv2d(x, W*M) + b for x of shape (N, C, H, W)."""

    op = "masked_conv2d"

    @staticmethod
    def compute(
        x: Tensor,
        weight: Tensor,
        scores: Tensor | None,
        cut: Tensor | None,
        bits: Tensor | None,
        of: str,
        bias: Tensor | None,
        geometry: tuple[Any, ...],
        x_channels_last: bool,
        y_channels_last: bool,
        update: Spends | None,
        signs: Tensor | None,
        planes: Tensor | None,
    ) -> Tensor:
        return ops.masked_conv2d(x, *mask_of(weight, scores, cut, bits, of), bias, *geometry, y_channels_last, signs)

    @staticmethod
    def save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scores, cut, bits, of, bias, geometry, x_channels_last, _, update, signs, planes = inputs
        save_operands(ctx, x, weight, scores, cut, bits, of, update, signs, planes)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.geometry, ctx.x_size, ctx.x_channels_last = geometry, x.shape, x_channels_last

    @staticmethod
    def forward(ctx: Context, *inputs: Any) -> Tensor:
        y = MaskedConv2d.compute(*inputs)
        MaskedConv2d.save(ctx, inputs, y)
        return y

    @staticmethod
    @once
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, ds, db = MaskedConv2d.gradients(ctx, dy, ctx.needs_input_grad[6])
        return dx, dw, ds, None, None, None, db, *[None] * 6

    @staticmethod
    def gradients(ctx: Context, dy: Tensor, wants_db: bool) -> tuple[Tensor | None, ...]:
        x, weight, scores, cut, bits, signs, planes = saved_operands(ctx)
        dx = db = None
        if ctx.wants[0]:
            mask = dx_mask(weight, scores, cut, bits, ctx.of, signs, planes)
            dx = ops.masked_conv2d_dx(dy, *mask, ctx.x_size, *ctx.geometry, ctx.x_channels_last, signs)
        if wants_db:
            db = bias_grad(dy, 1, ctx.bias_dtype)
        dw, ds = masked_parameter_grads(
            "masked_conv2d", ctx, dy, x, weight, scores, cut, bits, signs, planes, *ctx.geometry
        )
        return dx, dw, ds, db


class Prepared(NamedTuple):
    """The part that a product's calls have in common: made once for each combination of shapes, strides, dtypes and
    geometry.

    plan       of the backend: its ``forward``, ``dx`` and ``dw`` take addresses and go
    of         as the ops take it
    function   the Function whose gradients a backward that torch must see computes
    geometry, x_size, x_channels_last  as that wants them
    dy_stride  the strides of the only dy that the plan takes; None where it takes any
    """

    plan: Any
    of: str
    function: Any
    geometry: tuple[Any, ...] = ()
    x_size: torch.Size = torch.Size()
    x_channels_last: bool = False
    dy_stride: tuple[int, ...] | None = None


class Planned(torch.autograd.Function):
    """A masked product that is prepared, its mask a cut of the scores or fixed bits."""

    jvp = staticmethod(refuse_jvp)  # torch.compile, which takes no Function with one, never gets here

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        weight: Tensor,
        scores: Tensor | None,
        cut: Tensor | None,
        bits: Tensor | None,
        bias: Tensor | None,
        prepared: Prepared,
        update: Spends | None,
        planes: Tensor | None,
        signs: Tensor | None,
    ) -> Tensor:
        ctx.prepared = prepared
        ctx.bias_dtype = None if bias is None else bias.dtype
        save_operands(ctx, x, weight, scores, cut, bits, prepared.of, update, signs, planes)
        ranked = bits if bits is not None else weight if scores is None else scores
        y: Tensor = prepared.plan.forward(x, weight, ranked, cut, bias, None, planes, signs)
        return y

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a graph of this backward is wanted, which is not to be differentiated again
            return _as_torch_sees_it(ctx, dy)
        if torch_private.watched() or type(dy) is not Tensor or dy.is_neg() or dy._is_zerotensor():
            return _gradients(ctx, dy)
        stride = ctx.prepared.dy_stride
        if ctx.update is not None or (stride is not None and dy.stride() != stride):
            return _gradients(ctx, dy)
        x, weight, scores, cut, bits, signs, planes = ctx.saved_tensors
        (wants_dx, wants_ds, weight_grad), plan = ctx.wants, ctx.prepared.plan
        ranked = bits if bits is not None else weight if scores is None else scores
        dx = dw = ds = db = None
        if wants_dx:
            dx = plan.dx(dy, weight, ranked, cut, None, planes, signs)
        if ctx.needs_input_grad[5]:
            db = bias_grad(dy, 1 if weight.dim() == 4 else -1, ctx.bias_dtype)
        if wants_ds or weight_grad != "none":
            ds, dw = plan.dw(dy, x, weight, ranked, cut, wants_ds, weight_grad, None, planes, signs)
        return dx, dw, ds, None, None, db, None, None, None, None


def _gradients(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients by ops, in the order of Planned's inputs."""
    prepared = ctx.prepared
    ctx.geometry, ctx.x_size, ctx.x_channels_last = prepared.geometry, prepared.x_size, prepared.x_channels_last
    dx, dw, ds, db = prepared.function.gradients(ctx, dy, ctx.needs_input_grad[5])
    return dx, dw, ds, None, None, db, None, None, None, None


_as_torch_sees_it = once(_gradients)
