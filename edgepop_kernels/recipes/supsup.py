"""Supermasks in superposition: a mask for each task over one set of random weights, the task given or inferred.

Wortsman et al., "Supermasks in Superposition", NeurIPS 2020, arXiv 2006.14769: scenarios GG (the task is given in
training and inference) and GNu (in training alone). A task is the data set with its pixels in an order of its own, or
rotated. Outputs beyond the classes are what a network spreads over that was not trained on a task.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F

import edgepop_kernels as ek

from . import models
from .checkpoint import seed_everything
from .config import Entry
from .data import Batches, Dataset, Split
from .data.batches import generator
from .drawn import keep
from .experiments import Experiment, Result, fit
from .layers import Layers
from .masks import kept_per_layer
from .plots import Chart
from .session import Left, Outcome, Session
from .settings import choice, only, positive, setting, whole


@dataclass(frozen=True, kw_only=True)
class SupSup(Experiment):
    """Trains a mask for each task, one after the other; after each, the tasks of test images of all tasks so far are
    inferred, batch by batch, from the superposition of their masks."""

    method: ClassVar[str] = "supsup"

    model: str = choice("mlp", models.WITHOUT_NORM, "network")
    epochs: int = whole(5, 1, "passes over the training set, of each task")
    optimizer: str = choice("sgd", ("sgd", "adam"), "optimizer")
    lr: float = positive(0.03, "learning rate at its highest")
    tasks: int = whole(5, 1, "tasks")
    change: str = choice("permuted", ("permuted", "rotated"), "what makes a task of the data, of its pixels")
    outputs: int = whole(100, 1, "outputs of the network, those beyond the classes included")
    rule: str = choice("top-k", ("top-k", "sign"), "which scores are kept: the best by magnitude, or all from 0 on")
    keep: float = keep(0.5, when=only("rule", "top-k"))
    infer: str = choice("one-shot", ("one-shot", "binary"), "how a task is inferred: by one gradient, or by halving")
    infer_batch: int = whole(60, 1, "test images of one batch, all of one task that is inferred")
    infer_images: int = setting(
        0, "how many of them it is inferred by; 0: all", "a whole number, at least 0", lambda value: value >= 0
    )

    def density(self) -> str:
        return f"keep {self.keep}" if self.rule == "top-k" else "scores from 0 on"

    def trainings(self) -> int:
        return self.tasks

    def compare(self, data: Dataset, device: torch.device, session: Session) -> None:
        if not isinstance(data, Dataset):
            raise self.wrong("dataset", "one whose images are held in memory")
        if self.outputs < data.classes:
            raise self.wrong("outputs", f"at least the {data.classes} classes of {data.name}")
        seed_everything(self.seed)
        bank = ek.MaskBank(self.place(self._network(data), device))
        left: list[Left] = []

        def train_task(task):
            batches = self.batches(self._of_task(data, task), device)
            for bits in left[bank.tasks :]:  # of an earlier process
                shapes = {name: bank.model.get_submodule(name).weight.shape for name in bits}
                bank.add({name: ek.unpack_mask(bits[name].to(device), shape) for name, shape in shapes.items()})
            bank.add()
            found = fit(self, bank.model, batches, session).outcome
            bank.freeze()
            layers = kept_per_layer(bank.model)
            inferred, right = self._inferred(bank, data, device)
            return replace(found, layers=layers, inferred=inferred, found=right), bank.packed_masks(task)

        for task in range(self.tasks):
            left.append(session.training(_name(task), partial(train_task, task), lasting=True))

    def result(self, finished: dict[str, Outcome]) -> Result:
        done = list(finished.values())
        given = [found.test[-1] for found in done]
        learned = list(range(1, len(done) + 1))
        lines = {
            "task given": [_mean(given[:count]) for count in learned],
            "task inferred": [_mean(found.inferred) for found in done],
        }
        last = done[-1]
        tasks = {"task given": given, "task inferred": last.inferred, "batches whose task was found": last.found}
        return Result(
            [
                Chart("superposition", "test accuracy over the tasks learned", "tasks learned", learned, lines),
                Chart("tasks", "each task, after the last was learned", "task", learned, tasks),
            ],
            finished,
            [f"the task was found of {100 * _mean(last.found):.1f} % of batches, among {len(done)}"],
        )

    def _network(self, data):
        rule = ek.TopK(self.keep) if self.rule == "top-k" else ek.Threshold(0.0, of="raw", inclusive=True)
        layers = Layers(
            conv=partial(ek.FusedSubnetConv, bias=False, rule=rule),
            linear=partial(ek.FusedSubnetLinear, bias=False, rule=rule),
        )
        sizes = dict(widths=self.widths, width_multiplier=self.width_multiplier)
        model = models.build(self.model, data.image, self.outputs, layers, **sizes)
        for module in model.modules():
            if isinstance(module, (ek.FusedSubnetConv, ek.FusedSubnetLinear)):
                ek.init.signed_constant_(module.weight, self.keep if self.rule == "top-k" else 0.5, scale="paper")
        return ek.share_selection(model)

    def _of_task(self, data: Dataset, task: int) -> Dataset:
        """The data of a task. Every task has the images of the others: they differ in what is done to the pixels."""
        changed = partial(self._changed, task=task)
        return replace(data, train=changed(data.train), test=changed(data.test), augment=False)

    def _changed(self, split: Split, task: int) -> Split:
        images = split.images
        if self.change == "permuted":
            order = torch.randperm(images[0, 0].numel(), generator=generator(self.seed, "task", task)).to(images.device)
            return replace(split, images=images.flatten(2)[..., order].view_as(images))
        angle = torch.tensor(task * (360 // self.tasks)).deg2rad()
        turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]]).to(images.device)
        places = F.affine_grid(turn[None], [1, *images.shape[1:]], align_corners=False)
        turned = [
            F.grid_sample(part.float(), places.expand(len(part), -1, -1, -1), mode="nearest", align_corners=False)
            for part in images.split(4096)
        ]
        return replace(split, images=torch.cat(turned).to(images.dtype))

    def _inferred(self, bank: ek.MaskBank, data: Dataset, device: torch.device) -> tuple[list[float], list[float]]:
        """Of each task that the bank has, the accuracy on its test images and the share of their batches whose task is
        the one inferred; the last task stays in use."""
        accuracies, found = [], []
        learned = bank.task
        bank.eval()
        for task in range(bank.tasks):
            of_task = self.batches(self._of_task(data, task), device)
            right = hits = batches = 0
            for images, labels in _in_batches(of_task, self.infer_batch):
                seen = images[: self.infer_images or None]
                inferred = bank.infer(seen, halving=self.infer == "binary")
                bank.use(inferred)
                with torch.no_grad():
                    right += int((bank(images).argmax(1) == labels).sum())
                hits, batches = hits + (inferred == task), batches + 1
            accuracies.append(right / len(of_task.data.test))
            found.append(hits / batches)
        bank.use(learned)
        return accuracies, found


def _in_batches(batches: Batches, size: int):
    for images, labels in batches.in_order(batches.data.test):
        yield from zip(images.split(size), labels.split(size), strict=True)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _name(task: int) -> str:
    return f"task {task + 1}"


_PAPER = "Wortsman et al. 2020 (arXiv 2006.14769)"
_MNIST = dict(
    dataset="mnist", rule="sign", optimizer="adam", lr=1e-4, batch_size=128, epochs=2, infer_batch=128, infer_images=1
)

RECIPES = {
    "supsup-digits": Entry(SupSup(widths=(500, 500)), "no published number", "this project"),
    "supsup-mnist": Entry(SupSup(**_MNIST, tasks=10), "published as curves only", f"{_PAPER}, permuted MNIST"),
    "supsup-mnist-rotated": Entry(
        SupSup(
            **_MNIST | {"infer_images": 128, "infer": "binary"},
            change="rotated",
            widths=(1024, 1024),
            tasks=36,
            outputs=200,
        ),
        "published as curves only",
        f"{_PAPER}, rotated MNIST",
    ),
}
