"""The recipe that `edgepop train` trains: by name, by the data, or from settings of hidden-networks or of a run."""

from pathlib import Path
from typing import Any, NamedTuple

from . import data, flat_yaml, hidden_networks, machine, registry, runs
from .config import Recipe
from .errors import ConfigError, UserError
from .files import read_bytes

_YAML = (".yml", ".yaml")


class Configured(NamedTuple):
    """A recipe to train. name: what it is called; data: the folder of its data set, None where none is said; lines: on
    what of a file was read as what."""

    name: str
    recipe: Recipe
    data: Path | None
    lines: list[str]


def chosen(name: str | None, config: Path | None, images: Path | None, asked: dict[str, Any]) -> Configured:
    """The recipe ``name``, or what the file ``config`` has, or edge-popup on what ``images`` holds, on the digits where
    that is None; with the settings ``asked`` for. Raises UserError."""
    if config is not None:
        if name is not None:
            raise ConfigError(f"RECIPE: --config has its own, leave it out beside that, got {name!r}")
        found = read(config, asked)
        return found._replace(data=images or (None if "dataset" in asked else found.data))
    if name is None:
        dataset = asked.get("dataset") or ("digits" if images is None else data.detect(images))
        if dataset not in registry.DEFAULTS:
            raise ConfigError(f"expected one of {', '.join(registry.DEFAULTS)}, got {dataset!r}", "dataset")
        name, asked = registry.DEFAULTS[dataset], {"dataset": dataset} | asked
    return Configured(name, registry.find(name).recipe.asked(**asked), images, [])


def read(place: Path, asked: dict[str, Any]) -> Configured:
    """What ``place`` configures, with the settings ``asked`` for beside it in the place of its own.

    place: a .yml or .yaml file of hidden-networks; a run folder or its config.json. Raises UserError.
    """
    if place.suffix in _YAML:
        try:
            text = read_bytes(place).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{place} is no text: {error}") from error
        found = hidden_networks.read(flat_yaml.parse(text, str(place)), asked, str(place))
        lines = [f"{place}, a configuration of hidden-networks:", *(f"  {line}" for line in found.lines)]
        return Configured(runs.check_name(place.stem), found.recipe, found.data, lines)
    if place.is_dir() or place.name == "config.json":
        folder = place if place.is_dir() else place.parent
        record = runs.read_record(folder)
        recipe = registry.from_dict(record["config"], folder / "config.json")
        recipe = machine.moved(recipe, record["environment"].get("cores")).asked(**asked)
        folder_of_data = Path(record["data"]) if record["data"] else None
        return Configured(
            record["recipe"], recipe, folder_of_data, [f"{folder / 'config.json'}: the settings of that run"]
        )
    raise ConfigError(f"--config: expected a .yml file, a run folder or its config.json, got {place}")
