"""User functions on scores: their selections, their masks, and masks of one bit a weight. Checks first."""

from collections.abc import Sequence
from typing import Any, overload

import torch

from . import checks, ops, reference
from .cut import Bits, Cut, Selection
from .rules import Bernoulli, Ranked, Rule, Threshold, checked_kept


@overload
def select(scores: torch.Tensor, rule: Ranked | Threshold, hint: Cut | None = None) -> Cut: ...
@overload
def select(scores: torch.Tensor, rule: Bernoulli, hint: Cut | None = None) -> Bits: ...
@overload
def select(scores: torch.Tensor, rule: Rule, hint: Cut | None = None) -> Selection: ...
def select(scores: torch.Tensor, rule: Rule, hint: Cut | None = None) -> Selection:
    """Selects the weights of one layer that are kept: its cut, or the bits of a fresh draw for Bernoulli.

    The cut is found without a copy of the scores and without a host synchronisation.

    scores: float32, any shape, any strides. rule: any but Frozen. hint: an earlier cut of these scores, a warm start;
    the result is exact whatever the hint. Raises TypeError, ValueError.

    >>> cut = ek.select(torch.tensor([0.1, -3.0, 2.0, -0.2]), ek.TopK(0.5))
    >>> cut.threshold, cut.index
    (tensor(2.), tensor(2))
    """
    checks.selection(scores, rule, hint)
    return selection(scores, rule, hint)


# Of so few scores a cold selection takes less than handing in where the last one ended.
_WARM = 8192


def selection(scores: torch.Tensor, rule: Rule, hint: Cut | None, planes: bool = True) -> Selection:
    """``select`` of arguments that need no check. planes: whether who takes the cut reads the mask beside it."""
    if not rule.ranks or rule.together:
        return selections([scores], [rule], [hint])[0]
    numel = scores.numel()
    hints = None if hint is None or numel < _WARM else hint.data[None]
    if rule.moving is not None and torch.compiler.is_compiling():
        return rule.cut(_select_moving([scores.detach()], [rule], hints)[0], numel)
    kept = rule.kept(numel)
    if type(kept) is not int or not 0 <= kept <= numel:
        checked_kept(rule, numel)  # which says so; asked here for a call less in every step
    cuts, (written,) = ops.select_planes([scores.detach()], [kept], [rule.of], hints, [planes])
    row = cuts[0]
    cut = rule.cut(row, numel)
    if cut.data is row:  # none that keeps other ties, as Percentile's does
        object.__setattr__(cut, "planes", written)
    return cut


def _select_moving(scores: list[torch.Tensor], rules: list[Rule], hint: torch.Tensor | None) -> torch.Tensor:
    """``ops.select`` of a compiled forward that holds for other ``keep`` of the same rules. Of a rule whose keep the op
    does not know how to count, a user's, the count is handed on, which holds for this one."""
    numbers, names = [], []
    for rule, s in zip(rules, scores, strict=True):
        if type(rule) is ops.COUNTS.get(type(rule).__name__):
            names.append(type(rule).__name__)
            numbers.append(rule.moved())
        else:
            names.append("")
            numbers.append(torch.tensor(checked_kept(rule, s.numel()), dtype=torch.float64, device="cpu"))
    return ops.select_moving(scores, numbers, names, [r.of for r in rules], hint)


def select_all(
    scores: Sequence[torch.Tensor], rules: Sequence[Rule], hints: Sequence[Cut | None] | None = None
) -> list[Selection]:
    """Selects for all layers of a network in one call, as ``select`` does layer by layer, except that
    the layers of equal GlobalTopK rules are ranked together (at the price of one copy of their scores).

    scores: float32 tensors on one device. rules: one for each, any but Frozen. hints: one earlier Cut, or None, for
    each. Raises TypeError, ValueError.
    """
    checks.selections(scores, rules, hints)
    return selections(scores, rules, [None] * len(scores) if hints is None else hints)


def selections(
    scores: Sequence[torch.Tensor],
    rules: Sequence[Rule],
    hints: Sequence[Cut | None],
    planes: Sequence[bool] | None = None,
) -> list[Selection]:
    """``select_all`` of arguments that need no check. planes: as ``selection`` has it, of each; None for all."""
    scores = [s.detach() for s in scores]
    chosen: list[Any] = [None] * len(scores)
    alone: list[int] = []
    together: dict[Rule, list[int]] = {}
    for i, rule in enumerate(rules):
        if not rule.ranks:
            chosen[i] = rule.select(scores[i], ops)
            checks.selected(chosen[i], scores[i], rule)
        elif rule.together:
            together.setdefault(rule, []).append(i)
        else:
            alone.append(i)
    if alone:
        ranked, of = [scores[i] for i in alone], [rules[i] for i in alone]
        hint = _stacked([hints[i] for i in alone], ranked[0].device)
        written: Sequence[torch.Tensor | None] = [None] * len(alone)
        if [r for r in of if r.moving is not None] and torch.compiler.is_compiling():
            data = _select_moving(ranked, of, hint)
        else:
            kept = [checked_kept(r, s.numel()) for r, s in zip(of, ranked, strict=True)]
            wanted = [planes is None or planes[i] for i in alone]
            data, written = ops.select_planes(ranked, kept, [r.of for r in of], hint, wanted)
        for i, row, bits in zip(alone, data.unbind(), written, strict=True):
            chosen[i] = cut = rules[i].cut(row, scores[i].numel())
            if cut.data is row:
                object.__setattr__(cut, "planes", bits)
    for rule, members in together.items():
        for i, cut in zip(members, rule.cuts([scores[i] for i in members], ops), strict=True):
            chosen[i] = cut
    return chosen


def _stacked(hints: list[Cut | None], device: torch.device) -> torch.Tensor | None:
    """int64 [layers, 2] for the op, None without any hint; a key of -1 stands for one that is missing."""
    known = [hint for hint in hints if hint is not None]
    if not known:
        return None
    if len(hints) == 1:
        return known[0].data[None]
    missing = torch.full((2,), -1, dtype=torch.int64, device=device)
    return torch.stack([missing if hint is None else hint.data for hint in hints])


def mask(scores: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The mask as a bool tensor of the scores' shape, for tests, exports and plots; training never builds it.

    scores: float32 or, for Frozen, the bool mask itself. For Bernoulli a fresh draw.

    >>> ek.mask(torch.tensor([0.1, -3.0, 2.0, -0.2]), ek.TopK(0.25))
    tensor([False,  True, False, False])
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
    """The mask that a selection of these scores stands for, packed as ``pack_mask`` does, which is how kernels make
    it."""
    if isinstance(selection, Bits):
        return selection.bits
    if selection.planes is not None:
        return selection.planes[0].clone()
    return ops.mask_bits(scores.detach(), selection.data, selection.of)


def pack_mask(mask: torch.Tensor) -> torch.Tensor:
    """Packs a bool mask, 1 bit per weight: uint8, flat logical index i is bit i % 8 of byte i // 8, zero padded to
    ``ceil(numel / 64) * 8 + 8`` bytes. This is what a frozen layer keeps, and what ``rule=Frozen()`` takes as scores.

    >>> bits = ek.pack_mask(torch.tensor([True, False, True]))
    >>> bits[0].item(), len(bits)
    (5, 16)
    >>> ek.unpack_mask(bits, (3,))
    tensor([ True, False,  True])
    """
    checks.mask_tensor("mask", mask)
    return reference.pack_mask(mask)


def unpack_mask(bits: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """The bool mask of ``shape`` that ``pack_mask`` packed into ``bits``."""
    shape = torch.Size(shape)
    checks.packed_bits(bits, shape)
    return reference.unpack_mask(bits, shape)
