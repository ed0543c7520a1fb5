"""The settings of a training run: one frozen dataclass, whose fields are also the options of the command line.

A method (edge-popup, dense...) is a subclass in a file of its own that adds its settings and says how its network is
made. Everything a run's numbers depend on is a field, so a saved configuration is a complete recipe.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import nn

import edgepop_kernels as ek

from .data import DATASETS, PHOTOGRAPHS, usual_validation
from .errors import ConfigError
from .models import MODELS
from .settings import (
    MASKED,
    ONE_TRAINING,
    but,
    checked,
    choice,
    decay,
    flag,
    fraction,
    held_out,
    only,
    positive,
    setting,
    whole,
)

BACKENDS = ("auto", *ek.backends())
OPTIMIZERS = ("sgd", "adam", "score-sgd", "score-adam")

# Where OpenMP cannot make as many threads as it is told, it ends the process: on 2 cores with a message at 16,384, with
# a segmentation fault at 100,000; 4,096 trained. The CPUs here are no bound: checkpoints of larger machines are read.
MOST_THREADS = 1024

SCHEDULES = ("cosine", "constant", "multistep")

_SGD = only("optimizer", "sgd", "score-sgd")
_MULTISTEP = only("schedule", "multistep")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings every method has. Raises ConfigError, naming the setting, for a value that is not allowed."""

    method: ClassVar[str]
    masks: ClassVar[bool] = True  # whether its networks have masked layers
    compares: ClassVar[bool] = False  # whether it is of several trainings, which keep no network

    dataset: str = choice("digits", DATASETS, "data set", panel="Data")
    image_size: int = whole(224, 1, "side of the crops, in pixels", panel="Data", when=only("dataset", *PHOTOGRAPHS))
    validation: int | str = held_out("epoch")
    limit_images: int = whole(
        0, 0, "for a smoke test, how many of the first training and test images to use; 0: all", panel="Data"
    )
    model: str = choice("mlp", MODELS, "network", panel="Network")
    widths: tuple[int, ...] = setting(
        (300, 100),
        "hidden widths of the mlp",
        "whole numbers above 0, separated by commas",
        lambda value: len(value) > 0 and all(width > 0 for width in value),
        panel="Network",
        when=only("model", "mlp"),
    )
    width_multiplier: float = positive(
        1.0, "factor on the channels of the conv networks", panel="Network", when=but("model", "mlp")
    )
    epochs: int = whole(30, 1, "passes over the training set", panel="Training")
    max_steps: int = whole(0, 0, "for a smoke test, steps after which training ends; 0: no limit", panel="Training")
    batch_size: int = whole(64, 1, "images per step, of all processes together", panel="Training")
    accumulate: int = whole(
        1, 1, "parts that each process computes its share of a batch in, to need less memory", panel="Training"
    )
    optimizer: str = choice(
        "sgd", OPTIMIZERS, "optimizer; score-*: the same steps, with the next masks' cuts", panel="Training"
    )
    lr: float = positive(0.1, "learning rate at its highest", panel="Training")
    schedule: str = choice("cosine", SCHEDULES, "how lr goes on after the warm-up, set once an epoch", panel="Training")
    multistep_every: int = whole(
        30, 1, "epochs after which lr falls, and again after as many", panel="Training", when=_MULTISTEP
    )
    multistep_factor: float = positive(0.1, "what lr is multiplied by then", panel="Training", when=_MULTISTEP)
    momentum: float = fraction(0.9, "momentum of sgd", panel="Training", when=_SGD)
    nesterov: bool = flag(False, "Nesterov's momentum", panel="Training", when=_SGD)
    weight_decay: float = decay(1e-4, panel="Training")
    norm_decay: bool = flag(
        False,
        "weight decay on norms and biases too",
        panel="Training",
        when=but("weight_decay", 0.0),
    )
    warmup: int = whole(0, 0, "epochs of linear warm-up at the start", panel="Training")
    pretrained: str = setting(
        "none",
        "checkpoint to start from: a run's, or hidden-networks'",
        "a file, or none",
        lambda value: value != "",
        panel="Training",
        when=ONE_TRAINING,
    )
    label_smoothing: float = fraction(0.0, "share of the target spread over all classes", panel="Training")
    seed: int = setting(
        0,
        "seed of everything random",
        "a whole number in [0, 2**32)",
        lambda value: 0 <= value < 2**32,
        panel="Training",
    )
    save_every: int = whole(
        0, 0, "epochs between checkpoints that are kept, epoch-N.pt; 0: none", panel="Training", when=ONE_TRAINING
    )
    dtype: str = choice(
        "float32",
        ("float32", "bfloat16"),
        "type of activations and products (bfloat16: autocast)",
        panel="Machine",
    )
    channels_last: bool = flag(
        False,
        "keep images and weights in channels_last memory format",
        panel="Machine",
        when=but("model", "mlp"),
    )
    device: str = choice(
        "auto", ("auto", "cpu", "cuda"), "where to train; auto takes a GPU where there is one", panel="Machine"
    )
    backend: str = choice(
        "auto",
        BACKENDS,
        "kernels of the masked layers",
        panel="Machine",
        when=MASKED,
    )
    threads: int = setting(
        0,
        "CPU threads; 0 leaves PyTorch's choice",
        f"a whole number in [0, {MOST_THREADS}]",
        lambda value: 0 <= value <= MOST_THREADS,
        panel="Machine",
    )
    workers: int = whole(
        4,
        0,
        "processes that decode images, at most one a core; results do not depend on it",
        panel="Machine",
        when=only("dataset", *PHOTOGRAPHS),
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))
        if self.warmup >= self.epochs and self.warmup > 0:
            raise self.wrong("warmup", f"fewer than the {self.epochs} epochs")
        if self.nesterov and _SGD.holds(self) and self.momentum == 0:
            raise self.wrong("nesterov", "false with momentum 0, which it goes ahead by")

    def wrong(self, name: str, allowed: str) -> ConfigError:
        return ConfigError(f"expected {allowed}, got {getattr(self, name)!r}", name)

    def network(self, image: tuple[int, int, int], classes: int) -> nn.Module:
        """The untrained network for images [C, H, W] = ``image``, on the CPU, drawn from torch's global generator."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its network is made")

    def pictures(self, model: nn.Module, run: Path) -> list[Path]:
        """Draws what a method has to show of its trained network into the folder ``run``; the files."""
        return []

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch: linear warm-up, then as the schedule says, set once per epoch as hidden-networks
        does."""
        if epoch < self.warmup:
            return self.lr * (epoch + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "multistep":
            return self.lr * self.multistep_factor ** (epoch // self.multistep_every)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - self.warmup) / (self.epochs - self.warmup)))

    def keep_schedule(self, model: nn.Module, steps: int) -> ek.KeepSchedule | None:
        """The schedule of what ``model`` keeps, in ``steps`` an epoch; None where that stays."""
        return None

    def full_epochs(self) -> int:
        """The number of epochs before whose end a network keeps another share than the recipe says."""
        return 0

    def trainings(self) -> int:
        """The number of times that a network is trained for ``epochs``."""
        return 1

    def density(self) -> str:
        """The share of the network that is kept, in words; empty where that is no setting."""
        return f"keep {self.keep}" if hasattr(self, "keep") else ""

    def in_effect(self) -> list[dataclasses.Field]:
        """The settings that have an effect beside the values of the others."""
        return [field for field in dataclasses.fields(self) if field.metadata["when"].holds(self)]

    def resolved(self, images: int) -> "Recipe":
        """With the number of validation images for a training set of so many images."""
        return self.override(validation=usual_validation(images)) if self.validation == "auto" else self

    def to_dict(self) -> dict[str, Any]:
        """Plain values of the settings in effect, and the method's name: what JSON and checkpoints hold."""
        settings = {field.name: getattr(self, field.name) for field in self.in_effect()}
        return {"method": self.method} | {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}

    def override(self, **settings: Any) -> "Recipe":
        """A copy with other values; ConfigError for a setting this method does not have."""
        known = {field.name for field in dataclasses.fields(self)}
        for name, value in settings.items():
            if name not in known:
                raise ConfigError(f"the method {self.method} has no such setting, got {value!r}", name)
        return dataclasses.replace(self, **settings)

    def asked(self, **settings: Any) -> "Recipe":
        """``override`` by what somebody asks for: also ConfigError for a setting that has no effect beside the rest."""
        recipe = self.override(**settings)
        for field in dataclasses.fields(recipe):
            when = field.metadata["when"]
            if field.name in settings and not when.holds(recipe):
                value = getattr(recipe, field.name)
                raise ConfigError(f"has an effect with {when.words} only, got {value!r}", field.name)
        return recipe


def spelled(value: Any) -> str:
    """A setting's value as text, as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def panel(field: dataclasses.Field) -> str | None:
    """The group that a setting stands in; None: its method's own."""
    return field.metadata["panel"] or _PANELS.get(field.name)


_PANELS = {field.name: field.metadata["panel"] for field in dataclasses.fields(Recipe)}


class Entry(NamedTuple):
    """A recipe as `edgepop recipes` lists it: its settings, the accuracy it aims at, and who published that."""

    recipe: Recipe
    goal: str
    source: str
