"""Recipes' settings as options of `edgepop train`, and its help: in groups, with the values of one recipe."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from . import config, registry
from .config import Recipe, panel
from .settings import ALWAYS

# Those of `edgepop train`; a method's own settings follow in a panel of its name.
PANELS = ("Run", "Data", "Network", "Training", "Machine")
_KINDS = {int: "INT", float: "FLOAT", str: "NAME", tuple: "INT,..."}


def option(setting: str) -> str:
    """The option of a setting on the command line."""
    return f"--{setting.replace('_', '-')}"


def spelled(name: str, value: Any) -> str:
    """The option that gives the setting ``name`` this value."""
    if isinstance(value, bool):
        return option(name) if value else option(f"no_{name}")
    return f"{option(name)} {config.spelled(value)}"


def with_settings(function: Callable, hidden: bool = False) -> Callable:
    """Gives ``function`` one option per setting of any method, so that a recipe's field is declared once, in its class.

    An option left out is not passed on: the recipe's own value counts. hidden: from typer's help.
    """
    fields = {field.name: field for method in registry.METHODS.values() for field in dataclasses.fields(method)}
    options = []
    for name, field in fields.items():
        if isinstance(field.default, bool):
            annotation = Annotated[bool | None, typer.Option(f"{option(name)}/{option(f'no_{name}')}", hidden=hidden)]
        else:
            # As text: the recipe converts it, and has the better words where it is wrong.
            annotation = Annotated[str | None, typer.Option(option(name), hidden=hidden)]
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]

    @functools.wraps(function)
    def wrapped(**arguments):
        asked = {name: arguments.pop(name) for name in fields}
        return function(**arguments, **{name: value for name, value in asked.items() if value is not None})

    wrapped.__signature__ = inspect.Signature([*own, *options])
    return wrapped


def grouped(fields: list[dataclasses.Field]) -> dict[str, list[dataclasses.Field]]:
    """The fields by panel, those of the method itself under ""."""
    groups: dict[str, list[dataclasses.Field]] = {name: [] for name in (*PANELS, "")}
    for field in fields:
        groups[panel(field) or ""].append(field)
    return groups


def show_help(context: typer.Context, name: str | None) -> None:
    """Prints the help of the command ``context`` is about: of the recipe ``name``, or of all methods."""
    if name is None:
        note = (
            "Defaults, in brackets, are those of edge-popup-digits; `edgepop train RECIPE --help` shows another "
            "recipe's, and only the settings it has. Each method's own settings follow at the end."
        )
        panels = _of_all_methods()
    else:
        panels = _of_recipe(registry.find(name).recipe)
        note = f"Defaults, in brackets, are those of {name}; `edgepop recipes {name}` says where they come from."
    console = Console()
    console.print(Padding(Text(context.get_usage()), (1, 1, 0, 1)))
    console.print(Padding(Text(f"{context.command.help} {note}"), (1, 1)))
    own = list(_of_command(context))
    for title, rows in panels:
        rows = [row for group, *row in own if group == title] + rows
        if rows:
            table = Table.grid(padding=(0, 2))
            table.add_column(no_wrap=True)
            table.add_column(overflow="fold")
            for left, text, default in rows:
                table.add_row(Text(left, "bold cyan"), Text.assemble(text, (default and f" [{default}]", "dim")))
            console.print(Panel(table, title=title, title_align="left", border_style="dim"))


def _of_command(context: typer.Context) -> Iterator[tuple[str, str, str, str]]:
    """(panel, option, text, default) of what is no setting of a recipe."""
    for parameter in context.command.get_params(context):
        if parameter.param_type_name == "argument":
            yield "Run", parameter.metavar, parameter.help, ""
        elif parameter.help:
            name, value = parameter.opts[0], ""
            if parameter.secondary_opts:
                name, value = f"--[no-]{name[2:]}", "on" if parameter.default else "off"
            elif not parameter.is_flag:
                name = f"{name} {parameter.metavar}"
                value = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default or ""
            yield parameter.rich_help_panel or "Run", name, parameter.help, value


def _of_all_methods() -> Iterator[tuple[str, list]]:
    everywhere = {field.name for field in dataclasses.fields(Recipe)}
    listed = registry.find(registry.DEFAULTS["digits"]).recipe
    for title, fields in grouped(list(dataclasses.fields(Recipe))).items():
        yield title, [_row(field, getattr(listed, field.name), f"{_others(field)}{_hint(field)}") for field in fields]
    for method in registry.METHODS.values():
        own = [field for field in dataclasses.fields(method) if field.name not in everywhere]
        yield f"Method {method.method}", [_row(field, field.default, _hint(field)) for field in own]


def _hint(field: dataclasses.Field) -> str:
    when = field.metadata["when"]
    return "" if when is ALWAYS else f"; only with {when.words}"


def _others(field: dataclasses.Field) -> str:
    """The values that methods allow which differ from the others in this setting."""
    found: dict[str, list[str]] = {}
    for method in registry.METHODS.values():
        allowed = method.__dataclass_fields__[field.name].metadata["allowed"]
        if allowed != field.metadata["allowed"]:
            found.setdefault(allowed, []).append(method.method)
    return "".join(f"; {', '.join(methods)}: {allowed}" for allowed, methods in found.items())


def _of_recipe(recipe: Recipe) -> Iterator[tuple[str, list]]:
    for title, fields in grouped(recipe.in_effect()).items():
        rows = [_row(field, getattr(recipe, field.name)) for field in fields]
        yield title or f"Method {recipe.method}", rows
    in_effect = recipe.in_effect()
    idle = [field for field in dataclasses.fields(recipe) if field not in in_effect]
    yield "Without effect here", [(option(f.name), f"only with {f.metadata['when'].words}", "") for f in idle]


def _row(field: dataclasses.Field, value: Any, more: str = "") -> tuple[str, str, str]:
    text = field.metadata["help"]
    if isinstance(field.default, bool):
        return f"--[no-]{option(field.name)[2:]}", f"{text}{more}", "on" if value else "off"
    name = f"{option(field.name)} {_KINDS[field.metadata['kind']]}"
    return name, f"{text}: {field.metadata['allowed']}{more}", config.spelled(value)
