"""Checkpoints of hidden-networks as those of a run: `edgepop eval`, `export` and `--pretrained` take them."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checkpoint, pretrained
from .config import Recipe
from .data import PHOTOGRAPHS, cifar, crops
from .data.folder import DEVIATION, MEAN
from .errors import ConfigError, UserError
from .files import make_folder, read_bytes
from .masks import packed_masks
from .trainer import frozen_digest


class Pixels(NamedTuple):
    """The images of a data set, [C, H, W], and by what mean and deviation, of pixels of 0 to 255, hidden-networks
    normalises them."""

    image: tuple[int, int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def _of_units(image: tuple[int, int, int], mean: tuple[float, ...], deviation: tuple[float, ...]) -> Pixels:
    return Pixels(image, tuple(255 * m for m in mean), tuple(255 * d for d in deviation))


PIXELS = {
    "mnist": _of_units((1, 28, 28), (0.1307,), (0.3081,)),
    "cifar10": _of_units((3, 32, 32), (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
}


def write(file: Path, recipe: Recipe, output: Path) -> list[str]:
    """Reads the checkpoint ``file`` of hidden-networks into the network of ``recipe`` and writes that to ``output``, as
    a run's checkpoint; lines on what was read.

    The checkpoint says neither the rate nor the rule of its masks: both are the recipe's. Raises UserError, before
    anything is written, where something does not fit, and for an ``output`` that is there and no import.
    """
    if recipe.dataset not in (*PIXELS, *PHOTOGRAPHS):
        allowed = ", ".join((*PIXELS, *PHOTOGRAPHS))
        words = f"expected one of {allowed}, which hidden-networks trains on, got {recipe.dataset!r}"
        raise ConfigError(words, "dataset")
    _check_free(output)
    entries = pretrained.read(file)
    image, preparation = _preprocessing(recipe)
    classes = _classes(file, entries)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = recipe.network(image, classes)
        read = pretrained.load(recipe, model, entries, str(file))
        masks = packed_masks(model)
    if not read.whole:
        raise UserError(f"{file} does not fit: {'; '.join(read.lines[1:])}")
    state = {
        "config": recipe.to_dict(),
        "imported": {"file": file.name, "sha256": hashlib.sha256(read_bytes(file)).hexdigest()},
        "data_digest": None,
        "image": list(image),
        "classes": classes,
        "class_names": list(cifar.CLASS_NAMES["cifar10"]) if recipe.dataset == "cifar10" and classes == 10 else None,
        "preprocessing": preparation,
        "model": model.state_dict(),
        "optimizer": {},
        "epoch": 0,
        "step": 0,
        "sums": [],
        "history": [],
        "evaluated_from": None,
        "masks": masks,
        "frozen_digest": frozen_digest(model),
        "ran_on": [],
        "random": checkpoint.random_state(),
    }
    make_folder(output.parent)
    checkpoint.write(output, state)
    return read.lines


def _check_free(output: Path) -> None:
    """UserError where ``output`` is no name for a checkpoint, or is there and no import."""
    if output.suffix != ".pt":
        raise UserError(f"cannot import to {output}: expected a name ending in .pt")
    if output.exists():
        try:
            known = "imported" in checkpoint.load(output)
        except UserError:
            known = False
        if not known:
            raise UserError(f"cannot import to {output}: it is there and is no import, expected another name")


def _preprocessing(recipe: Recipe) -> tuple[tuple[int, int, int], dict[str, Any]]:
    if recipe.dataset in PIXELS:
        pixels, steps = PIXELS[recipe.dataset], {}
    else:
        side = recipe.image_size
        pixels, steps = Pixels((3, side, side), MEAN, DEVIATION), crops.prepared(side)
    moments = {"mean": list(pixels.mean), "deviation": list(pixels.deviation)}
    return pixels.image, {"layout": "NCHW", "image": list(pixels.image), **steps, "values": [0, 255], **moments}


def _classes(file: Path, entries: dict[str, Tensor]) -> int:
    """The outputs of the last layer."""
    last = [value for name, value in entries.items() if name.endswith("weight") and value.dim() in (2, 4)]
    if not last:
        raise UserError(f"{file} does not fit: it has no weight of a layer")
    return last[-1].shape[0]
