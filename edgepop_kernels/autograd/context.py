"""What the Functions of masked products keep for backward, and the parts that their backward passes have in common."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import ops


class Spends(Protocol):
    """A way for an optimizer to take the scores' gradient inside backward: ``optim.backward.Use``."""

    scores: Tensor

    def begin(self, node: Any, /) -> bool: ...

    def spend(
        self,
        op: str,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        cut: Tensor | None,
        of: str,
        weight_grad: str,
        signs: Tensor | None,
        /,
        *geometry: Any,
    ) -> Tensor | None: ...


class Context(Protocol):
    """The context that torch hands to a Function, with what is kept on it here."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Any, ...]
    wants: tuple[bool, bool, str]
    of: str
    update: Spends | None
    bias_dtype: torch.dtype | None
    geometry: tuple[Any, ...]
    x_size: torch.Size
    x_channels_last: bool
    prepared: Any
    weighted: bool

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


def save_operands(
    ctx: Context,
    x: Tensor,
    weight: Tensor,
    scores: Tensor | None,
    cut: Tensor | None,
    bits: Tensor | None,
    of: str,
    update: Spends | None,
    signs: Tensor | None,
    planes: Tensor | None = None,
) -> None:
    """scores None: the weight scores itself (Discovering Neural Wirings), or ``of`` is "bits", a fixed mask.

    ctx.wants: (dx wanted, dS wanted, which dW) from the inputs (x, weight, scores, ...) that require a gradient.
    """
    dx, dw, ds = ctx.needs_input_grad[:3]
    scores_itself = scores is None and of != "bits"
    ctx.wants = dx, ds, ("all" if scores_itself else "kept") if dw else "none"
    ctx.of, ctx.update = of, update if ds else None
    ctx.save_for_backward(x if ds or dw else None, weight, scores, cut, bits, signs, planes)


def saved_operands(ctx: Context) -> tuple[Any, ...]:
    """The tensors that ``_save`` kept, asked for once, as checkpointing wants it. An optimizer that updates the scores
    is asked first whether this backward wants their gradient, and raises where it cannot be spent; then they are the
    very ones that it will write."""
    if ctx.update is None:
        return ctx.saved_tensors
    ctx.wants = ctx.wants[0], ctx.update.begin(ctx), ctx.wants[2]
    x, weight, scores, *masking = ctx.saved_tensors
    return x, weight, ctx.update.scores if ctx.wants[1] else scores, *masking


def mask_of(
    weight: Tensor, scores: Tensor | None, cut: Tensor | None, bits: Tensor | None, of: str
) -> tuple[Tensor, Tensor, Tensor | None, str]:
    """The mask as the ops take it: (weight, scores or packed bits, cut, of)."""
    if bits is not None:
        return weight, bits, None, "bits"
    return weight, weight if scores is None else scores, cut, of


def dx_mask(
    weight: Tensor,
    scores: Tensor | None,
    cut: Tensor | None,
    bits: Tensor | None,
    of: str,
    signs: Tensor | None,
    planes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, str]:
    """The mask of a gradient to the input: from the plane, where there is one and the weight lies in its order."""
    if planes is not None and (weight.is_contiguous() or signs is not None):
        return weight, planes[0], None, "bits"
    return mask_of(weight, scores, cut, bits, of)


def masked_parameter_grads(
    op: str,
    ctx: Context,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor | None,
    cut: Tensor | None,
    bits: Tensor | None,
    signs: Tensor | None,
    planes: Tensor | None,
    *geometry: Any,
) -> tuple[Tensor | None, Tensor | None]:
    """(dW, dS), None for what is not asked for, and for a dS that an optimizer has spent. Last of all in a backward:
    scores may have changed after it."""
    (_, wants_ds, weight_grad), of = ctx.wants, ctx.of
    grads: Callable[..., tuple[Tensor, Tensor]] = getattr(ops, f"{op}_dw")
    score_signs = planes[1] if planes is not None and of == "abs" else None

    def with_ds(cut: Tensor | None, weight_grad: str) -> tuple[Tensor | None, Tensor | None]:
        if ctx.update is None:
            return grads(dy, x, weight, scores, cut, of, True, weight_grad, *geometry, signs, score_signs)
        return None, ctx.update.spend(op, dy, x, weight, cut, of, weight_grad, signs, *geometry)

    ds = dw = None
    if wants_ds and cut is not None:
        ds, dw = with_ds(cut, weight_grad)
    else:
        if weight_grad != "none":
            _, dw = grads(dy, x, *mask_of(weight, scores, cut, bits, of), False, weight_grad, *geometry, signs)
        if wants_ds:  # the mask is in bits, map'(S) in the scores: one call for each
            ds, _ = with_ds(None, "none")
    return dw if weight_grad != "none" else None, ds


def bias_grad(dy: Tensor, channel_dim: int, bias_dtype: torch.dtype | None) -> Tensor:
    dims = list(range(dy.dim()))
    del dims[channel_dim]
    total = torch.float64 if dy.dtype == torch.float64 else torch.float32
    return (dy.sum(dims, dtype=total) if dims else dy).to(bias_dtype)
