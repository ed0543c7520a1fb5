"""User functions: selection, masks, masked linear and convolution. Checks first, then the autograd Functions.

Every wrong argument is answered by a TypeError or ValueError that names it, before anything runs.
"""

import torch
import torch.nn.functional as F

from . import checks, ops, reference
from .autograd import MaskedConv2d, MaskedLinear, apply
from .cut import Bits, Cut, Selection
from .rules import Rule


def select(scores: torch.Tensor, rule: Rule, hint: Cut | None = None) -> Selection:
    """What decides one layer's mask: its cut, found without a copy of the scores and without a host synchronisation;
    for Bernoulli a fresh draw.

    scores: float32, any shape, any strides. rule: any but Frozen. hint: an earlier cut of these scores, a warm start;
    the result is exact whatever the hint. Raises TypeError, ValueError.
    """
    checks.selection(scores, rule, hint)
    return selections([scores], [rule], [hint])[0]


def select_all(scores: list[torch.Tensor], rules: list[Rule], hints: list[Cut | None] | None = None) -> list[Selection]:
    """The selections of all layers of a network in one call; same semantics as ``select`` layer by layer, except that
    the layers of equal GlobalTopK rules are ranked together (at the price of one copy of their scores).

    scores: float32 tensors on one device. rules: one for each, any but Frozen. hints: one earlier Cut, or None, for
    each. Raises TypeError, ValueError.
    """
    checks.selections(scores, rules, hints)
    return selections(scores, rules, [None] * len(scores) if hints is None else hints)


def selections(scores, rules, hints):
    """``select_all`` of arguments that need no check."""
    scores = [s.detach() for s in scores]
    chosen: list[Selection | None] = [None] * len(scores)
    alone, together = [], {}
    for i, rule in enumerate(rules):
        if not rule.ranks:
            chosen[i] = rule.select(scores[i], ops)
        elif rule.together:
            together.setdefault(rule, []).append(i)
        else:
            alone.append(i)
    if alone:
        kept = [rules[i].kept(scores[i].numel()) for i in alone]
        hint = _stacked([hints[i] for i in alone], scores[alone[0]].device)
        data = ops.select([scores[i] for i in alone], kept, [rules[i].of for i in alone], hint)
        for i, row in zip(alone, data.unbind(), strict=True):
            chosen[i] = rules[i].cut(row, scores[i].numel())
    for rule, members in together.items():
        for i, cut in zip(members, rule.cuts([scores[i] for i in members], ops), strict=True):
            chosen[i] = cut
    return chosen


def _stacked(hints, device):
    """int64 [layers, 2] for the op, None without any hint; a key of -1 stands for one that is missing."""
    if all(hint is None for hint in hints):
        return None
    if len(hints) == 1:
        return hints[0].data[None]
    missing = torch.full((2,), -1, dtype=torch.int64, device=device)
    return torch.stack([missing if hint is None else hint.data for hint in hints])


def mask(scores: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The mask as a bool tensor of the scores' shape, for tests, exports and plots; training never builds it.

    scores: float32 or, for Frozen, the bool mask itself. For Bernoulli a fresh draw.
    """
    checks.rule(rule)
    if rule.fixed:
        checks.mask_tensor("scores", scores)
        return scores.clone()
    return selected_mask(scores, select(scores, rule))


def selected_mask(scores: torch.Tensor, selection: Selection) -> torch.Tensor:
    """The bool mask of the scores' shape that a selection of these scores stands for."""
    return reference.unpack_mask(selected_bits(scores, selection), scores.shape)


def selected_bits(scores: torch.Tensor, selection: Selection) -> torch.Tensor:
    """The same mask as ``pack_mask`` packs it, which is how kernels make it."""
    if isinstance(selection, Bits):
        return selection.bits
    return ops.mask_bits(scores.detach(), selection.data, selection.of)


def pack_mask(mask: torch.Tensor) -> torch.Tensor:
    """Packs a bool mask, 1 bit per weight: uint8, flat logical index i is bit i % 8 of byte i // 8, zero padded to
    ``ceil(numel / 64) * 8 + 8`` bytes. This is what a frozen layer keeps, and what ``rule=Frozen()`` takes as scores.
    """
    checks.mask_tensor("mask", mask)
    return reference.pack_mask(mask)


def unpack_mask(bits: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """The bool mask of ``shape`` that ``pack_mask`` packed into ``bits``."""
    shape = torch.Size(shape)
    checks.packed_bits(bits, shape)
    return reference.unpack_mask(bits, shape)


def masked_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None = None,
    *,
    cut: Selection | None = None,
) -> torch.Tensor:
    """``F.linear(x, weight * mask, bias)`` with the mask of ``scores`` under ``rule`` applied inside the product.

    x        (..., in_features), float32, bfloat16 or float16, any strides; float64 on the reference backend
    weight   (out_features, in_features), float32 or x's dtype; rounded to x's dtype after masking
    scores   float32 of the weight's shape; None: the weight scores itself and dW reaches every edge (Discovering
             Neural Wirings); for Frozen the bool mask, or its packed bits
    bias     (out_features,) or None
    cut      the ``select`` of these very scores under this rule, to save the selection or to repeat a draw
    returns  (..., out_features) in x's dtype; under autocast, in autocast's dtype

    Gradients are straight-through (Ramanujan et al. 2020): see ``autograd``. Raises TypeError, ValueError.
    """
    return linear_product(x, weight, scores, rule, bias, cut=cut)


def linear_product(x, weight, scores, rule, bias, *, cut, update=None):
    """``masked_linear`` for layers, whose optimizer may step in backward: ``update``, see autograd."""
    x, weight, bias = _autocast(x, weight, bias)
    checks.linear(x, weight, scores, rule, bias, cut)
    return apply(MaskedLinear, x, weight, *_masking(weight, scores, rule, cut), bias, update)


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
) -> torch.Tensor:
    """``F.conv2d(x, weight * mask, bias, ...)`` with the mask of ``scores`` under ``rule`` applied inside the kernel.

    x        (N, C, H, W) or (C, H, W), float32, bfloat16 or float16, NCHW, channels_last or any strides
    weight   (O, C / groups, kh, kw), float32 or x's dtype
    padding  zeros on each side, or "valid", or "same" (stride 1)
    returns  (N, O, H', W') in x's dtype, channels_last where x or weight is

    scores, bias, cut, gradients, errors: as in ``masked_linear``.
    """
    return conv2d_product(x, weight, scores, rule, bias, stride, padding, dilation, groups, cut=cut)


def conv2d_product(x, weight, scores, rule, bias, stride, padding, dilation, groups, *, cut, update=None):
    """``masked_conv2d`` for layers, as ``linear_product``."""
    x, weight, bias = _autocast(x, weight, bias)
    stride, padding, dilation = checks.conv2d(x, weight, scores, rule, bias, stride, padding, dilation, groups, cut)
    unbatched = x.dim() == 3
    if unbatched:
        x = x[None]
    if padding == "same":
        x, padding = _pad_same(x, weight, dilation)
    masking = _masking(weight, scores, rule, cut)
    x_channels_last = _is_channels_last(x)
    y_channels_last = x_channels_last or _is_channels_last(weight)
    geometry = (stride, padding, dilation, groups)
    y = apply(MaskedConv2d, x, weight, *masking, bias, geometry, x_channels_last, y_channels_last, update)
    return y[0] if unbatched else y


def _autocast(x, weight, bias):
    """The operands as autocast wants them; a float32 weight stays, to be rounded after masking."""
    checks.tensor("x", x)
    device = x.device.type
    if not ops.autocasts(device) or x.dtype == torch.float64 or not x.is_floating_point():
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    weight, bias = (t.to(dtype) if _of_other_half(t, dtype) else t for t in (weight, bias))
    return x.to(dtype), weight, bias


def _of_other_half(t, dtype):
    return isinstance(t, torch.Tensor) and t.dtype in (torch.bfloat16, torch.float16) and t.dtype != dtype


def _masking(weight, scores, rule, cut):
    """(scores, cut data, packed bits, of) as the Functions take them; selects where no selection was handed in."""
    if rule.fixed:
        return None, None, pack_mask(scores) if scores.dtype == torch.bool else scores, "bits"
    if cut is None:
        cut = select(weight if scores is None else scores, rule)
    if isinstance(cut, Bits):
        return scores, None, cut.bits, cut.of
    return scores, cut.data, None, cut.of


def _pad_same(x, weight, dilation):
    """torch's "same": dilation * (kernel - 1) zeros in all, the odd one behind (below, right)."""
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    before = [t // 2 for t in total]
    odd = [t % 2 for t in total]
    if any(odd):
        x = F.pad(x, (0, odd[1], 0, odd[0]))
    return x, tuple(before)


def _is_channels_last(t):
    """True where channels_last is the only reading of the strides (1x1 filters and single channels read both ways)."""
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
