"""Comparisons of several trainings: accuracies side by side, and what each layer kept. The base of such recipes.

A recipe says which trainings there are (``compare``) and what they show (``result``), after each of them as at the end:
``comparison.run`` trains in a run folder, and ``write`` leaves the numbers there as CSV and PNG.
"""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checkpoint, finite, plots
from .config import SCHEDULES, Recipe
from .data import Batches, Dataset, hold_out
from .data.batches import generator
from .errors import NotFinite, UserError
from .files import csv_bytes, write_atomic
from .plots import Chart
from .session import Outcome, Session
from .settings import ONE_TRAINING, choice, decay, setting
from .trainer import autocast, evaluate, make_optimizer


@dataclass(frozen=True)
class Result:
    """charts: the first is the one to look at; variants: what is compared, each by the outcome it ends with.

    notes: what has to be known beside the numbers, a sentence each.
    """

    charts: list[Chart]
    variants: dict[str, Outcome]
    notes: list[str] = field(default_factory=list)

    @property
    def layers(self) -> list[tuple[str, int, int]]:
        """(name, weights kept, weights) of the last variant's masked layers; of the last one that has any."""
        return next((found.layers for found in reversed(self.variants.values()) if found.layers), [])


@dataclass(frozen=True, kw_only=True)
class Experiment(Recipe):
    """A recipe of several trainings: ``compare`` instead of ``network``. Adam at a constant rate, no weight decay."""

    compares: ClassVar[bool] = True

    accumulate: int = setting(
        1,
        "parts of a batch",
        "1, a comparison computes whole batches",
        lambda value: value == 1,
        when=ONE_TRAINING,
    )
    optimizer: str = choice("adam", ("sgd", "adam"), "optimizer")
    schedule: str = choice("constant", SCHEDULES, "how lr goes on after the warm-up, set once an epoch")
    weight_decay: float = decay(0.0)
    validation: int = setting(
        0, "held out", "0, a comparison picks no epoch", lambda value: value == 0, when=ONE_TRAINING
    )
    max_steps: int = setting(
        0, "steps", "0, a comparison trains whole epochs", lambda value: value == 0, when=ONE_TRAINING
    )

    def trainings(self) -> int:
        """The number of trainings that ``compare`` does."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many trainings it compares")

    def compare(self, data: Dataset, device: torch.device, session: Session) -> None:
        """All trainings, each by ``session.training``, on ``device``; seeds the global generators."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it compares")

    def result(self, finished: dict[str, Outcome]) -> Result:
        """The results of the trainings ``finished`` so far, at least one."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its trainings show")

    def run(self, data: Dataset, device: torch.device) -> Result:
        """``compare`` outside a run folder: nothing is shown or saved."""
        session = Session()
        self.compare(data, device, session)
        return self.result(session.finished)

    def batches(self, data: Dataset, device: torch.device) -> Batches:
        """The batches of the data set, which is moved to the device; less what is held out."""
        data = hold_out(data, self.resolved(len(data.train)).validation)
        sizes = dict(batch_size=self.batch_size, seed=self.seed)
        return Batches(data.to(device), **sizes, channels_last=self.channels_last, workers=self.workers)

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model on the device, in the recipe's memory format."""
        return model.to(device, memory_format=torch.channels_last if self.channels_last else torch.preserve_format)


def refuse_comparison(place: Path, recipe: Recipe) -> None:
    """UserError where ``recipe``, that of the run folder ``place``, is an experiment's: it leaves no network."""
    if isinstance(recipe, Experiment):
        raise UserError(
            f"{place} is a comparison of several trainings ({recipe.method}): it keeps their accuracies, and no "
            "trained network to export or evaluate"
        )


def epochs_chart(lines: dict[str, list[float]], name: str = "curves", title: str = "test accuracy") -> Chart:
    """A chart of lines of one value per epoch."""
    count = len(next(iter(lines.values())))
    return Chart(name, title, "epoch", list(range(1, count + 1)), lines)


@dataclass
class _Place:
    """The place that a training has reached, beside the states of its network and optimizer. Plain data.

    factor: on the recipe's lr; right: answers in the epoch that has begun; best, waited: of the training accuracy;
    picked: a copy of the network's state at its best epoch, where that is asked for.
    """

    factor: float
    epoch: int = 0
    step: int = 0
    right: int = 0
    train: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: float = -math.inf
    waited: int = 0
    picked: dict[str, Tensor] | None = None


class Fitted(NamedTuple):
    outcome: Outcome
    picked: dict[str, Tensor] | None


def fit(
    recipe: Experiment,
    model: nn.Module,
    batches: Batches,
    session: Session,
    *,
    lr: float | None = None,
    penalty: Callable[[], Tensor | float] = lambda: 0.0,
    augment: Callable[[Tensor, torch.Generator], Tensor] = lambda images, generator: images,
    patience: float = math.inf,
    pick: bool = False,
) -> Fitted:
    """Trains for the recipe's epochs, as the current training of the session. lr: other than the recipe's; penalty:
    added to the loss of every step; augment: applied to the training images, float32 [B, C, H, W].

    patience: lr times 0.1 after so many epochs in a row whose training accuracy is no best by 1e-4. pick: a state_dict
    of the first epoch with the best accuracy, on the images held out or else on the test part, is returned too. Raises
    Interrupted, and NotFinite where a loss is no number.
    """
    optimizer = make_optimizer(recipe, model)
    place = _Place(1.0 if lr is None else lr / recipe.lr)
    if (begun := session.begun()) is not None:
        model.load_state_dict(begun["model"])
        optimizer.load_state_dict(begun["optimizer"])
        place = _Place(**begun["place"])
        checkpoint.set_random_state(begun["random"])
    right = torch.tensor(place.right, device=batches.mean.device)
    loss_finite = torch.tensor(True, device=batches.mean.device)  # looked at once an epoch, and before a save

    def check_finite() -> None:
        if not loss_finite:
            raise NotFinite(
                f"the loss is not a finite number in epoch {place.epoch + 1}: try a lower lr than {recipe.lr:g}"
            )
        finite.check(model, optimizer, place.epoch, recipe.lr)

    def state() -> dict:
        check_finite()
        place.right = right.item()
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        return states | {"place": vars(place), "random": checkpoint.random_state()}

    while place.epoch < recipe.epochs:
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = place.factor * recipe.lr_at(place.epoch)
        for images, labels in batches.train(place.epoch, place.step):
            drawn = generator(recipe.seed, place.epoch, place.step)
            optimizer.zero_grad(set_to_none=True)
            with autocast(recipe, images.device):
                logits = model(augment(images, drawn))
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            (loss + penalty()).backward()
            optimizer.step()
            right += (logits.argmax(1) == labels).sum()
            place.step += 1
            loss_finite &= loss.isfinite()
            session.step(place.epoch, place.step, batches.steps(), state)
        check_finite()
        place.train.append(right.item() / len(batches.data.train))
        accuracies = {"train": place.train, "validation": place.validation, "test": place.test}
        for part in batches.data.evaluated:
            accuracies[part].append(evaluate(recipe, model, batches, part)[1])
        picked_on = accuracies[next(iter(batches.data.evaluated))]
        if pick and picked_on[-1] > max(picked_on[:-1], default=-1.0):
            place.picked = copy.deepcopy(model.state_dict())
        if place.train[-1] > place.best + 1e-4:
            place.best, place.waited = place.train[-1], 0
        else:
            place.waited += 1
        if place.waited == patience:
            place.factor, place.waited = 0.1 * place.factor, 0
        place.epoch, place.step = place.epoch + 1, 0
        right.zero_()
    return Fitted(Outcome(place.train, place.test, place.validation), place.picked)


def write(result: Result, folder: Path, pictures: bool) -> list[Path]:
    """NAME.csv and NAME.png of each chart; layers.csv, of all variants with masked layers, and layers.png, of the last
    of them (share against size)."""
    files = []
    for chart in result.charts:
        files.append(_table(folder / f"{chart.name}.csv", {chart.x: chart.at} | chart.lines))
        if pictures:
            files.append(plots.lines(chart, folder / f"{chart.name}.png"))
    rows = [(name, *layer) for name, found in result.variants.items() for layer in found.layers]
    if rows:
        columns = zip(*rows, strict=True)
        files.append(
            _table(folder / "layers.csv", dict(zip(("variant", "layer", "kept", "weights"), columns, strict=True)))
        )
        if pictures:
            files.append(plots.masked_by_size(result.layers, folder / "layers.png"))
    return files


def numbers(found: Outcome) -> dict:
    """The cells of a table for a training: accuracies after its last epoch; kept and weights of its masked layers.
    Empty where there are none, as where no images are held out."""
    kept = {"kept": found.kept, "weights": found.weights} if found.layers else {"kept": "", "weights": ""}
    validation = found.validation[-1] if found.validation else ""
    return kept | {"validation_accuracy": validation, "test_accuracy": found.test[-1]}


def write_trainings(finished: dict[str, Outcome], folder: Path) -> Path:
    """trainings.csv: the trainings in their order, with the accuracies after the last epoch, and on the test part
    before the first where that was asked for."""
    rows = [
        {"training": name}
        | numbers(found)
        | {
            "test_accuracy_before": "" if found.before is None else found.before,
            "train_accuracy": found.train[-1],
        }
        for name, found in finished.items()
    ]
    path = folder / "trainings.csv"
    write_atomic(path, csv_bytes(rows[0], rows))
    return path


def _table(path, columns):
    """Lines that are not finished end in empty cells."""
    rows = [dict(zip(columns, row, strict=True)) for row in itertools.zip_longest(*columns.values(), fillvalue="")]
    write_atomic(path, csv_bytes(columns, rows))
    return path
