"""A trained run as plain torch weights: W * M where the mask was, nothing of this package needed to load it."""

import json
from pathlib import Path

import torch

import edgepop_kernels as ek

from . import checkpoint, experiments, registry, runs
from .errors import UserError
from .files import make_folder, write_atomic
from .trainer import masked_layers

SUFFIXES = (".pt", ".safetensors")


def export(place: Path, name: str, output: Path | None, masks: bool) -> list[Path]:
    """Write checkpoint ``name`` of the run folder ``place`` to ``output``; returns the files written.

    output: a .pt (a state_dict) or .safetensors file, default ``place/<checkpoint>-plain.pt``, "best" under the name
    of its file. The state_dict is that of the recipe's network in torch's layers, as ``edgepop_kernels.materialize``
    leaves it. masks: a second file ``<stem>-masks`` with each layer's mask, that of the weights in the first, as
    ``edgepop_kernels.pack_mask`` packs it, 1 bit per weight.
    """
    output = output or place / f"{checkpoint.path(place, name).stem}-plain.pt"
    if output.suffix not in SUFFIXES:
        raise UserError(f"cannot export to {output}: expected a name ending in {' or '.join(SUFFIXES)}")
    if _is_checkpoint(output, place):
        raise UserError(f"cannot export to {output}: that is a checkpoint of a run, expected another name or folder")
    if not place.is_dir():
        raise UserError(f"the run folder {place} does not exist")
    if runs.is_run(place) and not checkpoint.path(place, name).exists():
        experiments.refuse_comparison(place, registry.from_dict(runs.read_record(place)["config"]))
    state = checkpoint.load_run(place, name)
    recipe = registry.from_dict(state["config"])
    model = recipe.network(tuple(state["image"]), state["classes"])
    model.load_state_dict(state["model"])
    packed = {}
    if masks:
        if not masked_layers(model):
            raise UserError(f"{place} trained a {recipe.method} network: it has no masks to export")
        # Frozen first: a rule that draws would give the file one mask and the weights another.
        ek.train_weights(model)
        packed = {layer: module.packed_mask() for layer, module in masked_layers(model)}
    about = {
        "config": json.dumps(recipe.to_dict()),
        "image": json.dumps(state["image"]),
        "classes": str(state["classes"]),
        "epoch": str(state["epoch"]),
    }
    make_folder(output.parent)
    plain = {name: tensor.contiguous() for name, tensor in ek.materialize(model).state_dict().items()}
    _write(output, plain, about)
    if not masks:
        return [output]
    mask_file = output.with_name(f"{output.stem}-masks{output.suffix}")
    _write(mask_file, packed, about)
    return [output, mask_file]


def _is_checkpoint(output: Path, place: Path) -> bool:
    """Whether ``output`` is where a run, ``place`` or another, has a checkpoint or will have one."""
    folder = output.parent
    in_a_run = folder.resolve() == place.resolve() or runs.is_run(folder)
    return in_a_run and output in [folder / file for file in checkpoint.FILES]


def _write(file: Path, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    if file.suffix == ".pt":
        write_atomic(file, checkpoint.torch_bytes(tensors))
        return
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError(
            "a .safetensors file needs safetensors, which is not installed: pip install safetensors"
        ) from error
    write_atomic(file, save(tensors, metadata=about))
