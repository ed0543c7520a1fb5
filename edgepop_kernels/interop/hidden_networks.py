"""hidden-networks (Ramanujan et al. 2020, "What's Hidden in a Randomly Weighted Neural Network?").

``prune_rate`` is the fraction KEPT in its SubnetConv; the layers of its one-file MNIST example do not hold theirs.
"""

from typing import Any

from ..rules import Bernoulli
from .origin import Origin, holds, is_binary, kept_rule, named

_PROJECT = "hidden-networks"


def _is_of(*names: str) -> Any:
    return lambda layer: named(layer, *names) and holds(layer, "scores") and layer.scores.shape == layer.weight.shape


def _is_of_the_example(layer: Any) -> bool:
    # torchao's SupermaskLinear holds its rate, as sparsity_level.
    return bool(_is_of("SupermaskConv", "SupermaskLinear")(layer)) and not hasattr(layer, "sparsity_level")


def _no_subnet_yet(layer: Any) -> str:
    # Its scores are random numbers until then, and multiply the weight as they are.
    return "" if is_binary(layer.scores) else "has no fixed mask yet; call set_subnet() on it first"


LAYERS = (
    Origin(
        _PROJECT,
        _is_of("SubnetConv"),
        rule=kept_rule("prune_rate"),
        unsaid="has no prune_rate: set_prune_rate was never called",
        gone=("prune_rate",),
    ),
    Origin(_PROJECT, _is_of("SampleSubnetConv"), "supermask", rule=lambda layer: Bernoulli(), gone=("prune_rate",)),
    Origin(
        _PROJECT,
        _is_of("FixedSubnetConv"),
        mask=lambda layer: layer.scores,
        scores=None,
        gone=("scores", "prune_rate"),
        refused=_no_subnet_yet,
    ),
    Origin(
        f"{_PROJECT}' MNIST example",
        _is_of_the_example,
        unsaid="does not hold its rate, which is args.sparsity there, the fraction KEPT",
    ),
)
