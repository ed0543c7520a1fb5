"""The autograd Functions: one forward, one backward formula each (straight-through, Ramanujan et al. 2020, eq. 3).

    dX = dY applied to W*M        dS = dW_eff * W * map'(S)        dW = dW_eff * M, or dW_eff where W scores itself

Saved for backward: x, weight, scores as they are, and the cut (16 bytes) or the packed mask (1 bit per weight); where
the selection wrote planes beside the cut, these as well (mask and signs, 2 bits per weight). ``signs`` (None: there are
none) are those of a weight of one magnitude, as ``ops`` takes it; nothing of it trains. A cut may come with ``bits``,
its mask, and its ``planes``: the forward pass and dX read the mask, dS and dW the scores and the cut, or the signs.

``update`` (None: there is none) is how an optimizer spends dS inside backward: ``optim.backward.Use``.

Each Function says apart what it computes and what it saves, which is how torch.func's transforms want them, and puts
them together in ``forward``. torch binds the arguments of every call by the signature where they are apart, which takes
longer than all else in a call: so only calls under a transform, which ``apply`` finds, take that way.

``Planned`` is both of them on a backend that plans its calls: the same formulas without an op in between. Its kernels
read a mask and signs of one bit each where there are planes, in place of scores of 32.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from . import mixing, ops, torch_private
from .reference import map_derivative, parameter_grads, signed, unpack_mask


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


class _Context(Protocol):
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
    prepared: "Prepared"
    weighted: bool

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


def _save(
    ctx: _Context,
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
    """scores None: the weight scores itself (Discovering Neural Wirings), or ``bits`` are a fixed mask.

    ctx.wants: (dx wanted, dS wanted, which dW) from the inputs (x, weight, scores, ...) that require a gradient.
    """
    dx, dw, ds = ctx.needs_input_grad[:3]
    scores_itself = scores is None and bits is None
    ctx.wants = dx, ds, ("all" if scores_itself else "kept") if dw else "none"
    ctx.of, ctx.update = of, update if ds else None
    ctx.save_for_backward(x if ds or dw else None, weight, scores, cut, bits, signs, planes)


def _saved(ctx: _Context) -> tuple[Any, ...]:
    """The tensors that ``_save`` kept, asked for once, as checkpointing wants it. An optimizer that updates the scores
    is asked first whether this backward wants their gradient, and raises where it cannot be spent; then they are the
    very ones that it will write."""
    if ctx.update is None:
        return ctx.saved_tensors
    ctx.wants = ctx.wants[0], ctx.update.begin(ctx), ctx.wants[2]
    x, weight, scores, *masking = ctx.saved_tensors
    return x, weight, ctx.update.scores if ctx.wants[1] else scores, *masking


def _mask(
    weight: Tensor, scores: Tensor | None, cut: Tensor | None, bits: Tensor | None, of: str
) -> tuple[Tensor, Tensor, Tensor | None, str]:
    """The mask as the ops take it: (weight, scores or packed bits, cut, of)."""
    if bits is not None:
        return weight, bits, None, "bits"
    return weight, weight if scores is None else scores, cut, of


def _dx_mask(
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
    return _mask(weight, scores, cut, bits, of)


def _parameter_grads(
    op: str,
    ctx: _Context,
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
            _, dw = grads(dy, x, *_mask(weight, scores, cut, bits, of), False, weight_grad, *geometry, signs)
        if wants_ds:  # the mask is in bits, map'(S) in the scores: one call for each
            ds, _ = with_ds(None, "none")
    return dw if weight_grad != "none" else None, ds


def _bias_grad(dy: Tensor, channel_dim: int, bias_dtype: torch.dtype | None) -> Tensor:
    dims = list(range(dy.dim()))
    del dims[channel_dim]
    total = torch.float64 if dy.dtype == torch.float64 else torch.float32
    return (dy.sum(dims, dtype=total) if dims else dy).to(bias_dtype)


def apply(function: "_Function", *inputs: Any) -> Tensor:
    """``function`` of this file, applied; where a transform of torch.func is at work, in the way that it needs."""
    applied: Tensor = (_under_transforms(function) if torch_private.transformed() else function).apply(*inputs)
    return applied


@functools.cache
def _under_transforms(function: "_Function") -> type[torch.autograd.Function]:
    apart = {"forward": staticmethod(function.compute), "setup_context": staticmethod(function.save)}
    refused = {"vmap": staticmethod(_refuse_vmap), "jvp": staticmethod(_refuse_jvp)}
    return type(f"{function.__name__}UnderTransforms", (function,), apart | refused)


def _refuse_vmap(info: object, in_dims: object, *inputs: object) -> NoReturn:
    raise NotImplementedError(ops.NO_VMAP)


def _refuse_jvp(ctx: _Context, *tangents: Tensor | None) -> NoReturn:
    raise NotImplementedError("forward mode: masked products have no jvp; use backward, torch.func.grad, vjp or jacrev")


class _Undifferentiable(torch.autograd.Function):
    """The first ``count`` of the tensors again, hanging on all of them; a backward through them raises RuntimeError."""

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> NoReturn:
        raise RuntimeError("double backward: the gradients of masked products cannot be differentiated again")


def _once(backward: "_Backward") -> "_Backward":
    """``backward``, whose gradients raise where they are differentiated again.

    torch's ``once_differentiable`` takes them for constants where ``dy`` is one, as under a sum and ReLUs: a gradient
    penalty would train nothing, without a word. But they hang on what was saved, too.
    """

    @functools.wraps(backward)
    def once(ctx: _Context, dy: Tensor) -> tuple[Tensor | None, ...]:
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
        return ops.masked_linear(x, *_mask(weight, scores, cut, bits, of), bias, signs)

    @staticmethod
    def save(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scores, cut, bits, of, bias, update, signs, planes = inputs
        _save(ctx, x, weight, scores, cut, bits, of, update, signs, planes)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def forward(ctx: _Context, *inputs: Any) -> Tensor:
        y = MaskedLinear.compute(*inputs)
        MaskedLinear.save(ctx, inputs, y)
        return y

    @staticmethod
    @_once
    def backward(ctx: _Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, ds, db = MaskedLinear.gradients(ctx, dy, ctx.needs_input_grad[6])
        return dx, dw, ds, None, None, None, db, None, None, None

    @staticmethod
    def gradients(ctx: _Context, dy: Tensor, wants_db: bool) -> tuple[Tensor | None, ...]:
        x, weight, scores, cut, bits, signs, planes = _saved(ctx)
        dx = db = None
        if ctx.wants[0]:
            dx = ops.masked_linear_dx(dy, *_dx_mask(weight, scores, cut, bits, ctx.of, signs, planes), signs)
        if wants_db:
            db = _bias_grad(dy, -1, ctx.bias_dtype)
        dw, ds = _parameter_grads("masked_linear", ctx, dy, x, weight, scores, cut, bits, signs, planes)
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
        return ops.masked_conv2d(x, *_mask(weight, scores, cut, bits, of), bias, *geometry, y_channels_last, signs)

    @staticmethod
    def save(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scores, cut, bits, of, bias, geometry, x_channels_last, _, update, signs, planes = inputs
        _save(ctx, x, weight, scores, cut, bits, of, update, signs, planes)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.geometry, ctx.x_size, ctx.x_channels_last = geometry, x.shape, x_channels_last

    @staticmethod
    def forward(ctx: _Context, *inputs: Any) -> Tensor:
        y = MaskedConv2d.compute(*inputs)
        MaskedConv2d.save(ctx, inputs, y)
        return y

    @staticmethod
    @_once
    def backward(ctx: _Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, ds, db = MaskedConv2d.gradients(ctx, dy, ctx.needs_input_grad[6])
        return dx, dw, ds, None, None, None, db, *[None] * 6

    @staticmethod
    def gradients(ctx: _Context, dy: Tensor, wants_db: bool) -> tuple[Tensor | None, ...]:
        x, weight, scores, cut, bits, signs, planes = _saved(ctx)
        dx = db = None
        if ctx.wants[0]:
            mask = _dx_mask(weight, scores, cut, bits, ctx.of, signs, planes)
            dx = ops.masked_conv2d_dx(dy, *mask, ctx.x_size, *ctx.geometry, ctx.x_channels_last, signs)
        if wants_db:
            db = _bias_grad(dy, 1, ctx.bias_dtype)
        dw, ds = _parameter_grads("masked_conv2d", ctx, dy, x, weight, scores, cut, bits, signs, planes, *ctx.geometry)
        return dx, dw, ds, db


class Prepared(NamedTuple):
    """The part that a product's calls have in common: made once for each combination of shapes, strides, dtypes and
    geometry.

    plan      of the backend: its ``forward``, ``dx`` and ``dw`` take addresses and go
    of        as the ops take it
    function  MaskedLinear or MaskedConv2d, whose gradients a backward that torch must see computes
    geometry, x_size, x_channels_last  as those want them
    """

    plan: Any
    of: str
    function: type[MaskedLinear] | type[MaskedConv2d]
    geometry: tuple[Any, ...] = ()
    x_size: torch.Size = torch.Size()
    x_channels_last: bool = False


class Planned(torch.autograd.Function):
    """A masked product that is prepared, its mask a cut of the scores or fixed bits."""

    jvp = staticmethod(_refuse_jvp)  # torch.compile, which takes no Function with one, never gets here

    @staticmethod
    def forward(
        ctx: _Context,
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
        _save(ctx, x, weight, scores, cut, bits, prepared.of, update, signs, planes)
        ranked = bits if bits is not None else weight if scores is None else scores
        y: Tensor = prepared.plan.forward(x, weight, ranked, cut, bias, None, planes, signs)
        return y

    @staticmethod
    def backward(ctx: _Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a graph of this backward is wanted, which is not to be differentiated again
            return _as_torch_sees_it(ctx, dy)
        if torch_private.watched() or type(dy) is not Tensor or dy.is_neg() or dy._is_zerotensor():
            return _gradients(ctx, dy)
        if ctx.update is not None:
            return _gradients(ctx, dy)
        x, weight, scores, cut, bits, signs, planes = ctx.saved_tensors
        (wants_dx, wants_ds, weight_grad), plan = ctx.wants, ctx.prepared.plan
        ranked = bits if bits is not None else weight if scores is None else scores
        dx = dw = ds = db = None
        if wants_dx:
            dx = plan.dx(dy, weight, ranked, cut, None, planes, signs)
        if ctx.needs_input_grad[5]:
            db = _bias_grad(dy, 1 if weight.dim() == 4 else -1, ctx.bias_dtype)
        if wants_ds or weight_grad != "none":
            ds, dw = plan.dw(dy, x, weight, ranked, cut, wants_ds, weight_grad, None, planes, signs)
        return dx, dw, ds, None, None, db, None, None, None, None


def _gradients(ctx: _Context, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients by ops, in the order of Planned's inputs."""
    prepared = ctx.prepared
    ctx.geometry, ctx.x_size, ctx.x_channels_last = prepared.geometry, prepared.x_size, prepared.x_channels_last
    dx, dw, ds, db = prepared.function.gradients(ctx, dy, ctx.needs_input_grad[5])
    return dx, dw, ds, None, None, db, None, None, None, None


_as_torch_sees_it = _once(_gradients)


class StraightThrough(torch.autograd.Function):
    """A mask of the scores' shape, or the number of weights it keeps, in float32: dS = g * map'(S)."""

    @staticmethod
    def compute(scores: Tensor, mask_or_count: Tensor, of: str) -> Tensor:
        return mask_or_count.to(torch.float32)

    @staticmethod
    def save(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores, _, ctx.of = inputs
        ctx.save_for_backward(scores)

    @staticmethod
    def forward(ctx: _Context, *inputs: Any) -> Tensor:
        y = StraightThrough.compute(*inputs)
        StraightThrough.save(ctx, inputs, y)
        return y

    @staticmethod
    @_once
    def backward(ctx: _Context, g: Tensor) -> tuple[Tensor | None, ...]:
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
    def save(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, scores, bits, ctx.of, weight_grad, ctx.weighted, signs = inputs
        dw, ds = ctx.needs_input_grad[:2]
        ctx.wants = False, ds, weight_grad if dw else "none"
        ctx.save_for_backward(weight, scores, bits, signs)

    @staticmethod
    def forward(ctx: _Context, *inputs: Any) -> Tensor:
        effective = MaskedWeight.compute(*inputs)
        MaskedWeight.save(ctx, inputs, effective)
        return effective

    @staticmethod
    @_once
    def backward(ctx: _Context, g: Tensor) -> tuple[Tensor | None, ...]:
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
        return mixing.superposed(weight, codes, alphas)

    @staticmethod
    def save(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def forward(ctx: _Context, *inputs: Any) -> Tensor:
        mixed = MixedWeight.compute(*inputs)
        MixedWeight.save(ctx, inputs, mixed)
        return mixed

    @staticmethod
    @_once
    def backward(ctx: _Context, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, codes, alphas = ctx.saved_tensors
        shares = dw = None
        if ctx.needs_input_grad[0]:
            dw = mixing.superposed(g, codes, alphas).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            shares = mixing.shares_of(g, weight, codes, len(alphas)).to(alphas.dtype)
        return dw, None, shares


_Backward = Callable[[_Context, Tensor], tuple[Tensor | None, ...]]
_Function = type[MaskedLinear] | type[MaskedConv2d] | type[StraightThrough] | type[MaskedWeight] | type[MixedWeight]
