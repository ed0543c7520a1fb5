"""Recipes whose layers keep a fraction of their weights: how it is spread over layers, and how it is come to."""

from dataclasses import dataclass
from typing import Any

from torch import nn

import edgepop_kernels as ek

from .drawn import Drawn
from .drawn import keep as fraction_kept
from .errors import ConfigError
from .masks import masked_layers
from .settings import When, but, choice, whole

_DENSITIES = {"erk": ek.density.erk, "uniform-plus": ek.density.uniform_plus}
_MASKS_TRAIN = When("training of masks", lambda recipe: getattr(recipe, "trains", "masks") != "weights")


@dataclass(frozen=True, kw_only=True)
class Kept(Drawn):
    """The settings of a network of which the fraction ``keep`` is kept."""

    keep: float = fraction_kept(0.5)
    per_layer: str = choice(
        "uniform",
        ("uniform", *_DENSITIES),
        "how keep is spread; erk: large layers keep less; uniform-plus: the first convolution keeps all",
    )
    keep_epochs: int = whole(
        0, 0, "epochs in which the fraction kept falls to keep, by a cubic curve; 0: none", when=_MASKS_TRAIN
    )
    keep_from: float = fraction_kept(1.0, "fraction of weights kept at the start of that", when=but("keep_epochs", 0))

    def __post_init__(self):
        super().__post_init__()
        if self.keep_epochs > self.epochs:
            raise self.wrong("keep_epochs", f"at most the {self.epochs} epochs of the training")
        if self.scale == "hidden-networks" and self.per_layer != "uniform":
            raise self.wrong("scale", f"none or paper with per_layer {self.per_layer}: a layer may keep all")
        if self.keep_epochs and not _MASKS_TRAIN.holds(self):
            raise self.wrong("keep_epochs", "0 with trains weights, whose masks stand")

    def density(self) -> str:
        return super().density() + ("" if self.per_layer == "uniform" else f", {self.per_layer}")

    def spread(self, model: nn.Module) -> None:
        if self.per_layer == "uniform":
            return
        try:
            densities = _DENSITIES[self.per_layer](model, self.keep)
        except ValueError as error:  # fewer than the layers that are to keep more
            raise ConfigError(f"with per_layer {self.per_layer} {str(error).removeprefix('keep: ')}", "keep") from error
        ek.set_keep(model, densities)

    def keep_of(self, layer: Any) -> float:
        return layer.rule.keep if hasattr(layer, "rule") else self.keep

    def keep_schedule(self, model: nn.Module, steps: int) -> ek.KeepSchedule | None:
        if not self.keep_epochs:
            return None
        final = {name: m.rule.keep for name, m in masked_layers(model)}
        return ek.KeepSchedule(model, final, initial=self.keep_from, end=self.keep_epochs * steps)

    def full_epochs(self) -> int:
        return self.keep_epochs
