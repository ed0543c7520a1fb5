"""Discovering Neural Wirings: the largest weights are the edges of the network, and every weight trains.

Wortsman et al., "Discovering Neural Wirings", NeurIPS 2019, arXiv 1906.00586, applied to layers ("sparse training").
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

import edgepop_kernels as ek

from .config import Entry
from .drawn import keep, norm
from .edge_popup import IMAGENET
from .kept import Kept
from .layers import Layers


@dataclass(frozen=True, kw_only=True)
class Wirings(Kept):
    """Every layer uses the largest fraction ``keep`` of its weights; all weights train, used or not."""

    method: ClassVar[str] = "wirings"

    keep: float = keep(0.1)
    norm: str = norm("affine")

    def network(self, image: tuple[int, int, int], classes: int) -> nn.Module:
        conv = partial(ek.FusedSparseConv, bias=False, keep=self.keep)
        linear = partial(ek.FusedSparseLinear, bias=False, keep=self.keep)
        return ek.share_selection(self.drawn(image, classes, Layers(conv, linear)))


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
