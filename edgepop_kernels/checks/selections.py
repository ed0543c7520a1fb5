"""Checks of what selects, and of selections that are handed in."""

from collections.abc import Sequence

import torch

from ..cut import Bits, Cut, Selection
from ..rules import Rule
from .values import packed_bits, rule, score_tensor, shape_of


def selection(scores: torch.Tensor, rule_: Rule, hint: Cut | None) -> None:
    score_tensor("scores", scores)
    rule(rule_)
    if rule_.fixed:
        raise ValueError("rule: Frozen() is a fixed mask, there is nothing to select; expected another")
    rule_.check(scores.shape)
    if hint is not None:
        a_selection("hint", hint, scores.device, rule_)


def selected(value: object, scores: torch.Tensor, rule_: Rule) -> None:
    """Checks what a rule's ``select`` returned, which a user may have written."""
    a_selection(f"rule: {type(rule_).__name__}.select", value, scores.device, rule_)
    if isinstance(value, Bits):
        packed_bits(value.bits, scores.shape)


def selections(scores: Sequence[torch.Tensor], rules: Sequence[Rule], hints: Sequence[Cut | None] | None) -> None:
    for name, value in (("scores", scores), ("rules", rules), ("hints", hints)):
        if value is not None and not isinstance(value, (list, tuple)):
            raise TypeError(f"{name}: expected a list, one entry per layer, got {type(value).__name__}")
        if value is not None and len(value) != len(scores):
            raise ValueError(f"{name}: expected {len(scores)} entries, one per layer, got {len(value)}")
    for s, r, h in zip(scores, rules, hints or [None] * len(scores), strict=True):
        selection(s, r, h)
        if s.device != scores[0].device:
            raise ValueError(f"scores: expected all layers on one device, got {scores[0].device} and {s.device}")


def cut(value: Selection, weight: torch.Tensor, rule_: Rule) -> None:
    if rule_.fixed:
        raise ValueError("cut: a frozen mask has none; expected None")
    a_selection("cut", value, weight.device, rule_)
    if isinstance(value, Bits):
        packed_bits(value.bits, weight.shape)


def a_selection(name: str, value: object, device: torch.device, rule: Rule) -> None:
    expected = rule.selects
    if not isinstance(value, expected):
        raise TypeError(f"{name}: expected a {expected.__name__}, as select returns it, got {type(value).__name__}")
    if value.of != rule.of:
        raise ValueError(f"{name}: it was selected with of={value.of!r}, the rule ranks of={rule.of!r}")
    data = value.bits if isinstance(value, Bits) else value.data
    if isinstance(value, Cut) and (data.dtype != torch.int64 or data.shape != (2,) or not data.is_contiguous()):
        found = f"{data.dtype} of shape {shape_of(data)} and strides {data.stride()}"
        raise ValueError(f"{name}: expected two contiguous int64, as select returns them, got {found}")
    if data.device != device:
        raise ValueError(f"{name}: expected it on the scores' device {device}, got {data.device}")
