"""What a run shows: a progress bar on a terminal, plain lines elsewhere, and the summary at its end."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import timing
from .timing import StepTimes
from .trainer import Trainer


@dataclass(frozen=True)
class Summary:
    """The numbers a finished run ends with. The digests of what does not train are None where everything does."""

    accuracy: float
    best_accuracy: float
    best_epoch: int
    layers: list[tuple[str, int, int]]
    frozen_before: str | None
    frozen_after: str | None

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
        return {
            "test_accuracy": self.accuracy,
            "best_accuracy": self.best_accuracy,
            "best_epoch": self.best_epoch,
            "layers": [{"name": name, "kept": kept, "weights": weights} for name, kept, weights in self.layers],
            "frozen_weights_sha256": None if self.unchanged is None else [self.frozen_before, self.frozen_after],
        }


class Report:
    """Writes to ``console``; a terminal also gets a bar over the steps of the whole run."""

    def __init__(self, console: Console):
        self.console = console

    def line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def started(self, name: str, folder: Path, trainer: Trainer) -> None:
        recipe, data = trainer.recipe, trainer.data
        weights = sum(p.numel() for n, p in trainer.model.named_parameters() if n.endswith("weight"))
        self.line(f"{name}: {recipe.model} ({weights:,} weights) on {data.name} ({len(data.train):,} training images)")
        self.line(f"run folder: {folder}")
        if trainer.epoch or trainer.step:
            self.line(f"continuing after epoch {trainer.epoch}, step {trainer.step}")

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
        steps, epochs = trainer.batches.steps(), trainer.recipe.epochs
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("", total=steps * epochs, epoch="")

            def advance() -> None:
                done = trainer.epoch * steps + trainer.step
                bar.update(task, completed=done, epoch=f"{trainer.epoch + 1}/{epochs}")

            advance()
            yield advance

    def epoch(self, row: dict, epochs: int) -> None:
        self.line(
            f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  loss {row['train_loss']:.4f}  "
            f"train {row['train_accuracy']:.2%}  test {row['test_accuracy']:.2%}  lr {row['lr']:.4g}"
        )

    def summary(self, summary: Summary, goal: str | None) -> None:
        table = Table(title="summary", title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_row("test accuracy", f"{summary.accuracy:.2%}")
        table.add_row("best epoch", f"{summary.best_accuracy:.2%} (epoch {summary.best_epoch})")
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
