"""``edgepop train`` of an edge-popup recipe by the authors' rule in plain PyTorch: what ours is compared with.

Scores are sorted, the mask is written as zeros and ones and multiplied into the weight, and torch's own layer is called
(``recipes.unfused``). Weights and scores are drawn, and batches dealt, as those of the recipe with the same seed.
"""

import sys
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import nn

from edgepop_kernels.recipes import cli, edge_popup, registry
from edgepop_kernels.recipes.unfused import unfused


@dataclass(frozen=True, kw_only=True)
class Unfused(edge_popup.EdgePopup):
    """Edge-popup without a kernel of this package."""

    method: ClassVar[str] = "edge-popup-unfused"

    def network(self, image: tuple[int, int, int], classes: int) -> nn.Module:
        return unfused(super().network(image, classes))


def main(arguments: list[str]) -> None:
    registry.METHODS[Unfused.method] = Unfused
    for name, entry in edge_popup.RECIPES.items():
        settings = {field.name: getattr(entry.recipe, field.name) for field in fields(entry.recipe)}
        registry.RECIPES[name] = entry._replace(recipe=Unfused(**settings))
    cli.app([*arguments, "--no-step-times"])  # those of the recipe itself have a column of this


if __name__ == "__main__":
    main(sys.argv[1:])
