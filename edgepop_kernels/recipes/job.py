"""A training run from start to summary: its folder, checkpoints, tables and plots."""

import datetime
import json
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

import edgepop_kernels as ek

from . import checkpoint, data, experiments, plots, registry, runs, timing
from .config import Recipe
from .errors import ConfigError, Interrupted, NotFinite, UserError
from .experiments import Experiment
from .files import locked, write_atomic
from .interrupt import Stop
from .report import Report, Summary
from .trainer import Trainer, frozen_digest, kept_per_layer


@dataclass(frozen=True)
class Outputs:
    """What a run writes beside checkpoints and tables."""

    plots: bool = True
    tensorboard: bool = False


def start(name: str, recipe: Recipe, images: Path | None, folder: Path, outputs: Outputs, report: Report) -> Summary:
    """Train ``recipe`` in a new folder ``folder/name``; sets torch's thread count and seeds the global generators.

    images: folder of the data set's files, None for the embedded digits. Raises UserError and Interrupted.
    """
    plots.check(outputs.plots, outputs.tensorboard)
    device = _prepare(recipe)
    recipe = recipe.override(device=device.type, threads=torch.get_num_threads())
    with _backend(recipe):
        trainer = Trainer(recipe, data.load(recipe.dataset, images), device)
        run = runs.create(folder, name)
        with locked(run, wait=False):
            record = _record(name, recipe, images, device)
            runs.write_record(run, record)
            checkpoint.save(run, ["first", "last"], trainer.state())
            return _finish(trainer, run, record, outputs, report)


def experiment(
    name: str, recipe: Experiment, images: Path | None, folder: Path, outputs: Outputs, report: Report
) -> experiments.Result:
    """Run a recipe of several trainings in a new folder ``folder/name``, as ``start`` a recipe of one; without
    checkpoints. Raises UserError."""
    if outputs.tensorboard:
        raise UserError(f"{name} compares several trainings and writes no TensorBoard scalars: leave out --tensorboard")
    plots.check(outputs.plots, False)
    device = _prepare(recipe)
    recipe = recipe.override(device=device.type, threads=torch.get_num_threads())
    with _backend(recipe):
        dataset = data.load(recipe.dataset, images)
        run = runs.create(folder, name)
        with locked(run, wait=False):
            runs.write_record(run, _record(name, recipe, images, device))
            report.line(f"{name}: {recipe.model} on {dataset.name} ({len(dataset.train):,} training images)")
            report.line(f"run folder: {run}")
            result = recipe.run(dataset, device)
            for chart in result.charts:
                report.line(f"{chart.title}, at {chart.x} {chart.at[-1]:.4g}:")
                for label, line in chart.lines.items():
                    report.line(f"  {label:<40}{line[-1]:.2%}")
            goal = registry.goal(name, recipe)
            if goal is not None:
                report.line(f"aims at: {goal}")
            for file in experiments.write(result, run, outputs.plots):
                report.line(f"written: {file}")
            return result


def _record(name: str, recipe: Recipe, images: Path | None, device: torch.device) -> dict:
    return {
        "recipe": name,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds"),
        "data": None if images is None else str(images.resolve()),
        "config": recipe.to_dict(),
        "environment": _environment(device),
    }


def resume(place: Path, asked: dict, images: Path | None, outputs: Outputs, report: Report) -> Summary:
    """Continue a run bit for bit. place: its folder (from last.pt), or one of its checkpoints.

    asked: settings given beside it; one that differs from the run's is a ConfigError naming it, because the result
    would be neither this run nor a new one. images: where the data are now, if they have moved.
    """
    plots.check(outputs.plots, outputs.tensorboard)
    is_file = place.suffix == ".pt"
    run = place.parent if is_file else place
    record = runs.read_record(run)
    with locked(run, wait=False):
        state = checkpoint.load(place) if is_file else checkpoint.load_run(run)
        recipe = registry.from_dict(state["config"])
        _refuse_changes(run, recipe, registry.from_dict(record["config"]).to_dict(), "config.json")
        _refuse_changes(run, recipe, recipe.override(**asked).to_dict(), "the command line")
        device = _prepare(recipe)
        images = images or (Path(record["data"]) if record["data"] else None)
        with _backend(recipe):
            trainer = Trainer(recipe, data.load(recipe.dataset, images), device)
            trainer.load_state(state)
            for name, here in _environment(device).items():
                if record["environment"].get(name) != here:
                    was = record["environment"].get(name)
                    report.line(f"note: {name} was {was} and is {here}: the run goes on, but not bit for bit")
            return _finish(trainer, run, record, outputs, report)


def _refuse_changes(run: Path, recipe: Recipe, other: dict, source: str) -> None:
    for field, value in recipe.to_dict().items():
        if other.get(field) != value:
            raise ConfigError(
                f"cannot resume {run}: {field} is {value!r} in its checkpoint, {other.get(field)!r} in {source}"
            )


def _finish(trainer: Trainer, run: Path, record: dict, outputs: Outputs, report: Report) -> Summary:
    report.started(record["recipe"], run, trainer)
    _fit(trainer, run, outputs, report)
    summary = _summarise(trainer)
    write_atomic(run / "summary.json", (json.dumps(summary.to_dict(), indent=2) + "\n").encode())
    runs.append_result(run.parent, _result_row(trainer, run, record, summary))
    report.summary(summary, registry.goal(record["recipe"], trainer.recipe))
    if outputs.plots:
        for picture in plots.draw(run):
            report.line(f"plot: {picture}")
    if not summary.unchanged:
        raise AssertionError(f"weights that do not train have changed: {run}")
    return summary


def _fit(trainer: Trainer, run: Path, outputs: Outputs, report: Report) -> None:
    last = checkpoint.path(run, "last")
    with Stop() as stop, report.progress(trainer) as on_step, plots.scalars(run, outputs.tensorboard) as scalars:
        while trainer.epoch < trainer.recipe.epochs:
            try:
                complete = trainer.train_epoch(stop, on_step)
                if not complete:
                    trainer.check_finite()
            except NotFinite as error:
                raise UserError(f"{error}; {last} still holds epoch {trainer.epoch}") from error
            if complete:
                row = trainer.history[-1]
                runs.write_log(run, trainer.history)
                report.epoch(row, trainer.recipe.epochs)
                scalars(row)
            improved = complete and trainer.best_epoch == trainer.epoch
            # best before last: killed in between, the resumed run repeats the epoch and writes both again.
            checkpoint.save(run, ["best", "last"] if improved else ["last"], trainer.state())
            if stop.requested and trainer.epoch < trainer.recipe.epochs:
                raise Interrupted(
                    f"stopped by {stop.requested} after epoch {trainer.epoch}, step {trainer.step}; everything is "
                    f"saved in {last}: continue with `edgepop train --resume {run}`"
                )


def _summarise(trainer: Trainer) -> Summary:
    layers = kept_per_layer(trainer.model)
    backend = trainer.recipe.backend
    paths = list(dict.fromkeys([backend, "reference"])) if layers else [backend]
    return Summary(
        accuracy=trainer.history[-1]["test_accuracy"],
        best_accuracy=trainer.best_accuracy,
        best_epoch=trainer.best_epoch,
        layers=layers,
        frozen_before=trainer.frozen_digest,
        frozen_after=frozen_digest(trainer.model),
        backend=backend,
        step_times=timing.step_times(trainer, paths),
    )


def _result_row(trainer: Trainer, run: Path, record: dict, summary: Summary) -> dict:
    recipe = trainer.recipe.to_dict()
    milliseconds = {name: round(1e3 * seconds, 4) for name, seconds in summary.step_times.items()}
    return {name: recipe.get(name, "") for name in runs.RESULT_COLUMNS} | {
        "run": run.name,
        "started": record["started"],
        "recipe": record["recipe"],
        "test_accuracy": summary.accuracy,
        "best_accuracy": summary.best_accuracy,
        "best_epoch": summary.best_epoch,
        "kept": summary.kept,
        "weights": summary.weights,
        "weights_unchanged": summary.unchanged,
        "step_ms": milliseconds[summary.backend],
        "reference_step_ms": milliseconds.get("reference", ""),
        "reference_over_fused": "" if summary.ratio is None else round(summary.ratio, 3),
    }


def _prepare(recipe: Recipe) -> torch.device:
    """The device to train on; sets what its results depend on: the thread count, deterministic cuDNN algorithms."""
    name = recipe.device
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but PyTorch finds no GPU here")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    torch.backends.cudnn.deterministic = True
    return torch.device(name)


def _backend(recipe: Recipe) -> ek.use_backend:
    try:
        return ek.use_backend(recipe.backend)
    except RuntimeError as error:
        raise UserError(str(error)) from error


def _environment(device: torch.device) -> dict:
    on_gpu = device.type == "cuda"
    return {
        "edgepop_kernels": ek.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
    }
