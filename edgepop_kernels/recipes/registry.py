"""Every recipe by name. A new method adds its file here and nowhere else."""

import difflib
from pathlib import Path
from typing import Any

from . import (
    bayesian_tickets,
    data,
    dense,
    edge_popup,
    lottery_tickets,
    neural_graphs,
    supermask,
    supermask_init,
    supsup,
    wirings,
)
from .config import Entry, Recipe, spelled
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
    | supsup.RECIPES
)
METHODS: dict[str, type[Recipe]] = {entry.recipe.method: type(entry.recipe) for entry in RECIPES.values()}

# Settings that make no recipe another one: its results are meant to hold for every seed and on every machine.
ELSEWHERE = ("seed", "threads", "device", "backend", "workers")

# What `edgepop train --data FOLDER` runs when no recipe is named.
DEFAULTS = {
    "digits": "edge-popup-digits",
    "mnist": "edge-popup-mnist",
    "fashion-mnist": "edge-popup-fashion-mnist",
    "cifar10": "edge-popup-conv4",
    "cifar100": "edge-popup-conv4",
    "imagenet": "edge-popup-resnet50",
    "tinyimagenet": "edge-popup-resnet50",
}


def find(name: str) -> Entry:
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UserError(f"there is no recipe {name!r}; {hint}`edgepop recipes` lists them")
    return RECIPES[name]


def differences(name: str, recipe: Recipe, images: int) -> dict[str, Any]:
    """The settings of a run of the recipe ``name`` on ``images`` training images, those held out among them, that are
    not the recipe's own: all that have an effect, but the seed and what concerns the machine."""
    listed = RECIPES[name].recipe if name in RECIPES else METHODS[recipe.method]()
    usual, found = listed.resolved(images), recipe.resolved(images)
    values = {field.name: getattr(found, field.name) for field in found.in_effect() if field.name not in ELSEWHERE}
    return {setting: value for setting, value in values.items() if value != getattr(usual, setting)}


def told_apart(name: str, recipe: Recipe, images: int) -> str:
    """``differences`` as text: keep=0.3 lr=0.05."""
    return " ".join(f"{setting}={spelled(value)}" for setting, value in differences(name, recipe, images).items())


def goal(name: str, recipe: Recipe, images: int) -> str | None:
    """The accuracy the recipe ``name`` aims at, if these are its settings; see ``differences``."""
    return RECIPES[name].goal if name in RECIPES and not differences(name, recipe, images) else None


def picks(recipe: Recipe) -> str:
    """The part of the data by which the best epoch is picked, in words."""
    if "validation" not in (field.name for field in recipe.in_effect()):
        return "compares several trainings, picks no epoch"
    if recipe.validation == 0:
        return "picks best by test accuracy, as its source does"
    if recipe.validation == "auto" and recipe.dataset == "digits":
        return "picks best by test accuracy, the digits are too few to hold any out"
    count = data.HELD_OUT if recipe.validation == "auto" else recipe.validation
    return f"holds out {count:,} images, picks best by them"


def from_dict(config: dict[str, Any], source: Path | None = None) -> Recipe:
    """The recipe that ``Recipe.to_dict`` described; ConfigError for anything else, naming the file ``source``."""
    settings = dict(config)
    method = settings.pop("method", None)
    try:
        if method not in METHODS:
            raise ConfigError(f"expected one of {', '.join(METHODS)}, got {method!r}", "method")
        return METHODS[method]().override(**settings)
    except ConfigError as error:
        # Without ``setting``: it is no option that is wrong.
        raise ConfigError(str(error) if source is None else f"{source}: {error}") from error
