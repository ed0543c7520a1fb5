"""Edge-popup: random weights stay as they are, scores decide which of them the network uses.

Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?", CVPR 2020, arXiv 1911.13299. Hyper-parameters
of the MNIST and CIFAR-10 recipes are those of the authors' configurations.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

import edgepop_kernels as ek

from .config import Entry
from .drawn import init, trains
from .kept import Kept
from .layers import Layers
from .settings import When, flag

# Of the residual networks of the papers on edge-popup and Discovering Neural Wirings.
IMAGENET = dict(dataset="imagenet", epochs=100, batch_size=256, lr=0.256, momentum=0.875, weight_decay=1 / 32768)
IMAGENET |= dict(warmup=5, label_smoothing=0.1, validation=0)

_CONSTANTS = ("signed_constant", "unsigned_constant", "xavier_constant")
_PACKS = When(
    f"trains masks and init {', '.join(_CONSTANTS)}",
    lambda recipe: recipe.trains == "masks" and recipe.init in _CONSTANTS,
)


@dataclass(frozen=True, kw_only=True)
class EdgePopup(Kept):
    """Every layer keeps its best-scored fraction ``keep``; only scores train."""

    method: ClassVar[str] = "edge-popup"

    init: str = init("signed_constant")
    trains: str = trains("masks", "both", "weights")
    pack: bool = flag(False, "hold the fixed weights as a bit each: the same results in less memory", when=_PACKS)

    def network(self, image: tuple[int, int, int], classes: int) -> nn.Module:
        conv = partial(ek.FusedSubnetConv, bias=False, keep=self.keep)
        model = self.drawn(image, classes, Layers(conv, partial(ek.FusedSubnetLinear, bias=False, keep=self.keep)))
        if self.pack and _PACKS.holds(self):
            ek.pack_weights(model)
        return model if self.trains == "weights" else ek.share_selection(model)


_PAPER = "Ramanujan et al. 2020 (arXiv 1911.13299)"
_MNIST = dict(dataset="mnist", epochs=100, batch_size=128, validation=0)
_CIFAR10 = dict(dataset="cifar10", epochs=100, batch_size=128, validation=0)
# ImageNet top-1 at 30 % kept, as the authors list it: signed constants, Kaiming normal.
_IMAGENET_GOALS = {
    "resnet50": ("68.6 %", "61.7 %"),
    "resnet101": ("72.3 %", "66.15 %"),
    "wide-resnet50-2": ("73.3 %", "67.9 %"),
}

RECIPES = (
    {
        "edge-popup-digits": Entry(EdgePopup(), "91.1 % ± 0.5", "plain PyTorch, 5 seeds, the same settings"),
        "edge-popup-digits-conv": Entry(EdgePopup(model="small-conv"), "no published number", "this project"),
        "edge-popup-mnist": Entry(EdgePopup(**_MNIST), "no published table", f"{_PAPER}, configuration FC"),
        "edge-popup-lenet": Entry(
            EdgePopup(
                model="lenet",
                dataset="mnist",
                epochs=14,
                batch_size=64,
                weight_decay=5e-4,
                init="kaiming_normal",
                validation=0,
            ),
            "no published number",
            "hidden-networks' one-file MNIST example",
        ),
        "edge-popup-fashion-mnist": Entry(
            EdgePopup(**_MNIST | {"dataset": "fashion-mnist", "validation": "auto"}),
            "no published number",
            "this project",
        ),
    }
    | {
        f"edge-popup-{model}": Entry(EdgePopup(model=model, **_CIFAR10), "published as curves only", _PAPER)
        for model in ("conv2", "conv4", "conv6", "conv8")
    }
    | {
        "edge-popup-cifar-resnet18": Entry(
            EdgePopup(model="cifar-resnet18", **_CIFAR10 | {"batch_size": 256}, weight_decay=5e-4),
            "published as curves only",
            _PAPER,
        )
    }
    | {
        f"edge-popup-{model}{suffix}": Entry(
            EdgePopup(model=model, keep=0.3, init=init, **IMAGENET), goals[column], f"{_PAPER}, the authors' table"
        )
        for model, goals in _IMAGENET_GOALS.items()
        for column, (suffix, init) in enumerate((("", "signed_constant"), ("-normal", "kaiming_normal")))
    }
)
