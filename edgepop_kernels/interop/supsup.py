"""Layers of supsup (Wortsman et al. 2020, "Supermasks in Superposition").

They hold a mask for each of several tasks, and are refused by name.
"""

from typing import Any

from torch import nn

from .origin import Origin


def _is_one(layer: Any) -> bool:
    return type(layer).__name__.endswith(("MaskConv", "MaskLinear")) or isinstance(
        layer._modules.get("scores"), nn.ParameterList
    )


LAYERS = (
    Origin(
        "supsup",
        _is_one,
        scores=None,
        refused=lambda layer: (
            "holds the scores of several tasks, where a masked layer holds one mask; write it over masked_conv2d and "
            "masked_linear (docs/migrate/supsup.md has it whole)"
        ),
    ),
)
