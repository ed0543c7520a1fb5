"""Layers of torchao.sparsity (SuperBlock), up to 0.18.

``sparsity_level`` is the fraction REMOVED, by raw scores, ties kept.
"""

from typing import Any

from ..rules import Percentile, Rule
from .origin import Origin, named


def _rule(layer: Any) -> Rule:
    removed = layer.sparsity_level
    if isinstance(removed, bool) or not isinstance(removed, int | float) or not 0 <= removed < 1:
        raise ValueError(
            f"has sparsity_level {removed!r}, there the fraction REMOVED; expected a number in [0, 1), or keep=..."
        )
    return Percentile(of="raw", drop=removed)


def _is_one(layer: Any) -> bool:
    return named(layer, "SupermaskLinear") and "scores" in layer._parameters and hasattr(layer, "sparsity_level")


def _in_blocks(layer: Any) -> str:
    size = max(getattr(layer, "blocksize", 1), getattr(layer, "tile_size", 1))
    return "" if size == 1 else f"has one score for each block of {size}x{size} weights, where a rule here has one each"


LAYERS = (
    Origin(
        "torchao",
        _is_one,
        rule=_rule,
        gone=("sparsity_level", "blocksize", "tile_size", "sparsify_weights"),
        differs="its scores' gradient there lacks the factor W, and its weight's reaches every weight, kept or not",
        refused=_in_blocks,
    ),
)
