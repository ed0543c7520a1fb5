"""Banks of masks in packed files: a bit a weight and task, the weights once, and what else is of a task."""

from pathlib import Path
from typing import Any

import torch

from ..bank import MaskBank
from ..bank.state import State, join
from ..masks import packed_bytes
from ..nn.packed import magnitude_and_signs, one_magnitude
from . import container
from .container import Tensors
from .outline import geometry

# Entries of a masked layer that are of a task, or say how its scores become a mask.
_OF_TASKS = ("scores", "popup_scores", "mask_bits", "_extra_state")
_WEIGHTS = ("weight", "weight_magnitude", "weight_signs", "weight_seed")
# The forms of a weight: numbers, bits, what bits are drawn from.
_FORMS = ({"weight"}, {"weight_magnitude", "weight_signs"}, {"weight_magnitude", "weight_seed"})


@torch.no_grad()
def save(bank: MaskBank, file: Path, meta: dict[str, Any]) -> None:
    """Writes ``file``, whole or not at all. Raises ValueError for a bank without tasks."""
    bank._check_unmixed("save_packed")
    if not bank.tasks:
        raise ValueError("model: the bank has no task yet; call add() first")
    tensors = {f"model.{name}": value for name, value in _common(bank).items()}
    masks = [bank.packed_masks(task) for task in range(bank.tasks)]
    for name in bank._layers:
        tensors[f"masks.{join(name, 'bits')}"] = torch.stack([bits[name] for bits in masks])
    for task in range(bank.tasks):
        state = bank._state(task)
        tensors |= {f"tasks.{task}.{name}": state[name] for name in bank._beside}
    about = {"tasks": bank.tasks, "layers": _layers(bank), "meta": meta}
    own = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    container.write(file, own, about, container.BANK)


@torch.no_grad()
def load(file: Path, bank: MaskBank) -> MaskBank:
    """Loads ``file``: frozen tasks in the place of those that there are, the first in use. Raises ValueError for a file
    of another network, before anything changes."""
    tensors, about = container.read(file, container.BANK)
    differing = _differing(bank, tensors, about)
    if differing:
        more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise ValueError(f"model: {file} is of another network; {'; '.join(differing[:4])}{more}")
    bank.unmix()
    common = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    tasks: list[State] = [{} for _ in range(about["tasks"])]
    for name, layer in bank._layers.items():
        device = layer._bare_weight().device
        for task, bits in zip(tasks, tensors[f"masks.{join(name, 'bits')}"].to(device).unbind(), strict=True):
            task[join(name, "mask_bits")] = bits.clone()
    for name, first in bank._first.items():
        for number, task in enumerate(tasks):
            task[name] = tensors[f"tasks.{number}.{name}"].to(first.device, first.dtype)
    # Weights take the form that they have here, bits or numbers.
    bank.model.load_state_dict(common, strict=False)
    bank._take_tasks(tasks)
    bank.meta = about["meta"]
    return bank


def _common(bank: MaskBank) -> Tensors:
    """What all tasks have in common, by the network's names; a weight of one magnitude as bits."""
    found: Tensors = {}
    of_task = {join(name, leaf) for name in bank._layers for leaf in _OF_TASKS} | set(bank._beside)
    for name, value in bank.model.state_dict().items():
        if name not in of_task and isinstance(value, torch.Tensor):
            found[name] = value
    for name, layer in bank._layers.items():
        weight = found.get(join(name, "weight"))
        if weight is None or weight.numel() == 0 or layer.weight.requires_grad:
            continue
        if one_magnitude(weight) is not None:
            del found[join(name, "weight")]
            found[join(name, "weight_magnitude")], found[join(name, "weight_signs")] = magnitude_and_signs(weight)
    return found


def _layers(bank: MaskBank) -> dict[str, Any]:
    return {
        name: {"kind": m._plain.__name__, "geometry": geometry(m), "shape": list(m._weight_shape())}
        for name, m in bank._layers.items()
    }


def _differing(bank: MaskBank, tensors: Tensors, about: dict[str, Any]) -> list[str]:
    """Where the file is not of the bank's network, in phrases."""
    differing, ours, theirs = [], _layers(bank), about["layers"]
    for name in sorted(ours.keys() ^ theirs.keys()):
        differing.append(f"{name}: it is masked in one of the two alone")
    for name in ours.keys() & theirs.keys():
        differing += [
            f"{name}: expected {what} {ours[name][what]}, got {theirs[name].get(what)}"
            for what in ours[name]
            if ours[name][what] != theirs[name].get(what)
        ]
    if differing:
        return differing
    tasks = range(about["tasks"])
    expected = {f"tasks.{task}.{name}": t.shape for task in tasks for name, t in bank._first.items()}
    for name, layer in bank._layers.items():
        expected[f"masks.{join(name, 'bits')}"] = torch.Size((len(tasks), packed_bytes(layer._weight_shape().numel())))
    weights = {f"model.{join(name, leaf)}" for name in ours for leaf in _WEIGHTS}
    expected |= {n: t.shape for n, t in ((f"model.{n}", t) for n, t in _common(bank).items()) if n not in weights}
    for name in sorted(expected.keys() | tensors.keys() - weights):
        if name not in expected or name not in tensors:
            differing.append(f"{name}: it is in {'the file' if name in tensors else 'the network'} alone")
        elif tensors[name].shape != expected[name]:
            differing.append(f"{name}: expected shape {tuple(expected[name])}, got {tuple(tensors[name].shape)}")
    for name, layer in bank._layers.items():
        form = {leaf for leaf in _WEIGHTS if f"model.{join(name, leaf)}" in tensors}
        if form not in _FORMS:
            differing.append(f"{name}: expected a weight, or its magnitude and its signs or seed, got {sorted(form)}")
        elif "weight" in form and layer._weight_is_packed():
            differing.append(f"{name}: its weight is packed, and the file's is not; call unpack_weights(model)")
    return differing
