"""A training run from start to summary: its folder, checkpoints, tables and plots."""

import contextlib
import datetime
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import (
    checkpoint,
    comparison,
    data,
    experiments,
    figure,
    machine,
    parallel,
    plots,
    pretrained,
    registry,
    runs,
    timing,
)
from .config import Recipe
from .errors import ConfigError, Interrupted, NotFinite, OutputLost, UserError
from .experiments import Experiment
from .files import locked, write_atomic
from .interrupt import Stop
from .masks import kept_per_layer
from .parallel import World
from .report import Report, Summary
from .trainer import Trainer, frozen_digest

# The settings that a resumed run may be given anew.
_FREE = (*machine.SETTINGS, "workers")


@dataclass(frozen=True)
class Outputs:
    """The files that a run writes beside checkpoints and tables. step_times: measured when everything else is
    written."""

    plots: bool = True
    tensorboard: bool = False
    step_times: bool = True


def start(
    name: str,
    recipe: Recipe,
    images: Path | None,
    folder: Path,
    outputs: Outputs,
    report: Report,
    run_name: str | None = None,
) -> Summary:
    """Train ``recipe``, listed as ``name``, in a new folder; sets torch's thread count, seeds the global generators.

    folder: of the new folder, which is called ``run_name``, None for ``name``. images: folder of the data set's files,
    None for the embedded digits. Started by torchrun, the processes train together and rank 0 alone touches ``folder``.
    Raises UserError and Interrupted, the same on every rank.
    """
    with parallel.join() as world, contextlib.ExitStack() as held:
        world.each(lambda: plots.check(outputs.plots, outputs.tensorboard))
        device = world.each(lambda: machine.take(recipe, world))
        recipe = machine.taken(recipe, device)
        held.enter_context(machine.backend(recipe))
        dataset = world.each(lambda: _load(recipe, images))
        environment = machine.environment(device, world)
        entries = None
        if recipe.pretrained != pretrained.NONE:
            file = Path(recipe.pretrained).resolve()
            recipe, entries = recipe.override(pretrained=str(file)), world.each(lambda: pretrained.read(file))
        trainer = Trainer(recipe, dataset, device, world, entries)
        world.lead(lambda: [report.line(line) for line in trainer.began_from])
        trainer.ran_on = [machine.described(recipe, environment)]
        run = world.lead(lambda: runs.create(folder, run_name or name))
        world.lead(lambda: held.enter_context(locked(run, wait=False)))
        record = _record(name, trainer.recipe, images, environment)
        state = trainer.state()
        world.lead(lambda: runs.write_record(run, record))
        world.lead(lambda: checkpoint.save(run, ["first", "last"], state))
        return _finish(trainer, run, record, outputs, report)


def experiment(
    name: str,
    recipe: Experiment,
    images: Path | None,
    folder: Path,
    outputs: Outputs,
    report: Report,
    run_name: str | None = None,
) -> experiments.Result:
    """Run a recipe of several trainings in a new folder, as ``start`` a recipe of one. Raises UserError and
    Interrupted."""
    with parallel.join() as world, contextlib.ExitStack() as held:
        _refuse_for_comparison(name, outputs, world)
        plots.check(outputs.plots, outputs.tensorboard)
        device = machine.take(recipe, world)
        recipe = machine.taken(recipe, device)
        held.enter_context(machine.backend(recipe))
        dataset = _load(recipe, images)
        recipe = recipe.resolved(len(dataset.train))
        run = runs.create(folder, run_name or name)
        held.enter_context(locked(run, wait=False))
        environment = machine.environment(device, world)
        record = _record(name, recipe, images, environment)
        state = comparison.begin(run, recipe, dataset, machine.described(recipe, environment))
        runs.write_record(run, record)
        held.enter_context(_heard(run, world))
        return comparison.run(recipe, dataset, device, run, record, state, outputs.plots, report)


def _refuse_for_comparison(name: str, outputs: Outputs, world: World) -> None:
    if outputs.tensorboard:
        raise UserError(f"{name} compares several trainings and writes no TensorBoard scalars: leave out --tensorboard")
    if world.size > 1:
        raise UserError(f"{name} compares several trainings in one process: start it without torchrun")


def _record(name: str, recipe: Recipe, images: Path | None, environment: dict) -> dict:
    return {
        "recipe": name,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds"),
        "data": None if images is None else str(images.resolve()),
        "config": recipe.to_dict(),
        "environment": environment,
        "commit": machine.commit(),
    }


def resume(
    source: Path, asked: dict, images: Path | None, outputs: Outputs, report: Report
) -> Summary | experiments.Result:
    """Continue a run, bit for bit where it was. source: its folder (from last.pt), or one of its checkpoints; a
    comparison's folder.

    asked: settings given beside it. Where to compute may be another place, which the report notes and the results tell:
    device, backend and threads; without being asked for, they are the run's own as far as this machine has them. Any
    other setting that differs from the run's is a ConfigError naming it, because the result would be neither this run
    nor a new one: all but ``workers``, on which nothing depends. images: where the data are now, if they have moved.
    """
    is_file = source.suffix == ".pt"
    run = source.parent if is_file else source
    with parallel.join() as world, contextlib.ExitStack() as held:
        record = world.lead(lambda: runs.read_record(run))
        world.lead(lambda: held.enter_context(locked(run, wait=False)))
        recorded = registry.from_dict(record["config"], run / "config.json")
        compares = isinstance(recorded, Experiment)
        if compares:
            _refuse_for_comparison(record["recipe"], outputs, world)
            if is_file:
                raise UserError(f"cannot resume from {source}: a comparison is continued from its folder, give {run}")
            state = comparison.load(run)
        else:
            state = world.lead(lambda: checkpoint.load(source) if is_file else checkpoint.load_run(run))
        saved = registry.from_dict(state["config"])
        _refuse_changes(run, saved, recorded.to_dict(), "config.json")
        _refuse_changes(run, saved, saved.asked(**asked).to_dict(), "the command line")
        recipe = machine.moved(saved, record["environment"].get("cores"))
        recipe = recipe.override(**{name: asked[name] for name in _FREE if name in asked})
        world.each(lambda: plots.check(outputs.plots, outputs.tensorboard))
        device = world.each(lambda: machine.take(recipe, world))
        recipe = machine.taken(recipe, device)
        held.enter_context(machine.backend(recipe))
        place_now = images or (Path(record["data"]) if record["data"] else None)
        dataset = world.each(lambda: _load(recipe, place_now))
        here = machine.described(recipe, machine.environment(device, world))
        for note in machine.notes(machine.described(recorded, record["environment"]), here):
            report.line(note)
        if compares:
            state = comparison.go_on(run, recipe, state, here)
            held.enter_context(_heard(run, world))
            return comparison.run(recipe, dataset, device, run, record, state, outputs.plots, report)
        trainer = Trainer(recipe, dataset, device, world)
        trainer.load_state(state)
        if not trainer.finished:
            trainer.ran_on = machine.went_on(trainer.ran_on, here)
        return _finish(trainer, run, record, outputs, report)


def _refuse_changes(run: Path, recipe: Recipe, other: dict, source: str) -> None:
    for field, value in recipe.to_dict().items():
        if field not in _FREE and other.get(field) != value:
            raise ConfigError(
                f"cannot resume {run}: {field} is {value!r} in its checkpoint, {other.get(field)!r} in {source}"
            )


@contextlib.contextmanager
def _heard(run: Path, world: World) -> Iterator[None]:
    """Around what speaks of a run only when it is saved: where nobody hears it, the error says how to go on."""
    try:
        yield
    except OutputLost as error:
        raise OutputLost(f"{error}; everything is saved in {run}: {world.resumption(run)}") from error


def _finish(trainer: Trainer, run: Path, record: dict, outputs: Outputs, report: Report) -> Summary:
    world = trainer.world
    with _heard(run, world), warnings.catch_warnings():
        if getattr(trainer.recipe, "trains", None) == "both":  # it was asked for
            warnings.filterwarnings("ignore", "the weight of a masked layer trains beside its scores")
        world.lead(lambda: report.started(record["recipe"], run, trainer))
        _fit(trainer, run, outputs, report)
        summary = world.lead(lambda: _conclude(trainer, run, record, outputs, report))
        if outputs.step_times and world.rank == 0:
            _measure(trainer, run, report)
    return summary


def _conclude(trainer: Trainer, run: Path, record: dict, outputs: Outputs, report: Report) -> Summary:
    summary = _summarise(trainer)
    write_atomic(run / "summary.json", (json.dumps(summary.to_dict(), indent=2) + "\n").encode())
    runs.append_result(run.parent, _result_row(trainer, run, record, summary))
    pictures = []
    if outputs.plots:
        pictures = _pictures(trainer, run, summary)
    report.summary(summary, registry.goal(record["recipe"], trainer.recipe, trainer.images))
    for picture in pictures:
        report.line(f"plot: {picture}")
    if summary.unchanged is False:
        raise AssertionError(f"weights that do not train have changed: {run}")
    return summary


def _measure(trainer: Trainer, run: Path, report: Report) -> None:
    """step_times.json. The run is finished: whoever does not want to wait has it whole."""
    report.line(f"measuring step times for up to {timing.SECONDS:g} s (Ctrl-C or --no-step-times skips it)")
    try:
        times = timing.measure(trainer)
        if times is None:
            report.line(f"no step times: two rounds of steps take longer than {timing.SECONDS:g} s")
            return
        write_atomic(run / "step_times.json", (json.dumps(times.to_dict(), indent=2) + "\n").encode())
        report.step_times(times)
    except KeyboardInterrupt:
        report.line("measurement of step times skipped; the run is complete without it")


def _pictures(trainer: Trainer, run: Path, summary: Summary) -> list[Path]:
    drawn = figure.draw(run, trainer.history, summary.best, trainer.model, summary.layers)
    return drawn + trainer.recipe.pictures(trainer.model, run)


def _fit(trainer: Trainer, run: Path, outputs: Outputs, report: Report) -> None:
    last, world = checkpoint.path(run, "last"), trainer.world
    tensorboard = outputs.tensorboard and world.rank == 0
    with (
        Stop() as stop,
        report.progress(trainer) as on_step,
        plots.scalars(run, tensorboard, trainer.epoch + 1) as scalars,
    ):
        while not trainer.finished:
            try:
                complete = trainer.train_epoch(stop, on_step)
                if not complete:
                    trainer.check_finite()
            except NotFinite as error:
                raise UserError(f"{error}; {last} still holds epoch {trainer.epoch}") from error
            if complete:
                world.lead(lambda: runs.write_log(run, trainer.history))
                scalars(trainer.history[-1])
            improved = complete and trainer.best["epoch"] == trainer.epoch
            # last at last: killed in between, the resumed run repeats the epoch and writes all again.
            names = [f"best-{trainer.picked_on}", "last"] if improved else ["last"]
            if complete and trainer.recipe.save_every and trainer.epoch % trainer.recipe.save_every == 0:
                names.insert(0, f"epoch-{trainer.epoch}")
            state = trainer.state()
            world.lead(lambda names=names, state=state: checkpoint.save(run, names, state))
            if complete:  # when it is saved: what is said may not arrive
                world.lead(lambda: report.epoch(trainer))
            stopped = world.agree(None, stop.requested is not None)
            if stopped and not trainer.finished:
                raise Interrupted(
                    f"stopped by {stop.requested or 'a signal'} after epoch {trainer.epoch}, step {trainer.step}; "
                    f"everything is saved in {last}: {world.resumption(run)}"
                )


def _summarise(trainer: Trainer) -> Summary:
    return Summary(
        last=trainer.history[-1],
        best=trainer.best,
        picked_on=trainer.picked_on,
        ended=trainer.ended,
        layers=kept_per_layer(trainer.model),
        frozen_before=trainer.frozen_digest,
        frozen_after=frozen_digest(trainer.model),
        ran_on=trainer.ran_on,
    )


def _result_row(trainer: Trainer, run: Path, record: dict, summary: Summary) -> dict:
    recipe = trainer.recipe.to_dict()
    about = {
        "run": run.name,
        "started": record["started"],
        "recipe": record["recipe"],
        "settings": registry.told_apart(record["recipe"], trainer.recipe, trainer.images),
        "kept": summary.kept,
        "weights": summary.weights,
        "weights_unchanged": "" if summary.unchanged is None else summary.unchanged,
    } | machine.columns(trainer.ran_on)
    return {name: recipe.get(name, "") for name in runs.RESULT_COLUMNS} | summary.accuracies | about


def _load(recipe: Recipe, images: Path | None) -> data.Dataset | data.ImageFolder:
    return data.limited(data.load(recipe.dataset, images, recipe.image_size), recipe.limit_images)
