"""The commands `train`, `recipes`, `export` and `bench`: a typer app that the console script mounts."""

import contextlib
import dataclasses
import functools
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer.core import TyperGroup

from . import checkpoint, data, export, job, parallel, registry
from .errors import ConfigError, Interrupted, UserError
from .experiments import Experiment
from .report import Report

UsageError = typer.BadParameter.__base__  # typer exports only this subclass of it


class OneSentence(TyperGroup):
    """A group whose commands' user errors are one sentence on stderr: exit code 2, or 130 where a signal stopped it."""

    def parse_args(self, ctx, args):
        with _one_sentence() if args else contextlib.nullcontext():  # without arguments typer shows the help
            return super().parse_args(ctx, args)

    def invoke(self, ctx):
        with _one_sentence():
            return super().invoke(ctx)


@contextlib.contextmanager
def _one_sentence():
    try:
        yield
    except UsageError as error:
        sentence, code = error.format_message(), 2
    except ConfigError as error:
        sentence, code = str(error) if error.setting is None else f"{_option(error.setting)}: {error.text}", 2
    except UserError as error:
        sentence, code = str(error), 2
    except Interrupted as error:
        sentence, code = str(error), 130
    except KeyboardInterrupt:
        sentence, code = "stopped; checkpoints already written are whole", 130
    else:
        return
    if parallel.leads():
        typer.echo(f"edgepop: {sentence}", err=True)
    raise typer.Exit(code)


def _option(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


app = typer.Typer(
    cls=OneSentence,
    help="Train, list, export and measure masked networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _with_settings(function):
    """Gives ``function`` one option per setting of any method, so that a recipe's field is declared once, in its class.

    An option left out is not passed on: the recipe's own value counts.
    """
    fields: dict[str, list[dataclasses.Field]] = {}
    for method in registry.METHODS.values():
        for field in dataclasses.fields(method):
            fields.setdefault(field.name, []).append(field)
    options = []
    for name, (field, *others) in fields.items():
        flag = _option(name)
        # A method may allow other values than the rest.
        allowed = dict.fromkeys(f.metadata["allowed"] for f in (field, *others))
        text = f"{field.metadata['help']}: {'; or '.join(allowed)}."
        if isinstance(field.default, bool):
            annotation = Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=text, show_default=False)]
        else:
            # As text: the recipe converts it, and has the better words where it is wrong.
            kind = type(field.default).__name__.replace("tuple", "int,int,...")
            annotation = Annotated[str | None, typer.Option(flag, help=text, metavar=kind, show_default=False)]
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]

    @functools.wraps(function)
    def wrapped(**arguments):
        asked = {name: arguments.pop(name) for name in fields}
        return function(**arguments, **{name: value for name, value in asked.items() if value is not None})

    wrapped.__signature__ = inspect.Signature([*own, *options])
    return wrapped


@app.command()
@_with_settings
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A name that `recipes` lists; left out: edge-popup on what --data holds.")
    ] = None,
    *,
    images: Annotated[Path | None, typer.Option("--data", help="Folder of the data set's files.")] = None,
    runs: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the run folders and of results.csv.", show_default="runs"),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue this run folder, or this checkpoint of one, bit for bit.")
    ] = None,
    plots: Annotated[bool, typer.Option(help="Draw accuracy.png and kept.png.")] = True,
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard scalars.")] = False,
    step_times: Annotated[
        bool, typer.Option(help="Measure step times after the training, for up to 10 s; not of comparisons.")
    ] = True,
    **asked,
):
    """Train a recipe (default: edge-popup on handwritten digits, or on what --data holds), and print a summary."""
    report = Report(Console(quiet=not parallel.leads()))
    outputs = job.Outputs(plots=plots, tensorboard=tensorboard, step_times=step_times)
    if resume is not None:
        if recipe is not None:
            raise ConfigError(f"RECIPE: a resumed run has its own, leave it out with --resume, got {recipe!r}")
        if runs is not None:
            raise ConfigError(f"--out: a resumed run stays in its folder, leave it out with --resume, got {runs}")
        job.resume(resume, asked, images, outputs, report)
        return
    if recipe is None:
        dataset = asked.get("dataset") or ("digits" if images is None else data.detect(images))
        if dataset not in registry.DEFAULTS:
            raise ConfigError(f"expected one of {', '.join(registry.DEFAULTS)}, got {dataset!r}", "dataset")
        recipe = registry.DEFAULTS[dataset]
        asked = {"dataset": dataset} | asked
    settings = registry.find(recipe).recipe.asked(**asked)
    run = job.experiment if isinstance(settings, Experiment) else job.start
    run(recipe, settings, images, runs or Path("runs"), outputs, report)


@app.command()
def recipes():
    """List the recipes, what each aims at, and who published that."""
    indent = max(map(len, registry.RECIPES)) + 2
    for name, (recipe, goal, source) in registry.RECIPES.items():
        keep = f", keep {recipe.keep}" if hasattr(recipe, "keep") else ""
        typer.echo(f"{name:<{indent}}{recipe.model} on {recipe.dataset}{keep}, {recipe.epochs} epochs")
        typer.echo(f"{'':<{indent}}aims at: {goal} ({source})")


@app.command(name="export")
def export_run(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[Path | None, typer.Option(help="A .pt or .safetensors file; default: in the run folder.")] = None,
    which: Annotated[str, typer.Option("--checkpoint", help=f"{', '.join(checkpoint.NAMES)}.")] = "best",
    masks: Annotated[bool, typer.Option(help="Write the masks too, packed to 1 bit per weight.")] = False,
):
    """Write a trained run as plain torch weights (W * M)."""
    if which not in checkpoint.NAMES:
        raise ConfigError(f"--checkpoint: expected one of {', '.join(checkpoint.NAMES)}, got {which!r}")
    for file in export.export(run, which, output, masks):
        typer.echo(file)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context):
    """Run the benchmarks of a source checkout; further arguments go to pytest."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks").is_dir():
        raise UserError(
            "the benchmarks are part of the source checkout, and this is an installed copy: run it from there"
        )
    arguments = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", *context.args]
    raise typer.Exit(subprocess.run(arguments, cwd=root, check=False).returncode)
