"""The output of `edgepop recipes`: the list of recipes, or one with all its settings."""

import inspect
import shutil
import textwrap
from collections.abc import Iterator

from . import cli_settings, data, registry
from .config import Recipe
from .errors import ConfigError, UserError

NO_BREAK = "\N{NO-BREAK SPACE}"


def listing(method: str | None, dataset: str | None) -> Iterator[str]:
    """Lines of the recipes of a method and a data set (None: of all). Raises UserError."""
    for name, value, allowed in (("method", method, registry.METHODS), ("dataset", dataset, data.DATASETS)):
        if value is not None and value not in allowed:
            raise ConfigError(f"expected one of {', '.join(allowed)}, got {value!r}", name)
    found = {
        name: entry
        for name, entry in registry.RECIPES.items()
        if method in (None, entry.recipe.method) and dataset in (None, entry.recipe.dataset)
    }
    if not found:
        which = "no recipe" if method is None else f"no recipe of the method {method}"
        raise UserError(f"{which} is for {dataset}, but any trains on it with --dataset {dataset}")
    indent = max(map(len, found)) + 2
    for name, (recipe, goal, source) in found.items():
        yield from _wrapped(f"{name:<{indent}}{_short(recipe)}", indent)
        yield from _wrapped(f"    aims at: {goal} ({source})", 8)
        yield from _wrapped(f"    {registry.picks(recipe)}", 8)


def details(name: str) -> Iterator[str]:
    """Lines on the recipe ``name``: goal, source, a command that trains it, every setting in effect. Raises UserError.

    Settings are spelled as options, so that they can be given to `train`.
    """
    recipe, goal, source = registry.find(name)
    about = inspect.cleandoc(type(recipe).__doc__).partition("\n\n")[0].replace("``", "")
    where = "" if recipe.dataset == "digits" else " --data FOLDER"
    yield from _wrapped(f"{name}: {_short(recipe)}", 4)
    yield from _wrapped(f"method    {recipe.method}. {' '.join(about.split())}", 10)
    yield from _wrapped(f"aims at   {goal}", 10)
    yield from _wrapped(f"source    {source}", 10)
    yield from _wrapped(f"protocol  {registry.picks(recipe)}", 10)
    yield f"train it  edgepop train {name}{where}"
    for title, fields in cli_settings.grouped(recipe.in_effect()).items():
        if fields:
            options = (cli_settings.spelled(field.name, getattr(recipe, field.name)) for field in fields)
            words = " ".join(option.replace(" ", NO_BREAK) for option in options)
            yield from _wrapped(f"{title or 'Method':<10}{words}", 10)


def _short(recipe: Recipe) -> str:
    density, trainings = recipe.density(), recipe.trainings()
    many = f"{trainings} trainings of " if trainings > 1 else ""
    return f"{recipe.model} on {recipe.dataset}{density and f', {density}'}, {many}{recipe.epochs} epochs"


def _wrapped(line: str, indent: int) -> list[str]:
    """A no-break space of ``line`` stays one, and ends as a plain space."""
    width = shutil.get_terminal_size().columns
    lines = textwrap.wrap(line, width, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)
    return [line.replace(NO_BREAK, " ") for line in lines]
