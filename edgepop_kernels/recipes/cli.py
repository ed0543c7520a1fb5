"""The commands `train`, `recipes`, `export`, `eval`, `import`, `bench`: a typer app that the console script mounts."""

import contextlib
import difflib
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer.core import TyperGroup

import edgepop_kernels as ek

from . import cli_recipes, cli_saved, cli_settings, configured, job, output, parallel, sweep
from .config import Recipe
from .errors import ConfigError, Interrupted, UserError
from .experiments import Experiment
from .report import Report
from .runs import check_name

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
        with output.guarded():
            yield
    except UsageError as error:
        sentence, code = _usage(error), 2
    except ConfigError as error:
        option = error.setting and cli_settings.option(error.setting)
        sentence, code = f"{option}: {error.text}" if option else str(error), 2
    except UserError as error:
        sentence, code = str(error), 2
    except Interrupted as error:
        sentence, code = str(error), 130
    except KeyboardInterrupt:
        sentence, code = "stopped; checkpoints already written are whole", 130
    else:
        return
    if parallel.leads():
        with contextlib.suppress(OSError):  # standard error may be as lost as standard output
            typer.echo(f"edgepop: {sentence}", err=True)
    raise typer.Exit(code)


def _usage(error: UsageError) -> str:
    wrong = getattr(error, "option_name", None)
    if not hasattr(error, "possibilities"):  # no error about an unknown option
        return error.format_message()
    close = difflib.get_close_matches(wrong, error.possibilities or (), n=2, cutoff=0.75)
    hint = f"did you mean {' or '.join(close)}?" if close else f"`{error.ctx.command_path} --help` lists them"
    return f"there is no option {wrong}; {hint}"


app = typer.Typer(
    cls=OneSentence,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool):
    if asked:
        typer.echo(f"edgepop_kernels {ek.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
):
    """Train, list, export, evaluate and measure masked networks."""
    if context.invoked_subcommand not in ("doctor", "recipes"):
        try:
            ek.use_backend("auto")  # raises where EDGEPOP_ISA asks for what is not here: before anything is loaded
        except RuntimeError as error:
            raise UserError(str(error)) from error


@app.command(add_help_option=False)
@cli_settings.with_settings
def train(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="a name that `edgepop recipes` lists; left out: edge-popup on digits, or on what --data holds",
        ),
    ] = None,
    *,
    images: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="where the data set's files are", rich_help_panel="Data"),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="where run folders and results.csv are made", show_default="runs"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="what the run folder is called", show_default="the recipe's name"),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="INT",
            help="so many runs, with --seed and the seeds after it; their mean and standard deviation",
            show_default="1",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="settings to begin with: of hidden-networks, FILE.yml, or of a run, its config.json"
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="continue this run folder, or this checkpoint of one; bit for bit where it was"
        ),
    ] = None,
    plots: Annotated[bool, typer.Option(help="draw training.png, or the charts of a comparison")] = True,
    tensorboard: Annotated[bool, typer.Option(help="write TensorBoard scalars")] = False,
    step_times: Annotated[
        bool, typer.Option(help="measure step times after the training, for up to 10 s; not of comparisons")
    ] = True,
    shown: Annotated[bool, typer.Option("--help", help="show this, or what RECIPE has, and exit")] = False,
    **asked,
):
    """Train a recipe, and print a summary."""
    if shown:
        cli_settings.show_help(context, recipe)
        return
    report = Report(Console(quiet=not parallel.leads()))
    outputs = job.Outputs(plots=plots, tensorboard=tensorboard, step_times=step_times)
    if resume is not None:
        if recipe is not None:
            raise ConfigError(f"RECIPE: a resumed run has its own, leave it out with --resume, got {recipe!r}")
        if runs is not None:
            raise ConfigError(f"--out: a resumed run stays in its folder, leave it out with --resume, got {runs}")
        if name is not None:
            raise ConfigError(f"--name: a resumed run has its own, leave it out with --resume, got {name!r}")
        if seeds is not None:
            raise ConfigError(f"--seeds: a resumed run has one seed, leave it out with --resume, got {seeds!r}")
        if config is not None:
            raise ConfigError(f"--config: a resumed run has its own, leave it out with --resume, got {config}")
        job.resume(resume, asked, images, outputs, report)
        return
    found = configured.chosen(recipe, config, images, asked)
    count = _count(seeds)
    run_name = found.name if name is None else check_name(name)
    for line in found.lines:
        report.line(line)

    def begin(settings: Recipe, run_name: str):
        run = job.experiment if isinstance(settings, Experiment) else job.start
        return run(found.name, settings, found.data, runs or Path("runs"), outputs, report, run_name)

    if count == 1:
        begin(found.recipe, run_name)
        return
    with parallel.join():  # all runs in one world
        sweep.over_seeds(found.recipe, count, run_name, begin, report)


def _count(seeds: str | None) -> int:
    count = 1 if seeds is None else int(seeds) if seeds.isdecimal() and len(seeds) < 11 else 0
    if count < 1:
        raise ConfigError(f"expected a whole number, at least 1, got {seeds!r}", "seeds")
    return count


@app.command()
def recipes(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="One of them: all its settings, and a command.")
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="Only recipes of this method.")] = None,
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="Only recipes of this data set.")] = None,
):
    """List the recipes, what each aims at, who published that and what picks the best epoch; or show one."""
    if recipe is None:
        lines = cli_recipes.listing(method, dataset)
    elif method is None and dataset is None:
        lines = cli_recipes.details(recipe)
    else:
        raise ConfigError(f"RECIPE: expected either a recipe or what to list (--method, --dataset), got {recipe!r}")
    for line in lines:
        typer.echo(line)


app.command(name="export")(cli_saved.export_run)
app.command(name="eval")(cli_saved.eval_run)
app.command(name="import")(cli_settings.with_settings(cli_saved.import_checkpoint, hidden=True))


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
