"""The Functions of transposed products: linear products and convolutions with the ways there and back exchanged.

    y = that product's dX of the gradient x        dX = that product of dY        dW_eff = its dW_eff, x as its dY

So they have no kernels of their own, on any backend. Gradients have no bias: it is added to what they are rounded to.
"""

from typing import Any

import torch
from torch import Tensor

from .. import ops
from .calls import once
from .context import Context, Spends, bias_grad, dx_mask, mask_of, masked_parameter_grads, save_operands, saved_operands


class MaskedTransposedLinear(torch.autograd.Function):
    """y = x (W*M) + b for x of shape (..., in) and W (in, out)."""

    op = "masked_linear"  # which its own is with the ways exchanged

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
        y = ops.masked_linear_dx(x, *mask_of(weight, scores, cut, bits, of), signs)
        return y if bias is None else y.add_(bias)

    @staticmethod
    def save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scores, cut, bits, of, bias, update, signs, planes = inputs
        save_operands(ctx, x, weight, scores, cut, bits, of, update, signs, planes)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def forward(ctx: Context, *inputs: Any) -> Tensor:
        y = MaskedTransposedLinear.compute(*inputs)
        MaskedTransposedLinear.save(ctx, inputs, y)
        return y

    @staticmethod
    @once
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, ds, db = MaskedTransposedLinear.gradients(ctx, dy, ctx.needs_input_grad[6])
        return dx, dw, ds, None, None, None, db, None, None, None

    @staticmethod
    def gradients(ctx: Context, dy: Tensor, wants_db: bool) -> tuple[Tensor | None, ...]:
        x, weight, scores, cut, bits, signs, planes = saved_operands(ctx)
        dx = db = None
        if ctx.wants[0]:
            dx = ops.masked_linear(dy, *dx_mask(weight, scores, cut, bits, ctx.of, signs, planes), None, signs)
        if wants_db:
            db = bias_grad(dy, -1, ctx.bias_dtype)
        dw, ds = masked_parameter_grads("masked_linear", ctx, x, dy, weight, scores, cut, bits, signs, planes)
        return dx, dw, ds, db


class MaskedConvTranspose2d(torch.autograd.Function):
    """y = conv_transpose2d(x, W*M) + b for x of shape (N, C, H, W); W (C, O / groups, kh, kw); y_size that of y."""

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
        y_size: torch.Size,
        geometry: tuple[Any, ...],
        x_channels_last: bool,
        y_channels_last: bool,
        update: Spends | None,
        signs: Tensor | None,
        planes: Tensor | None,
    ) -> Tensor:
        mask = mask_of(weight, scores, cut, bits, of)
        y = ops.masked_conv2d_dx(x, *mask, y_size, *geometry, y_channels_last, signs)
        return y if bias is None else y.add_(bias.view(-1, 1, 1))

    @staticmethod
    def save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scores, cut, bits, of, bias, _, geometry, x_channels_last, _, update, signs, planes = inputs
        save_operands(ctx, x, weight, scores, cut, bits, of, update, signs, planes)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.geometry, ctx.x_channels_last = geometry, x_channels_last

    @staticmethod
    def forward(ctx: Context, *inputs: Any) -> Tensor:
        y = MaskedConvTranspose2d.compute(*inputs)
        MaskedConvTranspose2d.save(ctx, inputs, y)
        return y

    @staticmethod
    @once
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, ds, db = MaskedConvTranspose2d.gradients(ctx, dy, ctx.needs_input_grad[6])
        return dx, dw, ds, None, None, None, db, *[None] * 7

    @staticmethod
    def gradients(ctx: Context, dy: Tensor, wants_db: bool) -> tuple[Tensor | None, ...]:
        x, weight, scores, cut, bits, signs, planes = saved_operands(ctx)
        dx = db = None
        if ctx.wants[0]:
            mask = dx_mask(weight, scores, cut, bits, ctx.of, signs, planes)
            dx = ops.masked_conv2d(dy, *mask, None, *ctx.geometry, ctx.x_channels_last, signs)
        if wants_db:
            db = bias_grad(dy, 1, ctx.bias_dtype)
        dw, ds = masked_parameter_grads(
            "masked_conv2d", ctx, x, dy, weight, scores, cut, bits, signs, planes, *ctx.geometry
        )
        return dx, dw, ds, db
