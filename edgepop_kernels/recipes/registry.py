"""Every recipe by name. A new method adds its file here and nowhere else."""

import difflib
from typing import Any

from . import (
    bayesian_tickets,
    dense,
    edge_popup,
    lottery_tickets,
    neural_graphs,
    supermask,
    supermask_init,
    wirings,
)
from .config import Entry, Recipe
from .errors import ConfigError, UserError

RECIPES: dict[str, Entry] = (
    edge_popup.RECIPES
    | dense.RECIPES
    | supermask.RECIPES
    | wirings.RECIPES
    | neural_graphs.RECIPES
    | lottery_tickets.RECIPES
    | supermask_init.RECIPES
    | bayesian_tickets.RECIPES
)
METHODS: dict[str, type[Recipe]] = {entry.recipe.method: type(entry.recipe) for entry in RECIPES.values()}

# What `edgepop train --data FOLDER` runs when no recipe is named.
DEFAULTS = {
    "digits": "edge-popup-digits",
    "mnist": "edge-popup-mnist",
    "fashion-mnist": "edge-popup-fashion-mnist",
    "cifar10": "edge-popup-conv4",
    "cifar100": "edge-popup-conv4",
    "imagenet": "edge-popup-resnet50",
}


def find(name: str) -> Entry:
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UserError(f"there is no recipe {name!r}; {hint}`edgepop recipes` lists them")
    return RECIPES[name]


def goal(name: str, recipe: Recipe) -> str | None:
    """The accuracy the recipe ``name`` aims at, if these are its settings up to seed and machine."""
    if name not in RECIPES:
        return None
    listed = RECIPES[name].recipe
    machine = {setting: getattr(listed, setting) for setting in ("seed", "threads", "device", "backend", "workers")}
    # As dicts: what has no effect may differ.
    return RECIPES[name].goal if recipe.override(**machine).to_dict() == listed.to_dict() else None


def from_dict(config: dict[str, Any]) -> Recipe:
    """The recipe that ``Recipe.to_dict`` described; ConfigError for anything else."""
    settings = dict(config)
    method = settings.pop("method", None)
    if method not in METHODS:
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    try:
        return METHODS[method]().override(**settings)
    except ConfigError as error:
        raise ConfigError(str(error)) from error  # of a file, not of an option
