"""What all products do with their operands before a Function gets them."""

from typing import Any, TypeGuard

import torch

from .. import checks, ops, torch_private
from ..autograd import MaskedConv2d, MaskedLinear, Planned, Prepared, Spends
from ..backend import planned
from ..backend import prepared as _prepared
from ..cut import Bits, Selection
from ..rules import Rule
from ..selecting import pack_mask, select

# What calls have in common, by all that they are checked for and that a plan hangs on. Networks have tens of layers and
# few batch sizes; who has more shapes than this starts anew.
_MOST_PREPARED = 4096


def key_of(
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


def prepare(
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
    x_channels_last = bool(geometry) and is_channels_last(x)
    plan = None
    if key is not None and rule.selects is not Bits:
        ranked = weight if scores is None else scores
        formats = dict(x_channels_last=x_channels_last, y_channels_last=x_channels_last or is_channels_last(weight))
        plan = planned(function.op, x, weight, ranked, of, *geometry, **(formats if geometry else {}))
    return kept(key, Prepared(plan, of, function, geometry, x.shape, x_channels_last))


def kept(key: tuple[Any, ...] | None, prepared: Prepared) -> Prepared:
    """``prepared``, found under its key from now on."""
    if key is not None:
        if len(_prepared) >= _MOST_PREPARED:
            _prepared.clear()
        _prepared[key] = prepared
    return prepared


def by_plan(
    prepared: Prepared,
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    data: torch.Tensor | None,
    bits: torch.Tensor | None,
    bias: torch.Tensor | None,
    update: Spends | None,
    planes: torch.Tensor | None,
    signs: torch.Tensor | None,
) -> torch.Tensor | None:
    """The product of a prepared call, without an op in between. None where there is no plan of it, under a draw, which
    has bits beside its scores, and where a profiler wants to list an op."""
    if prepared.plan is None or (scores is not None and bits is not None) or torch_private.profiled():
        return None
    if torch.is_grad_enabled() or torch_private.tangents_go_forward():
        return torch_private.applied(Planned, x, weight, scores, data, bits, bias, prepared, update, planes, signs)
    ranked = bits if bits is not None else weight if scores is None else scores
    y: torch.Tensor = prepared.plan.forward(x, weight, ranked, data, bias, None, planes, signs)
    return y


def checked_cut(cut: Selection | None, weight: torch.Tensor, rule: Rule) -> Selection | None:
    """A cut that a user handed in. Raises TypeError, ValueError."""
    if cut is not None:
        checks.tensor("weight", weight)
        checks.rule(rule)
        checks.cut(cut, weight, rule)
    return cut


def autocast(
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


def masking(
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


def is_channels_last(t: torch.Tensor) -> bool:
    """True where channels_last is the only reading of the strides (1x1 filters and single channels read both ways)."""
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def by_its_shape(
    weight: torch.Tensor, scores: torch.Tensor | None, rule: Rule, cut: Selection | None
) -> Selection | None:
    """The selection under a rule that may go by the shape of a weight, which is about to be handed on as a view; one
    that ranks does not."""
    if cut is not None or rule.fixed or rule.ranks:
        return cut
    return select(weight if scores is None else scores, rule)


def one_pixel_high(
    x: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor | None, rule: Rule, cut: Selection | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Selection | None]:
    """Operands of one dimension as those of two."""
    cut = by_its_shape(weight, scores, rule, cut)
    if scores is not None and scores.dim() == 3:  # packed bits have no shape
        scores = scores.unsqueeze(2)
    return x.unsqueeze(-2), weight.unsqueeze(2), scores, cut
