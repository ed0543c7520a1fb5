"""The dense baseline: the same networks with plain torch layers, every weight trained."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from . import models
from .config import Entry, Recipe
from .drawn import Drawn, norm, scale_keep
from .edge_popup import IMAGENET
from .layers import Layers
from .settings import choice

_LAYERS = Layers(conv=partial(nn.Conv2d, bias=False), linear=partial(nn.Linear, bias=False))


@dataclass(frozen=True, kw_only=True)
class Dense(Drawn):
    """No mask. Weights start Kaiming normal, as in hidden-networks' baselines.

    On digits that is worth half a point over torch's own start (92.7 % against 92.1 %, 5 seeds).
    """

    method: ClassVar[str] = "dense"
    masks: ClassVar[bool] = False

    optimizer: str = choice("sgd", ("sgd", "adam"), "optimizer")
    scale_keep: float = scale_keep()
    norm: str = norm("affine")

    def network(self, image: tuple[int, int, int], classes: int) -> nn.Module:
        return self.drawn(image, classes, _LAYERS)


def plain_network(recipe: Recipe, image: tuple[int, int, int], classes: int) -> nn.Module:
    """The recipe's architecture in torch's own layers, trained dense. What a trained mask is exported to is
    ``export.plain``, which gives a residual network more: norms and a bias that change no answer."""
    sizes = dict(widths=recipe.widths, width_multiplier=recipe.width_multiplier)
    return models.build(recipe.model, image, classes, _LAYERS, **sizes)


_SOURCE = "Ramanujan et al. 2020 (arXiv 1911.13299), baseline"
_CIFAR10 = dict(dataset="cifar10", epochs=100, validation=0)

RECIPES = {
    "dense-digits": Entry(Dense(lr=0.05), "93.4 % ± 0.6", "plain PyTorch, 5 seeds, the same settings"),
    "dense-mnist": Entry(
        Dense(dataset="mnist", epochs=100, batch_size=128, validation=0), "no published table", f"{_SOURCE} FC"
    ),
    "dense-cifar-resnet18": Entry(
        Dense(model="cifar-resnet18", batch_size=256, weight_decay=5e-4, **_CIFAR10),
        "published as curves only",
        _SOURCE,
    ),
    "dense-resnet50": Entry(
        Dense(model="resnet50", **IMAGENET), "77.5 %", "Wortsman et al. 2019 (arXiv 1906.00586), the authors' table"
    ),
} | {
    f"dense-{model}": Entry(
        Dense(model=model, lr=0.01, batch_size=128, **_CIFAR10), "published as curves only", _SOURCE
    )
    for model in ("conv2", "conv4", "conv6", "conv8")
}
