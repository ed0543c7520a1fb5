"""The commands for what runs have saved: `export` and `eval`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import checkpoint, evaluation, export, imported, registry
from .errors import ConfigError
from .report import Report

Which = Annotated[
    str | None,
    typer.Option("--checkpoint", help=f"{', '.join(checkpoint.NAMES)}; of a run folder.", show_default="best"),
]


def export_run(
    run: Annotated[Path, typer.Argument(help="A run folder, or a checkpoint of one.")],
    output: Annotated[
        Path | None, typer.Option(help="A .pt or .safetensors file.", show_default="beside the checkpoint")
    ] = None,
    which: Which = None,
    masks: Annotated[bool, typer.Option(help="Write the masks too, packed to 1 bit per weight.")] = False,
    packed: Annotated[
        bool,
        typer.Option(help="Write the masked network itself, 1 bit per weight for its masks: a .safetensors file."),
    ] = False,
    onnx: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an .onnx file, checked with onnxruntime; with --packed of bits."),
    ] = None,
):
    """Write a trained run as plain torch weights (W * M), and what one has to know to use them, with a model card."""
    written = export.export(run, _known(which), output, masks, packed, onnx)
    for file in written.files:
        typer.echo(file)
    for note in written.notes:
        typer.echo(note, err=True)


def eval_run(
    run: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="A run folder, a checkpoint of one, or an export.")
    ],
    images: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of the data set's files.", show_default="where the run had them"),
    ] = None,
    which: Which = None,
):
    """Evaluate a trained run, as it was evaluated in training, or an export of one."""
    evaluation.evaluate(run, _known(which), images, Report(Console()))


def import_checkpoint(
    file: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint of hidden-networks: model_best.pth.")
    ],
    recipe: Annotated[str, typer.Option(metavar="NAME", help="The recipe of its network; see `edgepop recipes`.")],
    *,
    output: Annotated[
        Path | None, typer.Option(help="A .pt file.", show_default="NAME.pt, of the checkpoint's name, here")
    ] = None,
    **asked,
):
    """Make a checkpoint of hidden-networks one of a run, for eval, export and --pretrained.

    Its entries are read by their position. It says neither rate nor rule of its masks: --keep, and every other
    setting of the recipe, is an option here too, as `edgepop train NAME --help` lists them.
    """
    output = output or Path(f"{file.stem}.pt")
    for line in imported.write(file, registry.find(recipe).recipe.asked(**asked), output):
        typer.echo(line, err=True)
    typer.echo(output)


def _known(which: str | None) -> str | None:
    if which not in (None, *checkpoint.NAMES):
        raise ConfigError(f"--checkpoint: expected one of {', '.join(checkpoint.NAMES)}, got {which!r}")
    return which
