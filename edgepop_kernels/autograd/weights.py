"""The Functions of masks and masked weights in memory, for products that are not ours."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import mixing, torch_private
from ..backend import beside
from ..reference import map_derivative, parameter_grads, signed, unpack_mask
from .calls import once
from .context import Context


class StraightThrough(torch.autograd.Function):
    """A mask of the scores' shape, or the number of weights it keeps, in float32: dS = g * map'(S)."""

    @staticmethod
    def compute(scores: Tensor, mask_or_count: Tensor, of: str) -> Tensor:
        return mask_or_count.to(torch.float32)

    @staticmethod
    def save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores, _, ctx.of = inputs
        ctx.save_for_backward(scores)

    @staticmethod
    def forward(ctx: Context, *inputs: Any) -> Tensor:
        y = StraightThrough.compute(*inputs)
        StraightThrough.save(ctx, inputs, y)
        return y

    @staticmethod
    @once
    def backward(ctx: Context, g: Tensor) -> tuple[Tensor | None, ...]:
        (scores,) = ctx.saved_tensors
        derivative = map_derivative(scores, ctx.of)
        return (g.expand_as(scores) if derivative is None else g * derivative), None, None


class MaskedWeight(torch.autograd.Function):
    """W*M in memory, in W's dtype, for products that are not ours; its mask in bits, of the scores or fixed.

    weight_grad  "kept", "all" or "none", where the weight trains
    weighted     False: dS = dW_eff * map'(S), without W
    """

    @staticmethod
    def compute(
        weight: Tensor,
        scores: Tensor | None,
        bits: Tensor,
        of: str,
        weight_grad: str,
        weighted: bool,
        signs: Tensor | None,
    ) -> Tensor:
        return signed(weight, signs).masked_fill(~unpack_mask(bits, weight.shape), 0)

    @staticmethod
    def save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, scores, bits, ctx.of, weight_grad, ctx.weighted, signs = inputs
        dw, ds = ctx.needs_input_grad[:2]
        ctx.wants = False, ds, weight_grad if dw else "none"
        ctx.save_for_backward(weight, scores, bits, signs)

    @staticmethod
    def forward(ctx: Context, *inputs: Any) -> Tensor:
        effective = MaskedWeight.compute(*inputs)
        MaskedWeight.save(ctx, inputs, effective)
        return effective

    @staticmethod
    @once
    def backward(ctx: Context, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, scores, bits, signs = ctx.saved_tensors
        _, wants_ds, weight_grad = ctx.wants
        dw_eff = g.to(torch.promote_types(g.dtype, torch.float32))
        ds = dw = None
        if wants_ds:
            if not ctx.weighted:
                weight, signs = g.new_ones(()).expand(weight.shape), None
            ds, _ = parameter_grads(dw_eff, weight, scores, None, ctx.of, True, "none", signs)
        if weight_grad != "none":
            _, dw = parameter_grads(dw_eff, ctx.saved_tensors[0], bits, None, "bits", False, weight_grad)
        return dw, ds, None, None, None, None, None


class MixedWeight(torch.autograd.Function):
    """W * sum(alpha_t * M_t) in memory, in W's dtype, of masks as ``mixing.codes_of`` has them.

    dalpha_t = <dW_eff * W, M_t>        dW = dW_eff * sum(alpha_t * M_t)
    """

    @staticmethod
    def compute(weight: Tensor, codes: Tensor, alphas: Tensor) -> Tensor:
        return _mixing("superposed", weight, codes)(weight, codes, alphas)

    @staticmethod
    def save(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def forward(ctx: Context, *inputs: Any) -> Tensor:
        mixed = MixedWeight.compute(*inputs)
        MixedWeight.save(ctx, inputs, mixed)
        return mixed

    @staticmethod
    @once
    def backward(ctx: Context, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, codes, alphas = ctx.saved_tensors
        shares = dw = None
        if ctx.needs_input_grad[0]:
            dw = _mixing("superposed", g, codes)(g, codes, alphas).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            shares = _mixing("shares_of", g, codes, weight)(g, weight, codes, len(alphas)).to(alphas.dtype)
        return dw, None, shares


def _mixing(name: str, *operands: Tensor) -> Callable[..., Tensor]:
    """The function ``name`` of ``mixing``: the backend's own where it has one, its operands lie as it reads them, and
    torch need not see the call."""
    if not torch_private.watched() and all(torch_private.plain(t) for t in operands):
        first, codes, *_ = operands
        if codes.stride(1) == 1 and all(t.dtype == torch.float32 for t in operands if t is not codes):
            own = beside("masked_linear", name, first)
            if own is not None:
                return own
    found: Callable[..., Tensor] = getattr(mixing, name)
    return found
