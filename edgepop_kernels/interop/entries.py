"""The entries of one layer in a checkpoint, by the names and in the shapes that the layer has here."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import selecting
from ..nn import KINDS, MaskedLayer
from .origin import is_binary

# Other names of scores: hydra's, piggyback's; and of a weight and of masks: torch.nn.utils.prune's, dnw's.
_SCORES, _MASKS = ("popup_scores", "mask_real"), ("weight_mask", "mask")


class Entry(NamedTuple):
    """A value for a layer, and the names that it had in the checkpoint."""

    value: Any
    names: tuple[str, ...]


Entries = dict[str, Entry]


def for_masked(layer: MaskedLayer, saved: Mapping[str, Any]) -> Entries:
    """What was ``saved`` of a layer by the names of a masked layer's state_dict. Raises ValueError.

    A fixed mask, as such or as scores of 0 and 1 alone (hidden-networks' FixedSubnetConv), becomes ``mask_bits``.
    """
    entries: Entries = {name: Entry(value, (name,)) for name, value in saved.items()}
    for theirs, ours in [*((name, "scores") for name in _SCORES), ("weight_orig", "weight")]:
        if theirs in entries and ours not in entries:
            entries[ours] = entries.pop(theirs)
    if "bias_orig" in entries and "bias" not in entries:
        entries["bias"] = _product(entries.pop("bias_orig"), entries.pop("bias_mask", None))
    shape = layer._weight_shape()
    for name in ("weight", "scores"):
        if name in entries:
            entries[name] = entries[name]._replace(value=_shaped(entries[name].value, shape))
    fixed = next((name for name in _MASKS if name in entries), None)
    if fixed is None and "scores" in entries and _chooses(entries["scores"].value):
        fixed = "scores"
    if fixed is not None and "mask_bits" not in entries:
        mask = entries.pop(fixed)
        entries["mask_bits"] = mask._replace(value=_packed(fixed, mask.value, shape))
    if "scores" in entries:
        entries[layer._scores_name] = entries.pop("scores")
    return entries


def for_plain(module: nn.Module, own: Mapping[str, Any], saved: Mapping[str, Any]) -> Entries:
    """What was ``saved`` of a module of torch's, as far as it is among its ``own``: a pruned weight by its product."""
    entries: Entries = {name: Entry(value, (name,)) for name, value in saved.items()}
    for name in ("weight", "bias"):
        pruned, mask = f"{name}_orig", f"{name}_mask"
        if name in own and name not in entries and {pruned, mask} <= entries.keys():
            entries[name] = _product(entries.pop(pruned), entries.pop(mask))
    weight = own.get("weight")
    if isinstance(module, tuple(KINDS)) and weight is not None and "weight" in entries:
        entries["weight"] = entries["weight"]._replace(value=_shaped(entries["weight"].value, weight.shape))
    return {name: entry for name, entry in entries.items() if name in own}


def problem(name: str, own: torch.Tensor | None, value: Any, shape: torch.Size | None = None) -> str:
    """Why ``value`` cannot be loaded into the tensor ``own``, in words; empty where it can."""
    if not isinstance(value, torch.Tensor):
        return f"{name}: expected a tensor, got {type(value).__name__}"
    shape = own.shape if shape is None and own is not None else shape
    if shape is not None and value.shape != shape:
        return f"{name}: expected shape {tuple(shape)}, got {tuple(value.shape)}"
    if own is None:
        return ""
    if own.is_meta:
        return f"{name}: it is on the meta device; call model.to_empty(device=...) before"
    if hasattr(own, "device_mesh"):
        return f"{name}: it is sharded; load before fully_shard"
    if own.is_floating_point() and not value.is_floating_point():
        return f"{name}: expected floating values, got {value.dtype}"
    return ""


def _product(values: Entry, mask: Entry | None) -> Entry:
    if mask is None or not (isinstance(values.value, torch.Tensor) and isinstance(mask.value, torch.Tensor)):
        return values
    return Entry(values.value * mask.value, values.names + mask.names)


def _shaped(value: Any, shape: torch.Size) -> Any:
    """A convolution of 1x1 as a linear layer, or the other way round; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    longer, shorter = sorted((value.shape, shape), key=len, reverse=True)
    same = longer[: len(shorter)] == shorter and all(size == 1 for size in longer[len(shorter) :])
    return value.reshape(shape) if same else value


def _chooses(scores: Any) -> bool:
    """Whether these are no scores but a mask: 0 and 1, both, and nothing else."""
    if not isinstance(scores, torch.Tensor) or scores.numel() == 0:
        return False
    first = scores[(0,) * (scores.dim() - 1)]  # which tells, as a rule, without a look at all
    return is_binary(first) and is_binary(scores) and bool((scores == 0).any() and (scores == 1).any())


def _packed(name: str, mask: Any, shape: torch.Size) -> torch.Tensor:
    mask = _shaped(mask, shape)
    if wrong := problem(name, None, mask, shape):
        raise ValueError(wrong)
    if not is_binary(mask):
        raise ValueError(f"{name}: expected a mask of 0 and 1, got other values")
    return selecting.pack_mask(mask != 0)
