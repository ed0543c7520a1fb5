"""User functions: masked linear and convolution. Checks first, then the autograd Functions.

Every wrong argument is answered by a TypeError or ValueError that names it, before anything runs.
"""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F

from . import checks, ops, torch_private
from .autograd import MaskedConv2d, MaskedLinear, Planned, Prepared, Spends, apply
from .backend import planned
from .backend import prepared as _prepared
from .checks import Geometry
from .cut import Bits, Selection
from .rules import Rule
from .selecting import pack_mask, select


def masked_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None = None,
    *,
    cut: Selection | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes ``F.linear(x, weight * mask, bias)`` with the mask of ``scores`` under ``rule`` applied inside the
    product.

    x        (..., in_features), float32, bfloat16 or float16, any strides; float64 on the reference backend
    weight   (out_features, in_features), float32 or x's dtype; rounded to x's dtype after masking
    scores   float32 of the weight's shape; None: the weight scores itself and dW reaches every edge (Discovering
             Neural Wirings); for Frozen the bool mask, or its packed bits
    bias     (out_features,) or None
    cut      the ``select`` of these very scores under this rule, to save the selection or to repeat a draw
    signs    of a weight whose elements are all +c or -c: ``pack_mask(weight < 0)``; weight is then c, expanded to the
             weight's shape, and does not train (``pack_weights`` does this for layers)
    returns  (..., out_features) in x's dtype; under autocast, in autocast's dtype

    Gradients are straight-through (Ramanujan et al. 2020): see ``autograd``. Raises TypeError, ValueError.

    >>> weight, scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0.1, -3.0, 2.0, -0.2]])
    >>> ek.masked_linear(torch.ones(1, 4), weight, scores, ek.TopK(0.5))
    tensor([[5.]])
    """
    return linear_product(x, weight, scores, rule, bias, None, checked_cut(cut, weight, rule), signs=signs)


def linear_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None,
    geometry: None,
    cut: Selection | None,
    watched: bool | None = None,
    update: Spends | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """``masked_linear`` for layers, whose cut needs no check, and whose optimizer may step in backward. geometry: None,
    as a matrix has none."""
    x, weight, bias = _autocast(x, weight, bias, signs)
    key = _key(x, weight, scores, rule, bias, None, watched, signs)
    prepared = _prepared.get(key)
    if prepared is None:
        checks.linear(x, weight, scores, rule, bias, signs)
        prepared = _prepare(key, MaskedLinear, x, weight, scores, rule, signs)
    scores, data, bits, of, planes = _masking(weight, scores, rule, cut)
    if prepared.plan is not None and (scores is None or bits is None) and not torch_private.profiled():
        if torch.is_grad_enabled() or torch_private.tangents_go_forward():
            return torch_private.applied(Planned, x, weight, scores, data, bits, bias, prepared, update, planes, signs)
        ranked = bits if bits is not None else weight if scores is None else scores
        y: torch.Tensor = prepared.plan.forward(x, weight, ranked, data, bias, None, planes, signs)
        return y
    bits = bits if planes is None else planes[0]
    return apply(MaskedLinear, x, weight, scores, data, bits, of, bias, update, signs, planes)


def masked_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    cut: Selection | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes ``F.conv2d(x, weight * mask, bias, ...)`` with the mask of ``scores`` under ``rule`` applied inside.

    x        (N, C, H, W) or (C, H, W), float32, bfloat16 or float16, NCHW, channels_last or any strides
    weight   (O, C / groups, kh, kw), float32 or x's dtype
    padding  zeros on each side, or "valid", or "same" (stride 1)
    returns  (N, O, H', W') in x's dtype, channels_last where x or weight is

    scores, bias, cut, signs, gradients, errors: as in ``masked_linear``.
    """
    cut = checked_cut(cut, weight, rule)
    geometry: Geometry = (stride, padding, dilation, groups)
    if not all(type(g) in (int, tuple, str) for g in geometry):  # True and 1.0 are the key of 1, and no sizes
        cast_x, cast_weight, _ = _autocast(x, weight, bias, signs)
        geometry = checks.conv2d(cast_x, cast_weight, scores, rule, bias, *geometry, signs)
    return conv2d_product(x, weight, scores, rule, bias, geometry, cut, signs=signs)


def conv2d_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None,
    geometry: Geometry,
    cut: Selection | None,
    watched: bool | None = None,
    update: Spends | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """``masked_conv2d`` for layers, as ``linear_product``. geometry: stride, padding, dilation, groups."""
    x, weight, bias = _autocast(x, weight, bias, signs)
    key = _key(x, weight, scores, rule, bias, geometry, watched, signs)
    prepared = _prepared.get(key)
    if prepared is None:
        stride, padding, dilation, groups = checks.conv2d(x, weight, scores, rule, bias, *geometry, signs)
        if x.dim() == 3:
            geometry = (stride, padding, dilation, groups)
            return conv2d_product(x[None], weight, scores, rule, bias, geometry, cut, watched, update, signs)[0]
        if padding == "same":
            x, padding = _pad_same(x, weight, dilation)
            geometry = (stride, padding, dilation, groups)
            return conv2d_product(x, weight, scores, rule, bias, geometry, cut, watched, update, signs)
        prepared = _prepare(key, MaskedConv2d, x, weight, scores, rule, signs, (stride, padding, dilation, groups))
    scores, data, bits, of, planes = _masking(weight, scores, rule, cut)
    if prepared.plan is not None and (scores is None or bits is None) and not torch_private.profiled():
        if torch.is_grad_enabled() or torch_private.tangents_go_forward():
            return torch_private.applied(Planned, x, weight, scores, data, bits, bias, prepared, update, planes, signs)
        ranked = bits if bits is not None else weight if scores is None else scores
        y: torch.Tensor = prepared.plan.forward(x, weight, ranked, data, bias, None, planes, signs)
        return y
    bits = bits if planes is None else planes[0]
    x_channels_last = prepared.x_channels_last
    y_channels_last = x_channels_last or _is_channels_last(weight)
    return apply(
        MaskedConv2d,
        x,
        weight,
        scores,
        data,
        bits,
        of,
        bias,
        prepared.geometry,
        x_channels_last,
        y_channels_last,
        update,
        signs,
        planes,
    )


def masked_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int] = 1,
    padding: int | tuple[int] | str = 0,
    dilation: int | tuple[int] = 1,
    groups: int = 1,
    *,
    cut: Selection | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes ``F.conv1d(x, weight * mask, bias, ...)``: a two-dimensional convolution of images one pixel high.

    x        (N, C, L) or (C, L), float32, bfloat16 or float16, any strides
    weight   (O, C / groups, k), float32 or x's dtype
    padding  zeros on each side, or "valid", or "same" (stride 1)
    returns  (N, O, L') in x's dtype

    scores, bias, cut, signs, gradients, errors: as in ``masked_linear``.
    """
    geometry = checks.conv1d(x, weight, scores, rule, stride, padding, dilation, groups)
    return conv1d_product(x, weight, scores, rule, bias, geometry, checked_cut(cut, weight, rule), signs=signs)


def conv1d_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None,
    geometry: Geometry,
    cut: Selection | None,
    watched: bool | None = None,
    update: None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """``masked_conv1d`` for layers, as ``linear_product``. geometry: that of the images, their height first."""
    if scores is not None and scores.dim() == 3:  # packed bits have no shape
        scores = scores.unsqueeze(2)
    x, weight = x.unsqueeze(-2), weight.unsqueeze(2)
    return conv2d_product(x, weight, scores, rule, bias, geometry, cut, watched, update, signs).squeeze(-2)


# What calls have in common, by all that they are checked for and that a plan hangs on. Networks have tens of layers and
# few batch sizes; who has more shapes than this starts anew.
_MOST_PREPARED = 4096


def _key(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None,
    geometry: tuple[Any, ...] | None,
    watched: bool | None,
    signs: torch.Tensor | None,
) -> tuple[Any, ...] | None:
    """The key of such a call; None where torch must see it, or an operand is not plain memory. watched: whether
    torch must, where the caller knows."""
    if torch_private.watched() if watched is None else watched:
        return None
    for t in (x, weight, scores, bias, signs):
        if t is None:
            continue
        if type(t) not in torch_private.PLAIN or t.layout is not torch.strided or t.is_neg() or t._is_zerotensor():
            return None
    try:
        if rule.fixed and scores is not None and scores.dtype == torch.bool:
            return None  # a mask that is packed in every call
        hash(geometry)
        return (
            *(x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.stride(), weight.dtype, weight.device),
            None if scores is None else (scores.shape, scores.stride(), scores.dtype, scores.device),
            None if bias is None else (bias.shape, bias.dtype, bias.device),
            *(rule, geometry),
            None if signs is None else (signs.shape, signs.stride(), signs.dtype, signs.device, weight.requires_grad),
        )
    except (RuntimeError, AttributeError, TypeError):  # not what it should be: the checks have the words
        return None


def _prepare(
    key: tuple[Any, ...] | None,
    function: type[MaskedLinear] | type[MaskedConv2d],
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    signs: torch.Tensor | None,
    geometry: tuple[Any, ...] = (),
) -> Prepared:
    """Prepares a call whose arguments are checked, and keeps that under its key."""
    of = "bits" if rule.fixed else rule.of
    x_channels_last = bool(geometry) and _is_channels_last(x)
    plan = None
    if key is not None and rule.selects is not Bits:
        ranked = weight if scores is None else scores
        formats = dict(x_channels_last=x_channels_last, y_channels_last=x_channels_last or _is_channels_last(weight))
        plan = planned(function.op, x, weight, ranked, of, *geometry, **(formats if geometry else {}))
    prepared = Prepared(plan, of, function, geometry, x.shape, x_channels_last)
    if key is not None:
        if len(_prepared) >= _MOST_PREPARED:
            _prepared.clear()
        _prepared[key] = prepared
    return prepared


def checked_cut(cut: Selection | None, weight: torch.Tensor, rule: Rule) -> Selection | None:
    """A cut that a user handed in. Raises TypeError, ValueError."""
    if cut is not None:
        checks.tensor("weight", weight)
        checks.rule(rule)
        checks.cut(cut, weight, rule)
    return cut


def _autocast(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, signs: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The operands as autocast wants them; a float32 weight stays, to be rounded after masking."""
    if type(x) in torch_private.PLAIN and x.is_cpu and not torch.is_autocast_enabled("cpu"):
        return x, weight, bias  # nearly always; what is wrong with x the checks say
    if not isinstance(x, torch.Tensor) or x.layout is not torch.strided:
        checks.tensor("x", x)
    device = x.device.type
    if not ops.autocasts(device) or x.dtype == torch.float64 or not x.is_floating_point():
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    if _of_other_half(weight, dtype):
        one = signs is not None and weight.numel() > 0  # one number, which stays one
        weight = weight[(0,) * weight.dim()].to(dtype).expand(weight.shape) if one else weight.to(dtype)
    bias = bias.to(dtype) if _of_other_half(bias, dtype) else bias
    return x.to(dtype), weight, bias


def _of_other_half(t: torch.Tensor | None, dtype: torch.dtype) -> TypeGuard[torch.Tensor]:
    return isinstance(t, torch.Tensor) and t.dtype in (torch.bfloat16, torch.float16) and t.dtype != dtype


def _masking(
    weight: torch.Tensor, scores: torch.Tensor | None, rule: Rule, cut: Selection | None
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, str, torch.Tensor | None]:
    """(scores, cut data, packed bits, of, planes) as the Functions take them; selects where no selection was handed
    in."""
    if rule.fixed:
        assert scores is not None  # the mask, as the checks have seen
        return None, None, pack_mask(scores) if scores.dtype == torch.bool else scores, "bits", None
    if cut is None:
        cut = select(weight if scores is None else scores, rule)
    if isinstance(cut, Bits):
        return scores, None, cut.bits, cut.of, None
    return scores, cut.data, None, cut.of, None if scores is None else cut.planes


def _pad_same(x: torch.Tensor, weight: torch.Tensor, dilation: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, int]]:
    """Pads as torch's "same" does: dilation * (kernel - 1) zeros in all, the odd one behind (below, right)."""
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    before = [t // 2 for t in total]
    odd = [t % 2 for t in total]
    if any(odd):
        x = F.pad(x, (0, odd[1], 0, odd[0]))
    return x, (before[0], before[1])


def _is_channels_last(t: torch.Tensor) -> bool:
    """True where channels_last is the only reading of the strides (1x1 filters and single channels read both ways)."""
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
