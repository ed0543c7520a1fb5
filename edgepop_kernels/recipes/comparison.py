"""A comparison in its run folder: what is shown and saved while it trains, how it goes on, and what it ends with.

``finished.pt`` holds what the finished trainings found and what later ones start from, ``current.pt`` the training
under way. Both are whole or absent: a process killed at any moment loses the work since the last save, and what all
processes together found are the tables of one that was left in peace.
"""

import contextlib
import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from . import checkpoint, experiments, machine, registry, runs
from .data import Dataset, ImageFolder
from .errors import Interrupted, NotFinite, UserError
from .experiments import Experiment, Result
from .files import remove, write_atomic
from .interrupt import Stop
from .parallel import World
from .report import Report
from .session import Outcome, Session

# Seconds between saves of the training under way. Results do not depend on it; a save takes a few milliseconds for the
# networks of the digits, whose epochs are as short.
SAVE_EVERY = 30.0


def begin(run: Path, recipe: Experiment, dataset: Dataset | ImageFolder, here: dict) -> dict:
    """Saves and returns the state of a comparison whose trainings are all to be done. here: ``machine.described``."""
    state = {
        "config": recipe.to_dict(),
        "data_digest": dataset.digest(),
        "finished": {},
        "left": {},
        "lasting": [],
        "random": None,
        "seconds": 0.0,
        "ran_on": [here],
    }
    checkpoint.save(run, ["finished"], state)
    return state


def go_on(run: Path, recipe: Experiment, state: dict, here: dict) -> dict:
    """The state as it continues ``here``, with the settings of ``recipe``; saved where it is another place."""
    ran_on = machine.went_on(state["ran_on"], here)
    if len(state["finished"]) == recipe.trainings() or ran_on == state["ran_on"]:
        return state
    state = state | {"config": recipe.to_dict(), "ran_on": ran_on}
    checkpoint.save(run, ["finished"], state)
    return state


def load(run: Path) -> dict:
    """The state of the comparison in ``run``; UserError where it is missing or damaged."""
    return checkpoint.load(checkpoint.path(run, "finished"))


def run(
    recipe: Experiment,
    dataset: Dataset | ImageFolder,
    device: torch.device,
    folder: Path,
    record: dict,
    state: dict,
    pictures: bool,
    report: Report,
) -> Result:
    """Do the trainings that ``state`` lacks in the run folder ``folder``, whose config.json is ``record``; conclude.

    Raises UserError and Interrupted.
    """
    name = record["recipe"]
    if state["data_digest"] != dataset.digest():
        raise UserError(f"the {dataset.name} data are not those this run was started with: their hashes differ")
    left = len(dataset.train) - recipe.validation
    held = f", {recipe.validation:,} held out for validation" if recipe.validation else ""
    report.line(f"{name}: {recipe.model} on {dataset.name} ({left:,} training images{held})")
    report.line(f"{recipe.trainings()} trainings of {recipe.epochs} epochs")
    report.line(f"run folder: {folder}")
    with Stop() as stop:
        session = Saved(folder, recipe, device, state, report, stop)
        if session.finished or session.current:
            report.line(f"continuing after {len(session.finished)} of {session.total} trainings")
        with _bar(session, report) as session.show:
            recipe.compare(dataset, device, session)
    return _conclude(session, record, len(dataset.train), pictures)


class Saved(Session):
    """The session of ``recipe`` in the run folder ``run``, from ``state`` on. total: how many trainings it has.

    show: what to call when ``done`` has grown.
    """

    def __init__(self, run: Path, recipe: Experiment, device: torch.device, state: dict, report: Report, stop: Stop):
        super().__init__()
        self.run, self.recipe, self.report, self.stop, self.state = run, recipe, report, stop, state
        self.total, self.name, self.place, self.show = recipe.trainings(), "", (0, 0, 1), lambda: None
        self.finished = {name: Outcome(**found) for name, found in state["finished"].items()}
        self.left, self.lasting = _to(device, state["left"]), set(state["lasting"])
        self.random, seconds, self.current = state["random"], state["seconds"], None
        if self.file.exists():
            try:
                current = checkpoint.load(self.file)
            except UserError as error:
                raise UserError(f"{error}; without that file the training under way begins again") from error
            # A process that was killed may have left that of a training which it had finished.
            if current["training"] not in self.finished:
                self.current, seconds = current["fit"], current["seconds"]
        self.started, self.saved = time.monotonic() - seconds, time.monotonic()

    @property
    def file(self) -> Path:
        """The file of the training under way."""
        return checkpoint.path(self.run, "current")

    @property
    def seconds(self) -> float:
        """The seconds of all processes together, without the work that was lost when one was killed."""
        return time.monotonic() - self.started

    @property
    def done(self) -> float:
        """Trainings done, of the current one a part."""
        epoch, step, steps = self.place
        return len(self.finished) + (epoch + step / steps) / self.recipe.epochs

    def known(self, name: str) -> None:
        if name == list(self.finished)[-1] and self.random is not None:
            # The next training draws on from where this one ended.
            checkpoint.set_random_state(self.random)
            self.random = None

    def begin(self, name: str) -> None:
        self.name, self.place = name, (0, 0, 1)
        self.show()

    def begun(self) -> dict | None:
        current, self.current = self.current, None
        return current

    def step(self, epoch: int, step: int, steps: int, state: Callable[[], dict]) -> None:
        self.place = epoch, step, steps
        self.show()
        stopped = self.stop.requested
        if stopped is None and time.monotonic() - self.saved < SAVE_EVERY:
            return
        current = {"training": self.name, "fit": state(), "seconds": self.seconds}
        checkpoint.save(self.run, ["current"], current)
        self.saved = time.monotonic()
        if stopped is not None:
            raise Interrupted(
                f"stopped by {stopped} in training {len(self.finished) + 1} of {self.total} ({self.name}) after epoch "
                f"{epoch}, step {step}; everything is saved in {self.run}: {World().resumption(self.run)}"
            )

    def failed(self, name: str, error: NotFinite) -> UserError:
        count = len(self.finished)
        return UserError(f"{name}: {error}; {self.run} holds the {count} trainings before it")

    def end(self, name: str) -> None:
        self.place = (0, 0, 1)
        if len(self.finished) == self.total:
            self.left = {}  # nothing starts from it any more
        self.state |= {
            "finished": {name: dataclasses.asdict(found) for name, found in self.finished.items()},
            "left": self.left,
            "lasting": sorted(self.lasting),
            "random": checkpoint.random_state(),
            "seconds": self.seconds,
        }
        checkpoint.save(self.run, ["finished"], self.state)
        self.saved = time.monotonic()
        remove(self.file)
        self.write()
        self.show()
        self.report.line(self.told(name))

    def write(self, pictures: bool = False) -> tuple[Result, list[Path]]:
        """Writes what the trainings finished so far have shown; returns it, and the files."""
        result = self.recipe.result(self.finished)
        written = [experiments.write_trainings(self.finished, self.run), *experiments.write(result, self.run, pictures)]
        return result, written

    def told(self, name: str) -> str:
        """A line about the training just finished, and the time that the others will take if they are alike."""
        count, found = len(self.finished), self.finished[name]
        kept = f"kept {found.kept / found.weights:.2%}, " if found.layers else ""
        left = self.seconds / count * (self.total - count)
        return (
            f"{count:>{len(str(self.total))}}/{self.total}  {name}: {kept}test accuracy {found.test[-1]:.2%}  "
            f"({_clock(self.seconds)} so far, about {_clock(left)} left)"
        )


@contextlib.contextmanager
def _bar(session: Saved, report: Report) -> Iterator[Callable[[], None]]:
    """A bar over all trainings, on a terminal; yields what to call when more of the session is done."""
    if not report.console.is_terminal:
        yield lambda: None
        return
    place = TextColumn("{task.fields[place]}", markup=False)
    with Progress(place, BarColumn(), TimeRemainingColumn(), console=report.console, transient=True) as bar:
        task = bar.add_task("", total=session.total, place="")

        def advance() -> None:
            number, epoch = min(len(session.finished) + 1, session.total), session.place[0] + 1
            place = f"training {number}/{session.total}  {session.name}  epoch {epoch}/{session.recipe.epochs}"
            begins = session.place == (0, 0, 1)  # is shown however soon it ends
            bar.update(task, completed=session.done, place=place, refresh=begins)

        yield advance


def _conclude(session: Saved, record: dict, images: int, pictures: bool) -> Result:
    run, recipe, report = session.run, session.recipe, session.report
    remove(session.file)
    result, written = session.write(pictures)
    summary = {
        "trainings": len(session.finished),
        "epochs": recipe.epochs,
        "accuracy": "after the last epoch of each training",
        "ran_on": session.state["ran_on"],
        "notes": result.notes,
        "variants": [_variant(name, found) for name, found in result.variants.items()],
    }
    write_atomic(run / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    settings = recipe.to_dict()
    told = {"run": run.name, "started": record["started"], "recipe": record["recipe"]}
    told["settings"] = registry.told_apart(record["recipe"], recipe, images)
    told |= machine.columns(session.state["ran_on"])
    for name, found in result.variants.items():
        row = {column: settings.get(column, "") for column in runs.RESULT_COLUMNS} | told | {"variant": name}
        runs.append_result(run.parent, row | experiments.numbers(found))
    for chart in result.charts:
        report.line(f"{chart.title}, at {chart.x} {chart.at[-1]:.4g}:")
        for label, line in chart.lines.items():
            report.line(f"  {label:<40}{line[-1]:.2%}")
    for note in result.notes:
        report.line(note)
    goal = registry.goal(record["recipe"], recipe, images)
    if goal is not None:
        report.line(f"aims at: {goal}")
    for file in [*written, run / "summary.json"]:
        report.line(f"written: {file}")
    return result


def _variant(name: str, found: Outcome) -> dict:
    layers = [{"name": name, "kept": kept, "weights": weights} for name, kept, weights in found.layers]
    validation = {"validation_accuracy": found.validation[-1]} if found.validation else {}
    return {"variant": name} | validation | {"test_accuracy": found.test[-1], "layers": layers}


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _to(device: torch.device, value):
    """Tensors, and dicts of them, on the device."""
    return {name: _to(device, part) for name, part in value.items()} if isinstance(value, dict) else value.to(device)
