"""The display of a run: a progress bar on a terminal, plain lines elsewhere, and the summary at its end."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import timing
from .masks import count_weights
from .timing import StepTimes
from .trainer import Trainer


@dataclass(frozen=True)
class Summary:
    """The numbers a finished run ends with. The digests of what does not train are None where everything does.

    last, best: rows of the log, of the last epoch and of that with the highest accuracy on ``picked_on``, "validation"
    or "test". ended: where ``max_steps`` ended it before its last epoch, in words; else empty.
    """

    last: dict
    best: dict
    picked_on: str
    ended: str
    layers: list[tuple[str, int, int]]
    frozen_before: str | None
    frozen_after: str | None
    ran_on: list[dict]

    @property
    def accuracy(self) -> float:
        """The accuracy on the test set, after the last epoch."""
        return self.last["test_accuracy"]

    @property
    def headline(self) -> dict[str, float]:
        """Test accuracies that nothing was picked by: what to report, by what they are of."""
        found = {"test accuracy, last epoch": self.accuracy}
        if self.picked_on != "test":
            found["test accuracy, epoch picked by validation"] = self.best["test_accuracy"]
        return found

    @property
    def accuracies(self) -> dict:
        """Accuracies by name. Each that was picked, and its epoch, is named by the images that picked it."""
        picked = self.picked_on
        found = {
            f"{picked}_accuracy": self.last[f"{picked}_accuracy"],
            "test_accuracy": self.accuracy,
            f"best_{picked}_accuracy": self.best[f"{picked}_accuracy"],
            f"best_{picked}_epoch": self.best["epoch"],
        }
        return found | ({"test_accuracy_at_best_validation": self.best["test_accuracy"]} if picked != "test" else {})

    @property
    def kept(self) -> int:
        return sum(kept for _, kept, _ in self.layers)

    @property
    def weights(self) -> int:
        return sum(weights for _, _, weights in self.layers)

    @property
    def unchanged(self) -> bool | None:
        """Whether what does not train is as it was; None where everything trains."""
        return None if self.frozen_before is None else self.frozen_before == self.frozen_after

    def to_dict(self) -> dict:
        return self.accuracies | {
            "ended": self.ended,
            "layers": [{"name": name, "kept": kept, "weights": weights} for name, kept, weights in self.layers],
            "ran_on": self.ran_on,
            "frozen_weights_sha256": None if self.unchanged is None else [self.frozen_before, self.frozen_after],
        }


class Report:
    """Writes to ``console``; a terminal also gets a bar over the steps of the whole run.

    clock: seconds, from any beginning.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.perf_counter):
        self.console, self.clock = console, clock

    def line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def started(self, name: str, folder: Path, trainer: Trainer) -> None:
        recipe, data = trainer.recipe, trainer.data
        weights = count_weights(trainer.model)
        images = f"{len(data.train):,} training images"
        if data.validation is not None:
            images += f", {len(data.validation):,} held out for validation"
        self.line(f"{name}: {recipe.model} ({weights:,} weights) on {data.name} ({images})")
        self.line(f"run folder: {folder}")
        if trainer.epoch or trainer.step:
            self.line(f"continuing after epoch {trainer.epoch}, step {trainer.step}")
        self.begun = self.epoch_begun = self.clock()
        self.steps_before = trainer.steps_done

    @contextlib.contextmanager
    def progress(self, trainer: Trainer) -> Iterator[Callable[[], None]]:
        """Yields what to call after every step."""
        if not self.console.is_terminal:
            yield lambda: None
            return
        columns = [
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("", total=trainer.steps, epoch="")

            def advance() -> None:
                epoch = f"{trainer.epoch + 1}/{trainer.recipe.epochs}"
                bar.update(task, completed=trainer.steps_done, epoch=epoch)

            advance()
            yield advance

    def epoch(self, trainer: Trainer) -> None:
        """The epoch just finished: its numbers, the time it took (here: of an epoch continued, the rest), and how much
        is left at the pace of this process so far."""
        row, epochs, now = trainer.history[-1], trainer.recipe.epochs, self.clock()
        accuracies = {"train": row["train_accuracy"]}
        accuracies |= {part: row[f"{part}_accuracy"] for part in trainer.data.evaluated}
        words = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {row['train_loss']:.4f}"]
        words += [f"{part} {accuracy:.2%}" for part, accuracy in accuracies.items()]
        words += [f"lr {row['lr']:.4g}", duration(now - self.epoch_begun)]
        done = trainer.steps_done - self.steps_before
        if done and not trainer.finished:  # none, where this process has evaluated an epoch that another trained
            pace = (now - self.begun) / done
            words[-1] += f", {duration(pace * (trainer.steps - trainer.steps_done))} left"
        self.epoch_begun = now
        self.line("  ".join(words))

    def summary(self, summary: Summary, goal: str | None) -> None:
        table = Table(title="summary", title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        for what, accuracy in summary.headline.items():
            table.add_row(what, f"{accuracy:.2%}")
        best, picked = summary.best, summary.picked_on
        what = f"best {picked} accuracy" + (" (picked on the test set)" if picked == "test" else "")
        table.add_row(what, f"{best[f'{picked}_accuracy']:.2%} (epoch {best['epoch']})")
        if summary.ended:
            table.add_row("ended", summary.ended)
        if goal is not None:
            table.add_row("aims at", goal)
        for name, kept, weights in summary.layers:
            table.add_row(f"kept in layer {name}", f"{kept:,} of {weights:,} ({kept / weights:.2%})")
        if summary.layers:
            table.add_row(
                "kept in all", f"{summary.kept:,} of {summary.weights:,} ({summary.kept / summary.weights:.2%})"
            )
        if summary.unchanged is not None:
            same = "bit-identical" if summary.unchanged else "CHANGED"
            table.add_row("weights before", f"sha256 {summary.frozen_before[:16]}")
            table.add_row("weights after", f"sha256 {summary.frozen_after[:16]} ({same})")
        self.console.print(table)

    def step_times(self, times: StepTimes) -> None:
        ratios = times.ratios()
        for name, (low, median, high) in times.quartiles().items():
            # "auto" and the kernels by name are ours; "reference" may be the run's own as well.
            path = f"fused ({name})" if name == times.own and name not in ("dense", "reference") else name
            half = f"half of {times.rounds} steps in {1e3 * low:.4g} to {1e3 * high:.4g}"
            line = f"step time, {path}: {1e3 * median:.3f} ms, {half}"
            if name in ratios:
                low, median, high = ratios[name]
                line += f"; {median:.2f} times the run's own, half in {low:.4g} to {high:.4g}"
            self.line(line)
        if times.busy:
            self.line(
                f"busy machine: the middle half of a path's steps is wider than {timing.BUSY:.0%} of their median, so "
                "these times are rough"
            )


def duration(seconds: float) -> str:
    """A duration in the two largest units: 4.2 s, 1 min 20 s, 2 h 5 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
