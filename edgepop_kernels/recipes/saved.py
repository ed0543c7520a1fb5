"""The checkpoints of runs, found by the run's folder or by their own file."""

from pathlib import Path
from typing import Any, NamedTuple

from . import checkpoint, experiments, registry, runs
from .config import Recipe
from .errors import ConfigError, UserError


class Saved(NamedTuple):
    """A checkpoint: its file, what that holds, and the recipe of its run."""

    file: Path
    state: dict[str, Any]
    recipe: Recipe

    @property
    def origin(self) -> dict[str, Any]:
        """The moment at which it was saved, and the file that it was imported from, where it was."""
        return {name: self.state[name] for name in ("epoch", "step", "imported") if name in self.state}

    @property
    def row(self) -> dict[str, Any] | None:
        """The row of the run's log, with its accuracies; None where it was saved before the first epoch or within
        one."""
        rows = [row for row in self.state["history"] if row["epoch"] == self.state["epoch"]]
        return rows[0] if rows and self.state["step"] == 0 else None


def told(origin: dict[str, Any]) -> str:
    """``Saved.origin`` in words."""
    if "imported" in origin:
        return f"imported from {origin['imported']['file']}"
    return f"epoch {origin['epoch']}" + (f" and {origin['step']} steps" if origin["step"] else "")


def find(place: Path, name: str | None = None) -> Saved:
    """The checkpoint ``name`` (None: the best) of the run folder ``place``, or the one in the file ``place``.

    Raises UserError; ConfigError where a file is given and a name beside it.
    """
    is_file = place.is_file() or (place.suffix == ".pt" and not place.is_dir())
    folder = place.parent if is_file else place
    if is_file and name is not None:
        raise ConfigError(f"--checkpoint: leave it out beside the file of one, {place}, got {name!r}")
    if not folder.is_dir():
        raise UserError(f"the run folder {folder} does not exist")
    name = name or "best"
    file = place if is_file else checkpoint.path(folder, name)
    if runs.is_run(folder) and not file.exists():
        recipe = registry.from_dict(runs.read_record(folder)["config"], folder / "config.json")
        experiments.refuse_comparison(folder, recipe)
    state = checkpoint.load(file) if is_file else checkpoint.load_run(folder, name)
    recipe = registry.from_dict(state["config"])
    experiments.refuse_comparison(folder, recipe)
    return Saved(file, state, recipe)
