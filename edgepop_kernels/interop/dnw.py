"""Layers of dnw (Wortsman et al. 2019, "Discovering Neural Wirings"): ``prune_rate`` is the fraction REMOVED."""

from typing import Any

from ..rules import Rule, TopK
from .origin import Origin, holds, named


def _rule(layer: Any) -> Rule | None:
    removed = getattr(layer, "prune_rate", None)
    if removed is None:
        return None
    if isinstance(removed, bool) or not isinstance(removed, int | float) or not 0 <= removed < 1:
        raise ValueError(
            f"has prune_rate {removed!r}, there the fraction REMOVED; expected a number in [0, 1), or keep=..."
        )
    return TopK(drop=removed)


def _is_one(layer: Any) -> bool:
    """SparseConv of its sparse networks, DNW of its graphs: both take the largest weights, ChooseEdges."""
    return named(layer, "SparseConv", "DNW") and holds(layer)


LAYERS = (
    Origin(
        "dnw",
        _is_one,
        "sparse",
        rule=_rule,
        unsaid="has no prune_rate: set_prune_rate was never called",
        scores=None,
        gone=("prune_rate",),
    ),
)
