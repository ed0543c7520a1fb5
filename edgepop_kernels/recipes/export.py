"""A trained run as files for elsewhere: plain torch weights, W * M where the mask was, or packed, or ONNX."""

from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import edgepop_kernels as ek

from . import checkpoint, exported, resnets, runs, saved
from .config import Recipe
from .errors import UserError
from .files import make_folder
from .masks import masked_layers
from .saved import Saved

_TOLD = ("method", "dataset", "model", "seed")  # settings that a card has places of their own for
# Settings that a network follows from, beside those of its method.
_SIZES = ("widths", "width_multiplier")


class Written(NamedTuple):
    """The files of an export, and lines on what lies beside them and how they were checked."""

    files: list[Path]
    notes: list[str]


def export(
    place: Path,
    name: str | None,
    output: Path | None,
    masks: bool = False,
    packed: bool = False,
    onnx: Path | None = None,
) -> Written:
    """Write a checkpoint, ``saved.find(place, name)``, to ``output``.

    output: a .pt (a state_dict) or .safetensors file, default ``<checkpoint>-plain.pt`` beside it. The state_dict is
    that of ``plain(network)``, and what one has to know to use it goes with it: ``description``. masks: a second file
    ``<stem>-masks`` with each layer's mask, that of the weights in the first, as ``edgepop_kernels.pack_mask`` packs
    it, 1 bit per weight. packed: ``output``, default ``<checkpoint>-packed.safetensors``, is a packed file of the
    masked network. onnx: another file, of the plain network as ONNX, its weights as bits with ``packed``; plain weights
    are written beside it only where ``output`` asks for them. Each has a card beside it. Raises UserError, also where a
    file would be replaced that is no export.
    """
    found = saved.find(place, name)
    main = output
    if main is None and (packed or onnx is None):
        main = found.file.with_name(f"{found.file.stem}-{'packed.safetensors' if packed else 'plain.pt'}")
    mask_file = main.with_name(f"{main.stem}-masks{main.suffix}") if masks and main is not None else None
    files = [file for file in (main, mask_file, onnx) if file is not None]
    _check_names(main, onnx, masks, packed, files, place)
    with torch.random.fork_rng(devices=[]):
        # What a rule draws follows from the run: exported twice, the same weights.
        torch.manual_seed(found.recipe.seed)
        trained = _network(found)
        if (masks or packed) and not masked_layers(trained):
            raise UserError(f"{found.file} is of a {found.recipe.method} network: it has no masks to export")
        drawn = any(layer.rule == ek.Bernoulli("sample") for _, layer in masked_layers(trained))
        facts = _facts(found, drawn)
        text = ek.model_card(trained, f"{found.recipe.model} on {found.recipe.dataset}", **facts)
        if masked_layers(trained) and not found.recipe.to_dict().get(
            "pack"
        ):  # bits do not train; their masks are ranked
            ek.train_weights(trained)  # keeps the masks: a rule that draws would have others for each file
        model = plain(deepcopy(trained), found.recipe)
    about, notes = description(found, model, drawn), []
    for folder in dict.fromkeys(file.parent for file in files):
        make_folder(folder)
    if main is not None and packed:
        exported.write_packed(main, trained, about)
    elif main is not None:
        exported.write(main, {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, about)
    if mask_file is not None:
        bits = {name: layer.packed_mask() for name, layer in masked_layers(trained)}
        exported.write(mask_file, bits, about | {"holds": "masks"})
    for file in (main, mask_file):
        if file is not None and exported.description(file) != file:
            notes.append(f"{exported.description(file)}: what one has to know to use {file.name}")
    if onnx is not None:
        notes.append(exported.write_onnx(onnx, trained, tuple(found.state["image"]), packed, about))
    sizes = "".join(f"- {file.name}: {file.stat().st_size:,} bytes\n" for file in files)
    for file in dict.fromkeys(exported.card(file) for file in (main, onnx) if file is not None):
        exported.write_card(file, f"{text}\n{sizes}")
        notes.append(f"{file}: a card for people")
    return Written(files, notes)


def _check_names(
    main: Path | None, onnx: Path | None, masks: bool, packed: bool, files: list[Path], place: Path
) -> None:
    """Raises UserError where these files cannot be written."""
    allowed = (".safetensors",) if packed else exported.SUFFIXES
    if main is not None and main.suffix not in allowed:
        raise UserError(f"cannot export to {main}: expected a name ending in {' or '.join(allowed)}")
    if onnx is not None and onnx.suffix != ".onnx":
        raise UserError(f"cannot export to {onnx}: expected a name ending in .onnx")
    if masks and (packed or main is None):
        other = "--packed, which has them" if packed else "--onnx alone"
        raise UserError(f"--masks: they go along with plain weights, leave it out beside {other}")
    for file in files:
        if _is_checkpoint(file, place):
            raise UserError(f"cannot export to {file}: that is a checkpoint of a run, expected another name or folder")
        exported.check_free(file)


def _facts(found: Saved, drawn: bool) -> dict[str, Any]:
    """The known of a run, for its card."""
    recipe, state, row = found.recipe, found.state, found.row or {}
    folder = found.file.parent
    record = runs.read_record(folder) if runs.is_run(folder) else {}
    environment = record.get("environment", {})
    accuracies = {part: row.get(f"{part}_accuracy") for part in ("validation", "test")}
    anew = ", under masks drawn anew" if drawn else ""
    versions = [f"{name} {environment[name]}" for name in ("edgepop_kernels", "torch") if name in environment]
    return {
        "recipe": record.get("recipe"),
        "method": None if recipe.masks else recipe.method,
        "trained_on": recipe.dataset + (f", SHA-256 {digest}" if (digest := state["data_digest"]) else ""),
        "checkpoint": f"{found.file.name}, {saved.told(found.origin)}",
        **{f"{part}_accuracy": None if a is None else f"{a:.2%}{anew}" for part, a in accuracies.items()},
        "seed": recipe.seed,
        "settings": ", ".join(f"{n} {v}" for n, v in recipe.to_dict().items() if n not in _TOLD),
        "trained_with": ", ".join(versions) or None,
        "commit": record.get("commit"),
    }


def plain(model: nn.Module, recipe: Recipe) -> nn.Module:
    """A network of ``recipe`` in torch's own layers, in place: ``materialize``d, and where it is one of ``RESNETS``
    with all that torchvision's have (``resnets.complete``)."""
    model = ek.materialize(model)
    return resnets.complete(model) if recipe.model in resnets.RESNETS else model


def description(found: Saved, model: nn.Module, drawn: bool) -> dict[str, Any]:
    """A description of what one has to know to use the weights of the plain ``model``: plain data, without the places
    of any files.

    holds: "weights", in a file of masks "masks"; preprocessing: how an image becomes the input; class_names: of the
    outputs, None where they are unknown; architecture: the network and its modules; checkpoint: its name and the row of
    the log, with the accuracies, of the epoch it was taken after (``row`` None: of none); data: name and SHA-256 of
    what it was trained and tested on; config: every setting of the run. accuracy_of: "these weights", or "masks drawn
    anew" where, with ``drawn``, these weights are under one draw of many.
    """
    state, config = found.state, found.recipe.to_dict()
    return {
        "holds": "weights",
        "checkpoint": {
            "name": found.file.stem,
            **found.origin,
            "row": found.row,
            "accuracy_of": "masks drawn anew" if drawn else "these weights",
        },
        "preprocessing": state["preprocessing"],
        "class_names": state["class_names"],
        "architecture": {
            "model": found.recipe.model,
            **{size: config[size] for size in _SIZES if size in config},
            "image": state["image"],
            "classes": state["classes"],
            "modules": str(model),
        },
        "data": {"name": found.recipe.dataset, "sha256": state["data_digest"]},
        "config": config,
        "versions": {"edgepop_kernels": ek.__version__, "torch": torch.__version__},
    }


def _network(found: Saved) -> nn.Module:
    model = found.recipe.network(tuple(found.state["image"]), found.state["classes"])
    model.load_state_dict(found.state["model"])
    return model


def _is_checkpoint(output: Path, place: Path) -> bool:
    """Whether ``output`` is where a run, ``place`` or another, has a checkpoint or will have one."""
    folder, source = output.parent, place if place.is_dir() else place.parent
    in_a_run = folder.resolve() == source.resolve() or runs.is_run(folder)
    return in_a_run and checkpoint.is_name(output.name)
