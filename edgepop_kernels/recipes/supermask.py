"""Supermasks: random weights stay, the sigmoid of the scores says which are used, by a threshold or by a draw.

Zhou et al., "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask", NeurIPS 2019, arXiv 1905.01067: masks
drawn from Bernoulli(sigmoid(s)). The thresholded form, 1[sigmoid(s) > 0.5] with every score starting at 1, is the one
whose use as an initialisation ``supermask_init`` looks at.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

import edgepop_kernels as ek

from .config import Entry
from .drawn import Drawn, init, scale_keep, trains
from .layers import Layers
from .settings import choice, flag, only, setting

RULES = ("threshold", "bernoulli")


@dataclass(frozen=True, kw_only=True)
class Supermask(Drawn):
    """Every layer is masked by the sigmoid of its scores; only scores train."""

    method: ClassVar[str] = "supermask"

    rule: str = choice("threshold", RULES, "how a mask follows from sigmoid(scores)")
    cutoff: float = setting(
        0.5,
        "sigmoid above which a weight is kept",
        "a number in [0, 1]",
        lambda value: 0 <= value <= 1,
        when=only("rule", "threshold"),
    )
    at_eval: str = choice(
        "sample", ("sample", "round"), "what bernoulli does at evaluation", when=only("rule", "bernoulli")
    )
    scores_init: float | str = setting(
        1.0,
        "constant the scores start at; kaiming: drawn, Kaiming uniform, as edge-popup's",
        "a number in [-20, 20], or kaiming",
        lambda value: -20 <= value <= 20,
        words=("kaiming",),
    )
    rescale: bool = flag(False, "dynamic weight rescaling: weights times numel / kept")
    init: str = init("xavier_normal")
    scale_keep: float = scale_keep()
    trains: str = trains("masks", "both")

    def network(self, image: tuple[int, int, int], classes: int) -> nn.Module:
        rule = ek.Threshold(self.cutoff) if self.rule == "threshold" else ek.Bernoulli(self.at_eval)
        scores = None if self.scores_init == "kaiming" else self.scores_init
        options = dict(bias=False, rule=rule, scores_init=scores, rescale=self.rescale)
        kinds = ek.FusedSupermaskConv, ek.FusedSupermaskLinear
        return ek.share_selection(self.drawn(image, classes, Layers(*(partial(kind, **options) for kind in kinds))))


_MEASURED = "plain PyTorch, 5 seeds, the same settings"
_THRESHOLD = dict(optimizer="adam", lr=0.01, weight_decay=0.0)
_BERNOULLI = dict(rule="bernoulli", scores_init=0.0, lr=50.0, weight_decay=0.0)
_BERNOULLI_RATES = {"conv2": 200.0, "conv4": 200.0, "conv6": 200.0, "conv8": 800.0, "cifar-resnet18": 400.0}
_ZHOU = ("no published table for these epochs", "Zhou et al. 2019 (arXiv 1905.01067)")
_BERNOULLI_MNIST = dict(dataset="mnist", epochs=100, batch_size=250, validation=0) | _BERNOULLI | {"lr": 100.0}

RECIPES = {
    "supermask-digits": Entry(Supermask(**_THRESHOLD), "87.5 % ± 0.7", _MEASURED),
    "supermask-bernoulli-digits": Entry(Supermask(**_BERNOULLI), "87.7 % ± 0.5", _MEASURED),
    "supermask-mnist": Entry(
        Supermask(dataset="mnist", epochs=30, batch_size=128, validation=0, **_THRESHOLD),
        "published as curves only",
        "mshlis 2019",
    ),
    "supermask-bernoulli-mnist": Entry(Supermask(**_BERNOULLI_MNIST), *_ZHOU),
    "supermask-bernoulli-mnist-constant": Entry(
        Supermask(init="xavier_constant", rescale=True, **_BERNOULLI_MNIST), *_ZHOU
    ),
} | {
    f"supermask-bernoulli-{model}": Entry(
        Supermask(model=model, dataset="cifar10", epochs=100, batch_size=128, validation=0, **_BERNOULLI | {"lr": lr}),
        "published as curves only",
        "Zhou et al. 2019 as run by Ramanujan et al. 2020 (arXiv 1911.13299)",
    )
    for model, lr in _BERNOULLI_RATES.items()
}
