"""Discovering Neural Wirings: the largest weights are the edges of the network, and every weight trains.

Wortsman et al., "Discovering Neural Wirings", NeurIPS 2019, arXiv 1906.00586, applied to layers ("sparse training").
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

import edgepop_kernels as ek

from . import models
from .config import Entry, Recipe, but, choice, flag, setting
from .edge_popup import IMAGENET
from .layers import INITS, Layers, draw_weights


@dataclass(frozen=True, kw_only=True)
class Wirings(Recipe):
    """Every layer uses the largest fraction ``keep`` of its weights; all weights train, used or not."""

    method: ClassVar[str] = "wirings"

    keep: float = setting(0.1, "fraction of weights kept", "a number in (0, 1]", lambda value: 0 < value <= 1)
    first_dense: bool = flag(False, "keep the whole first layer", when=but("keep", 1.0))
    init: str = choice("kaiming_normal", INITS, "how the weights are drawn")

    def network(self, image: tuple[int, int, int], classes: int) -> nn.Module:
        layers = Layers(
            conv=partial(ek.FusedSparseConv, bias=False, keep=self.keep),
            linear=partial(ek.FusedSparseLinear, bias=False, keep=self.keep),
        )
        model = models.build(
            self.model, image, classes, layers, widths=self.widths, width_multiplier=self.width_multiplier
        )
        masked = [layer for layer in model.modules() if isinstance(layer, (ek.FusedSparseConv, ek.FusedSparseLinear))]
        draw_weights(masked, self.init)
        if self.first_dense:
            masked[0].keep = 1.0
        return ek.share_selection(model)


_CIFAR10 = dict(dataset="cifar10", epochs=100, batch_size=128)
_PAPER = "Wortsman et al. 2019 (arXiv 1906.00586)"
# ImageNet top-1 of ResNet-50 by percent kept: all layers sparse, first layer dense.
_IMAGENET_GOALS = {10: ("74.0 %", "75.0 %"), 20: ("76.2 %", "76.6 %")}

RECIPES = (
    {
        "wirings-digits": Entry(Wirings(), "92.7 % ± 0.8", "plain PyTorch, 5 seeds, the same settings"),
        "wirings-mnist": Entry(
            Wirings(dataset="mnist", epochs=30, batch_size=128), "no published number", "this project"
        ),
    }
    | {
        f"wirings-{model}": Entry(Wirings(model=model, **_CIFAR10), "no published number", "this project")
        for model in ("conv2", "conv4", "conv6", "conv8")
    }
    | {
        f"wirings-resnet50-{percent}{suffix}": Entry(
            Wirings(model="resnet50", keep=percent / 100, first_dense=bool(suffix), **IMAGENET), goals[column], _PAPER
        )
        for percent, goals in _IMAGENET_GOALS.items()
        for column, suffix in enumerate(("", "-first-dense"))
    }
)
