"""Layers of hydra (Sehwag et al. 2020, "HYDRA: Pruning Adversarially Robust Neural Networks").

``k`` is the fraction KEPT.
"""

from typing import Any

from .origin import Origin, holds, kept_rule, named


def _is_one(layer: Any) -> bool:
    scored = named(layer, "SubnetConv", "SubnetLinear") and holds(layer, "popup_scores")
    return scored and bool(layer.popup_scores.shape == layer.weight.shape)


LAYERS = (
    Origin(
        "hydra",
        _is_one,
        rule=kept_rule("k"),
        unsaid="has no k: set_prune_rate was never called",
        scores="popup_scores",
        gone=("k", "w"),  # w: the masked weight of the last forward
    ),
)
