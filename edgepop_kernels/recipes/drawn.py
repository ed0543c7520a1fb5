"""Recipes of networks whose weights are drawn as the recipe says: how, and which layers and norms there are."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

import edgepop_kernels as ek

from . import models
from .config import Recipe
from .layers import INITS, Layers
from .settings import MASKED, When, but, choice, flag, only, setting

_KAIMING = only("init", *ek.init.SCALED)
_NORMS = When("networks that have batch norms", lambda recipe: recipe.model not in models.WITHOUT_NORM)


def init(default: str) -> Any:
    return choice(default, INITS, "how the weights are drawn; default: as torch's layers are")


def norm(default: str) -> Any:
    text = "batch norms; affine: with scale and shift, which train where weights do"
    return choice(default, ("affine", "non-affine"), text, when=_NORMS)


def trains(*allowed: str) -> Any:
    text = "what trains: scores alone, beside weights too, or weights alone under the masks that are drawn"
    return choice("masks", allowed, text)


def keep(default: float, name: str = "fraction of weights kept", **where: Any) -> Any:
    return setting(default, name, "a number in (0, 1]", lambda value: 0 < value <= 1, **where)


def scale_keep() -> Any:
    """Of methods that have no ``keep``."""
    return keep(0.5, "fraction of weights kept that scale goes by", when=but("scale", "none"))


@dataclass(frozen=True, kw_only=True)
class Drawn(Recipe):
    """The settings of a network whose weights are drawn; ``drawn`` makes it of a method's layers."""

    init: str = init("kaiming_normal")
    scale: str = choice(
        "none",
        ek.init.SCALES,
        "how their deviation follows keep; paper: times 1/sqrt(keep); hidden-networks: times 1/sqrt(1 - keep)",
        when=_KAIMING,
    )
    mode: str = choice("fan_in", ek.init.MODES, "fan that their deviation follows", when=_KAIMING)
    nonlinearity: str = choice(
        "relu", ek.init.NONLINEARITIES, "function whose gain their deviation has; the network has ReLU", when=_KAIMING
    )
    norm: str = norm("non-affine")
    first_dense: bool = flag(False, "leave the first layer without a mask", when=MASKED)
    last_dense: bool = flag(False, "make the last layer torch's own: no mask, a bias, and torch's start")

    def __post_init__(self):
        super().__post_init__()
        if self.scale != "none" and self.init not in ek.init.SCALED:
            raise self.wrong("scale", f"none, the only one init {self.init} has")
        if self.scale == "hidden-networks" and math.isclose(self._scale_keep(), 1):
            raise self.wrong("scale", "none or paper with keep 1, hidden-networks divides by 1 - keep")
        if self.masks and self.first_dense and self.last_dense and self.model == "mlp" and len(self.widths) == 1:
            raise self.wrong("last_dense", "false for an mlp of two layers whose first is dense: none would be masked")

    def _scale_keep(self) -> float:
        """The fraction of weights kept that ``scale`` goes by."""
        return self.scale_keep if hasattr(self, "scale_keep") else self.keep

    def drawn(self, image: tuple[int, int, int], classes: int, layers: Layers) -> nn.Module:
        """The network of these layers, with its weights drawn and its norms as the settings say; of what trains, as
        ``trains`` says, which is all where there is no such setting."""
        norm = ek.NonAffineBatchNorm if self.norm == "non-affine" else nn.BatchNorm2d
        sizes = dict(widths=self.widths, width_multiplier=self.width_multiplier)
        model = models.build(self.model, image, classes, replace(layers, norm=norm), **sizes)
        names = [name for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
        if self.first_dense and self.masks:
            model.set_submodule(names[0], _plain(model.get_submodule(names[0]), bias=False))
        if self.last_dense:
            model.set_submodule(names[-1], _plain(model.get_submodule(names[-1]), bias=True))
            del names[-1]
        self.spread(model)
        self._draw([model.get_submodule(name) for name in names])
        trained = getattr(self, "trains", None)
        if trained == "masks":
            for name, p in model.named_parameters():
                p.requires_grad_(name.endswith("scores"))
        elif trained == "both":
            model.requires_grad_(True)
        return ek.train_weights(model) if trained == "weights" else model

    def spread(self, model: nn.Module) -> None:
        """Sets how much each layer of ``model`` keeps, where that is another share than the layers were made with."""

    def keep_of(self, layer: nn.Module) -> float:
        """The fraction of the layer's weights kept that ``scale`` goes by."""
        return self._scale_keep()

    def _draw(self, layers: Iterable[nn.Module]) -> None:
        if self.init == "default":
            return
        for layer in layers:
            keep = None if self.scale == "none" else self.keep_of(layer)
            ek.init.by_name(self.init, keep, self.scale, self.mode, self.nonlinearity)(layer.weight)


def _plain(layer: nn.Conv2d | nn.Linear, bias: bool) -> nn.Conv2d | nn.Linear:
    """torch's own layer of the sizes of ``layer``."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features, bias)
    sizes = layer.in_channels, layer.out_channels, layer.kernel_size
    return nn.Conv2d(*sizes, layer.stride, layer.padding, layer.dilation, layer.groups, bias)
