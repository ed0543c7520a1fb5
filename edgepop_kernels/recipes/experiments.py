"""Comparisons of several trainings: accuracies side by side, and what each layer kept. The base of such recipes.

``job.experiment`` runs one; ``write`` leaves its numbers as CSV and PNG in the run folder.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import plots
from .config import Recipe, When, choice, setting
from .data import Batches, Dataset
from .errors import UserError
from .files import csv_bytes, write_atomic
from .plots import Chart
from .trainer import autocast, evaluate, make_optimizer


@dataclass(frozen=True)
class Result:
    """charts: the first is the one to look at; layers: (name, weights kept, weights) of the masked ones."""

    charts: list[Chart]
    layers: list[tuple[str, int, int]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Experiment(Recipe):
    """A recipe of several trainings: ``run`` instead of ``network``. Adam at a constant rate, no weight decay."""

    accumulate: int = setting(
        1,
        "parts of a batch",
        "1, a comparison computes whole batches",
        lambda value: value == 1,
        when=When("recipes of one training", lambda recipe: False),
    )
    optimizer: str = choice("adam", ("sgd", "adam"), "optimizer")
    weight_decay: float = setting(
        0.0, "weight decay on what trains", "a number, at least 0", lambda value: 0 <= value < math.inf
    )

    def run(self, data: Dataset, device: torch.device) -> Result:
        """All trainings, on ``device``; seeds the global generators."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it compares")

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model on the device, in the recipe's memory format."""
        return model.to(device, memory_format=torch.channels_last if self.channels_last else torch.preserve_format)

    def lr_at(self, epoch: int) -> float:
        """Linear warm-up, then constant."""
        return self.lr * min(1.0, (epoch + 1) / max(1, self.warmup))


def refuse_comparison(place: Path, recipe: Recipe) -> None:
    """UserError where ``recipe``, that of the run folder ``place``, is an experiment's: it leaves no checkpoints."""
    if isinstance(recipe, Experiment):
        raise UserError(
            f"{place} is a comparison of several trainings ({recipe.method}), which has no checkpoints to resume or "
            "export: none of its trainings is saved"
        )


@dataclass(frozen=True)
class Accuracies:
    """Fractions after each epoch; ``train`` over the epoch's own batches, as they were trained on."""

    train: list[float]
    test: list[float]


def epochs_chart(lines: dict[str, list[float]], name: str = "curves", title: str = "test accuracy") -> Chart:
    """A chart of lines of one value per epoch."""
    count = len(next(iter(lines.values())))
    return Chart(name, title, "epoch", list(range(1, count + 1)), lines)


def fit(
    recipe: Experiment,
    model: nn.Module,
    batches: Batches,
    *,
    lr: float | None = None,
    penalty: Callable[[], Tensor | float] = lambda: 0.0,
    augment: Callable[[Tensor], Tensor] = lambda images: images,
    patience: float = math.inf,
    on_epoch: Callable[[float], None] = lambda accuracy: None,
) -> Accuracies:
    """Trains for the recipe's epochs. lr: other than the recipe's; penalty: added to the loss of every step; augment:
    applied to the training images, float32 [B, C, H, W].

    patience: lr times 0.1 after so many epochs in a row whose training accuracy is no best by 1e-4. on_epoch: called
    with the test accuracy. Raises UserError where an epoch ends with a loss that is no number.
    """
    optimizer = make_optimizer(recipe, model)
    factor = 1.0 if lr is None else lr / recipe.lr
    found, best, waited = Accuracies([], []), -math.inf, 0
    for epoch in range(recipe.epochs):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = factor * recipe.lr_at(epoch)
        right = torch.zeros((), dtype=torch.int64, device=batches.mean.device)
        for images, labels in batches.train(epoch):
            optimizer.zero_grad(set_to_none=True)
            with autocast(recipe, images.device):
                logits = model(augment(images))
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            (loss + penalty()).backward()
            optimizer.step()
            right += (logits.argmax(1) == labels).sum()
        if not loss.isfinite():
            raise UserError(
                f"the loss is not a finite number after epoch {epoch + 1}: try a lower lr than {recipe.lr:g}"
            )
        found.train.append(right.item() / len(batches.data.train))
        found.test.append(evaluate(recipe, model, batches)[1])
        on_epoch(found.test[-1])
        if found.train[-1] > best + 1e-4:
            best, waited = found.train[-1], 0
        else:
            waited += 1
        if waited == patience:
            factor, waited = 0.1 * factor, 0
    return found


def write(result: Result, folder: Path, pictures: bool) -> list[Path]:
    """NAME.csv and NAME.png of each chart; where layers were masked, layers.csv and layers.png (share against size)."""
    files = []
    for chart in result.charts:
        files.append(_table(folder / f"{chart.name}.csv", {chart.x: chart.at} | chart.lines))
        if pictures:
            files.append(plots.lines(chart, folder / f"{chart.name}.png"))
    if result.layers:
        columns = zip(*result.layers, strict=True)
        files.append(_table(folder / "layers.csv", dict(zip(("layer", "kept", "weights"), columns, strict=True))))
        if pictures:
            files.append(plots.masked_by_size(result.layers, folder / "layers.png"))
    return files


def _table(path, columns):
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    write_atomic(path, csv_bytes(columns, rows))
    return path
