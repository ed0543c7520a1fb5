"""Comparisons of several trainings from one initialisation: accuracy curves, and what each layer kept.

Each is a class of settings with a ``run``; ``write`` leaves its curves as CSV and PNG in a folder.
"""

import copy
import csv
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgepop_kernels as ek

from ..methods import bayesian
from . import models, plots
from .checkpoint import seed_everything
from .config import Recipe, choice, positive, setting
from .data import Batches, Dataset
from .files import make_folder, write_atomic
from .trainer import evaluate, kept_per_layer


@dataclass(frozen=True)
class Result:
    """curves: test accuracy (a fraction) after each epoch of each training; layers: (name, kept, weights)."""

    curves: dict[str, list[float]]
    layers: list[tuple[str, int, int]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class BayesianTickets(Recipe):
    """A posterior is trained, then two deterministic networks from its initial means: whole, and with the weights
    masked that the criterion ranks lowest. Adam throughout, constant lr; the settings of the source are not published.
    """

    method: ClassVar[str] = "bayesian-tickets"

    keep: float = setting(0.2, "fraction of weights kept", "a number in (0, 1]", lambda value: 0 < value <= 1)
    criterion: str = choice("low_variance", bayesian.CRITERIA, "what ranks the weights")
    lr: float = positive(0.001, "learning rate of all trainings")

    def run(self, data: Dataset, device: torch.device) -> Result:
        return self.tickets(data, device, [self.criterion])

    def tickets(self, data: Dataset, device: torch.device, criteria: list[str]) -> Result:
        """The posterior and the whole network once, and the masked network of each criterion."""
        seed_everything(self.seed)
        sizes = (torch.Size(data.image).numel(), *self.widths, data.classes)
        layers: list[nn.Module] = [nn.Flatten()]
        for narrow, wide in itertools.pairwise(sizes):
            layers += [bayesian.VariationalLinear(narrow, wide), nn.ReLU()]
        posterior = nn.Sequential(*layers[:-1]).to(device)
        means = bayesian.initial_means(posterior)
        batches = Batches(data.to(device), self.batch_size, self.seed)
        elbo = partial(bayesian.negative_elbo, posterior, examples=len(data.train))
        curves = {"posterior": _train(self, posterior, batches, elbo)}
        curves["unmasked"] = _train(self, bayesian.ticket(posterior, means, "random", 1.0), batches)
        kept = []
        for criterion in criteria:
            ticket = bayesian.ticket(posterior, means, criterion, self.keep)
            curves[f"keep {self.keep:g} by {criterion}"] = _train(self, ticket, batches)
            kept = kept_per_layer(ticket)
        return Result(curves, kept)


@dataclass(frozen=True, kw_only=True)
class SupermaskInit(Recipe):
    """Is a supermask a good initialisation? Mask only; weights only from the same start; then the best mask is frozen
    and the weights are trained on with a small lr. Adam, constant rates; biases are masked too.
    """

    method: ClassVar[str] = "supermask-init"

    lr: float = positive(0.01, "learning rate of masks and of weights alone")
    fine_tune_lr: float = positive(1e-5, "learning rate of the weights under the best mask")

    def run(self, data: Dataset, device: torch.device) -> Result:
        seed_everything(self.seed)
        options = dict(mask_bias=True)
        layers = models.Layers(
            conv=partial(ek.FusedSupermaskConv, kernel_size=3, padding=1, **options),
            linear=partial(ek.FusedSupermaskLinear, **options),
        )
        sizes = dict(widths=self.widths, width_multiplier=self.width_multiplier)
        masked = models.build(self.model, data.image, data.classes, layers, **sizes).to(device)
        for layer in masked:
            if isinstance(layer, (ek.FusedSupermaskConv, ek.FusedSupermaskLinear)):
                ek.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        weights = ek.train_weights(copy.deepcopy(masked))  # scores start at 1: every weight is kept
        batches = Batches(data.to(device), self.batch_size, self.seed)
        best = {"accuracy": -1.0}

        def remember(accuracy: float) -> None:
            if accuracy > best["accuracy"]:
                best.update(accuracy=accuracy, state=copy.deepcopy(masked.state_dict()))

        curves = {"mask only": _train(self, masked, batches, on_epoch=remember)}
        curves["weights only"] = _train(self, weights, batches)
        masked.load_state_dict(best["state"])
        ek.train_weights(masked)
        curves["best mask, then weights"] = _train(self, masked, batches, lr=self.fine_tune_lr)
        return Result(curves, kept_per_layer(masked))


EXPERIMENTS: dict[str, type[Recipe]] = {kind.method: kind for kind in (BayesianTickets, SupermaskInit)}


def _train(
    recipe: Recipe,
    model: nn.Module,
    batches: Batches,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    on_epoch: Callable[[float], None] = lambda accuracy: None,
    lr: float | None = None,
) -> list[float]:
    """Test accuracy after each epoch."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=recipe.lr if lr is None else lr)
    accuracies = []
    for epoch in range(recipe.epochs):
        model.train()
        for images, labels in batches.train(epoch):
            optimizer.zero_grad(set_to_none=True)
            loss(model(images), labels).backward()
            optimizer.step()
        accuracies.append(evaluate(recipe, model, batches)[1])
        on_epoch(accuracies[-1])
    return accuracies


def write(result: Result, folder: Path) -> list[Path]:
    """curves.csv, curves.png and, where layers were masked, kept.csv and kept.png (share kept against size)."""
    make_folder(folder)
    rows = zip(*result.curves.values(), strict=True)
    files = [_table(folder / "curves.csv", ["epoch", *result.curves], [[i + 1, *row] for i, row in enumerate(rows)])]
    files.append(plots.curves(result.curves, folder / "curves.png"))
    if result.layers:
        files.append(_table(folder / "kept.csv", ["layer", "kept", "weights"], result.layers))
        files.append(plots.kept_by_size(result.layers, folder / "kept.png"))
    return files


def _table(path, header, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomic(path, text.getvalue().encode())
    return path
