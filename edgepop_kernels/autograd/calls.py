"""How a Function is applied: under torch.func's transforms, and never differentiated twice."""

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import ops, torch_private
from .context import Context

Backward = Callable[[Context, Tensor], tuple[Tensor | None, ...]]


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Tensor:
    """``function`` of this room, applied; where a transform of torch.func is at work, in the way that it needs."""
    applied: Any = _under_transforms(function) if torch_private.transformed() else function
    y: Tensor = applied.apply(*inputs)
    return y


@functools.cache
def _under_transforms(function: Any) -> type[torch.autograd.Function]:
    apart = {"forward": staticmethod(function.compute), "setup_context": staticmethod(function.save)}
    refused = {"vmap": staticmethod(refuse_vmap), "jvp": staticmethod(refuse_jvp)}
    return type(f"{function.__name__}UnderTransforms", (function,), apart | refused)


def refuse_vmap(info: object, in_dims: object, *inputs: object) -> NoReturn:
    raise NotImplementedError(ops.NO_VMAP)


def refuse_jvp(ctx: Context, *tangents: Tensor | None) -> NoReturn:
    raise NotImplementedError("forward mode: masked products have no jvp; use backward, torch.func.grad, vjp or jacrev")


class _Undifferentiable(torch.autograd.Function):
    """The first ``count`` of the tensors again, hanging on all of them; a backward through them raises RuntimeError."""

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> NoReturn:
        raise RuntimeError("double backward: the gradients of masked products cannot be differentiated again")


def once(backward: Backward) -> Backward:
    """``backward``, whose gradients raise where they are differentiated again.

    torch's ``once_differentiable`` takes them for constants where ``dy`` is one, as under a sum and ReLUs: a gradient
    penalty would train nothing, without a word. But they hang on what was saved, too.
    """

    @functools.wraps(backward)
    def once(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        graph = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        hang_on = [t for t in (dy, *ctx.saved_tensors) if t is not None] if graph else []
        with torch.no_grad():
            gradients = backward(ctx, dy)
        if not graph:
            return gradients
        there = [g for g in gradients if g is not None]
        again = iter(_Undifferentiable.apply(len(there), *there, *hang_on))  # type: ignore[no-untyped-call]  # torch's
        return tuple(None if g is None else next(again) for g in gradients)

    return once
