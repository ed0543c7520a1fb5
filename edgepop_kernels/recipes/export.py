"""A trained run as plain torch weights: W * M where the mask was, nothing of this package needed to load it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import edgepop_kernels as ek

from . import checkpoint, exported, resnets, runs, saved
from .config import Recipe
from .errors import UserError
from .files import make_folder
from .masks import masked_layers
from .saved import Saved

# Settings that a network follows from, beside those of its method.
_SIZES = ("widths", "width_multiplier")


def export(place: Path, name: str | None, output: Path | None, masks: bool) -> list[Path]:
    """Write a checkpoint, ``saved.find(place, name)``, to ``output``; returns the files written.

    output: a .pt (a state_dict) or .safetensors file, default ``<checkpoint>-plain.pt`` beside it. The state_dict is
    that of ``plain(network)``, and what one has to know to use it goes with it: ``description``. masks: a second file
    ``<stem>-masks`` with each layer's mask, that of the weights in the first, as ``edgepop_kernels.pack_mask`` packs
    it, 1 bit per weight. Raises UserError, also where a file would be replaced that is no export.
    """
    if output is not None and output.suffix not in exported.SUFFIXES:
        raise UserError(f"cannot export to {output}: expected a name ending in {' or '.join(exported.SUFFIXES)}")
    if output is not None and _is_checkpoint(output, place):
        raise UserError(f"cannot export to {output}: that is a checkpoint of a run, expected another name or folder")
    found = saved.find(place, name)
    output = output or found.file.with_name(f"{found.file.stem}-plain.pt")
    mask_file = output.with_name(f"{output.stem}-masks{output.suffix}")
    for file in (output, mask_file)[: 1 + masks]:
        exported.check_free(file)
    with torch.random.fork_rng(devices=[]):
        # What a rule draws follows from the run: exported twice, the same weights.
        torch.manual_seed(found.recipe.seed)
        trained = _network(found)
        drawn = any(layer.rule == ek.Bernoulli("sample") for _, layer in masked_layers(trained))
        packed = _frozen_masks(found, trained) if masks else {}
        model = plain(trained, found.recipe)
    about = description(found, model, drawn)
    make_folder(output.parent)
    exported.write(output, {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, about)
    if not masks:
        return [output]
    exported.write(mask_file, packed, about | {"holds": "masks"})
    return [output, mask_file]


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
            "epoch": state["epoch"],
            "step": state["step"],
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


def _frozen_masks(found: Saved, model: nn.Module) -> exported.Tensors:
    """The packed masks by layer, which ``model`` keeps: a rule that draws would have others for the weights."""
    if not masked_layers(model):
        raise UserError(f"{found.file} is of a {found.recipe.method} network: it has no masks to export")
    ek.train_weights(model)
    return {name: layer.packed_mask() for name, layer in masked_layers(model)}


def _is_checkpoint(output: Path, place: Path) -> bool:
    """Whether ``output`` is where a run, ``place`` or another, has a checkpoint or will have one."""
    folder, source = output.parent, place if place.is_dir() else place.parent
    in_a_run = folder.resolve() == source.resolve() or runs.is_run(folder)
    return in_a_run and output in [folder / file for file in checkpoint.FILES]
