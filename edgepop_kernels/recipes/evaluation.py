"""The accuracy of a trained network again: of a run, with its batches and on its kind of machine, or of an export."""

import platform
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import edgepop_kernels as ek

from . import checkpoint, data, export, exported, registry, runs, saved
from .config import Recipe
from .data import Batches, Share
from .errors import ConfigError, UserError
from .report import Report
from .trainer import sums_over


class Subject(NamedTuple):
    """A network to evaluate, and what was known of it when it was saved.

    what: in words; digest: of the data it was trained on, None where that is not known; row: of the log, with its
    accuracies, None where it was saved within an epoch or before the first; versions: of the programs; drawn: whether
    its masks are one draw of those that were evaluated; random: the generators' state before that evaluation;
    processes: how many shared each batch of it; place: of the data.
    """

    what: str
    recipe: Recipe
    model: nn.Module
    preprocessing: dict[str, Any]
    classes: int
    digest: str | None
    row: dict[str, Any] | None
    versions: dict[str, str]
    drawn: bool = False
    random: dict[str, Any] | None = None
    processes: int = 1
    place: Path | None = None


class Found(NamedTuple):
    """The result on one part of the data: its images, how many got the right answer, the mean cross-entropy."""

    part: str
    images: int
    right: int
    loss: float

    @property
    def accuracy(self) -> float:
        return self.right / self.images


def evaluate(place: Path, name: str | None, images: Path | None, report: Report) -> list[Found]:
    """Evaluate ``place``: a run folder (its checkpoint ``name``, None: the best), a checkpoint or an export, on each
    part that the run was evaluated on.

    images: where the data are, if not where they were. Sets torch's thread count to the run's. What differs from the
    run's evaluation is said on ``report``. Raises UserError.
    """
    with torch.random.fork_rng():
        subject = _subject(place, name)
        recipe, device = _machine(subject, report)
        batches = _batches(subject, recipe, device, images or subject.place, report)
        report.line(f"{subject.what}: {recipe.model} on {batches.data.name}")
        memory_format = torch.channels_last if recipe.channels_last else torch.preserve_format
        model = subject.model.to(device, memory_format=memory_format)
        if subject.random is not None:
            checkpoint.set_torch_random_state(subject.random)
        with ek.use_backend(recipe.backend):
            found = [_found(subject, model, batches, part) for part in batches.data.evaluated]
    for part in found:
        report.line(
            f"{part.part} accuracy {part.accuracy:.2%} ({part.right:,} of {part.images:,}), loss {part.loss:.4f}"
            f"{_compared(part, subject)}"
        )
    return found


def _found(subject: Subject, model: nn.Module, batches: Batches, part: str) -> Found:
    """Each process's share of the batches in turn, as they were computed; all drew the same masks."""
    split, sums = batches.data.evaluated[part], []
    begun = checkpoint.torch_random_state()
    for rank in range(subject.processes):
        checkpoint.set_torch_random_state(begun)
        share = Share(subject.processes, rank, 1)
        sums.append(sums_over(subject.recipe, model, batches.in_order(split, share), batches.mean.device))
    loss, right = sum(sums).tolist()
    return Found(part, len(split), round(right), loss / len(split))


def _compared(found: Found, subject: Subject) -> str:
    then = None if subject.row is None else subject.row.get(f"{found.part}_accuracy")
    if then is None:
        return "; the run did not evaluate this checkpoint" if subject.digest is not None else ""
    if then == found.accuracy:
        return "; as the run did"
    here = {"edgepop_kernels": ek.__version__, "torch": torch.__version__, "machine": platform.machine()}
    others = [f"{name} {then}" for name, then in subject.versions.items() if here.get(name, then) != then]
    why = f", with {', '.join(others)}" if others else ""
    return f"; the run found {then:.2%}{why}" + (", under masks drawn anew" if subject.drawn else "")


def _subject(place: Path, name: str | None) -> Subject:
    if not place.is_dir() and (place.suffix == ".safetensors" or (place.is_file() and exported.is_export(place))):
        if name is not None:
            raise ConfigError(f"--checkpoint: leave it out beside an export, {place}, got {name!r}")
        return _of_export(place)
    try:
        return _of_run(place, name)
    except UserError as error:
        if not place.is_file() or checkpoint.is_name(place.name):
            raise
        told = f"nor is it an export: {exported.description(place)} does not describe it"
        raise UserError(f"{error}; {told}; `edgepop import` reads one of hidden-networks") from error


def _of_run(place: Path, name: str | None) -> Subject:
    found = saved.find(place, name)
    file, state, recipe = found
    record = runs.read_record(file.parent) if runs.is_run(file.parent) else {}
    environment = record.get("environment", {})
    model = recipe.network(tuple(state["image"]), state["classes"])
    model.load_state_dict(state["model"])
    return Subject(
        what=f"{file}, {saved.told(found.origin)}",
        recipe=recipe,
        model=model,
        preprocessing=state["preprocessing"],
        classes=state["classes"],
        digest=state["data_digest"],
        row=found.row,
        versions=environment,
        random=state["evaluated_from"],
        processes=environment.get("processes", 1),
        place=Path(record["data"]) if record.get("data") else None,
    )


def _of_export(file: Path) -> Subject:
    tensors, about = exported.read(file)
    if about.get("holds") not in ("weights", exported.PACKED):
        raise UserError(f"{file} holds {about.get('holds')}, expected an export of weights")
    try:
        origin, architecture = about["checkpoint"], about["architecture"]
        recipe = registry.from_dict(about["config"])
        model = recipe.network(tuple(architecture["image"]), architecture["classes"])
        if about["holds"] == exported.PACKED:
            model = exported.read_packed(file, model)
        else:
            model = export.plain(model, recipe)
            model.load_state_dict(tensors)
        return Subject(
            what=f"{file}, from {origin['name']}.pt, {saved.told(origin)}",
            recipe=recipe,
            model=model,
            preprocessing=about["preprocessing"],
            classes=architecture["classes"],
            digest=about["data"]["sha256"],
            row=origin["row"],
            versions=about["versions"],
            drawn=origin["accuracy_of"] != "these weights",
        )
    except (KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} does not hold the weights of the network it describes: {reason}") from error


def _machine(subject: Subject, report: Report) -> tuple[Recipe, torch.device]:
    """The recipe with what this machine has of what the run had, and the device; what it lacks is said."""
    recipe = subject.recipe
    if recipe.device == "cuda" and not torch.cuda.is_available():
        report.line("note: the run was on a GPU, which PyTorch does not find here: this is the CPU, equal to rounding")
        recipe = recipe.override(device="cpu")
    try:
        with ek.use_backend(recipe.backend):
            pass
    except RuntimeError as error:
        report.line(f"note: {error}: this is another backend, equal to rounding")
        recipe = recipe.override(backend="auto")
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    torch.backends.cudnn.deterministic = True
    return recipe, torch.device("cuda" if recipe.device != "cpu" and torch.cuda.is_available() else "cpu")


def _batches(subject: Subject, recipe: Recipe, device: torch.device, place: Path | None, report: Report) -> Batches:
    """The batches of the run's data set as it is in ``place``, normalised as the run's was; where it is another, that
    is said."""
    whole = data.limited(data.load(recipe.dataset, place, recipe.image_size), recipe.limit_images)
    wanted = tuple(subject.preprocessing["image"])
    if whole.image != wanted or whole.classes != subject.classes:
        raise UserError(
            f"the network is for {'x'.join(map(str, wanted))} pixels and {subject.classes} classes; the "
            f"{whole.name} data have {'x'.join(map(str, whole.image))} and {whole.classes}"
        )
    if subject.digest is None:
        report.line(f"note: which {whole.name} data it was trained on is not known")
    elif whole.digest() != subject.digest:
        report.line(f"note: the {whole.name} data are not those of the run: their hashes differ")
    mean, deviation = (torch.tensor(subject.preprocessing[name]).view(-1, 1, 1) for name in ("mean", "deviation"))
    return Batches(
        data.hold_out(whole, recipe.validation).to(device),
        recipe.batch_size,
        recipe.seed,
        channels_last=recipe.channels_last,
        workers=recipe.workers,
        moments=(mean, deviation),
    )
