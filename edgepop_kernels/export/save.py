"""Masked networks into packed files: a bit a weight for the mask, and of the weights what cannot be drawn again."""

import os
from typing import Any

import torch
from torch import nn

from .. import selecting, torch_private
from ..bank import MaskBank
from ..masks import popcount
from ..nn import MaskedLayer
from ..nn.packed import magnitude_and_signs, one_magnitude
from ..nn.saved import as_dict
from ..sharing import layer_masks
from . import banks, container
from .container import Tensors
from .outline import Entry, PackedLayer, check_plain_data, entries_of, geometry, join, named_layers, path, unwrapped


@torch.no_grad()
def save_packed(model: nn.Module, file: str | os.PathLike[str], **meta: Any) -> None:
    """Saves a masked network as it is evaluated, in a safetensors file: a bit a weight for the masks, and of each
    masked layer's weight:

      nothing              where it was drawn by ``init.packed_signed_constant_``: a seed and a number stand for it
      a bit each           where its elements are +c or -c, packed by ``pack_weights`` or not: signs and the number
      the kept ones alone  of any other

    Norms, biases and all other tensors of the state_dict go along as they are; scores do not. meta: what else to say,
    plain data (numbers, strings, lists, dicts), which ``load_packed(file).meta`` gives back.

    Of a ``MaskBank`` the masks of all tasks are saved, a bit each, the weights once, and what else a task has of its
    own; scores are not.

    The masks are those of evaluation; a rule that draws is drawn once. The file is written at once or not at all, has a
    checksum of everything, and needs nothing of this package to be read: docs/packed_format.md. Raises TypeError,
    ValueError; ImportError where safetensors is not installed; OSError.

    >>> model = nn.Sequential(ek.FusedSubnetLinear(64, 32, keep=0.3), nn.ReLU(), ek.FusedSubnetLinear(32, 10, keep=0.3))
    >>> for layer in model[::2]:
    ...     layer = ek.init.packed_signed_constant_(layer, seed=1)
    >>> ek.save_packed(model, "net.safetensors", accuracy=0.91)
    >>> plain = ek.load_packed("net.safetensors")
    >>> list(plain), plain.meta
    (['0.weight', '0.bias', '2.weight', '2.bias'], {'accuracy': 0.91})
    """
    place, model = path(file), unwrapped(model)
    if isinstance(model, MaskBank):
        check_plain_data(meta)
        banks.save(model, place, meta)
        return
    named = named_layers(model)
    if not named:
        raise ValueError("model: it has no masked layer; expected a converted model, or one built of Fused layers")
    check_plain_data(meta)
    entries = list(entries_of(model))
    for entry in entries:
        _check_saves(entry)
    unique = list(dict.fromkeys(named.values()))
    saved = {m: _of_layer(m, mask) for m, mask in zip(unique, layer_masks(unique), strict=True)}
    found: dict[str, torch.Tensor] = {e.name: e.value for e in entries if e.layer is None}
    for name, layer in named.items():
        found |= {join(name, key): value for key, value in saved[layer][1].items()}
    first: dict[object, str] = {}
    shared: dict[str, str] = {}
    for name, value in found.items():
        other = first.setdefault(_memory(value), name)
        if other != name:
            shared[name] = other
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in found.items()
        if name not in shared
    }
    about = {
        "layers": {name: saved[layer][0]._asdict() for name, layer in named.items()},
        "order": [e.name for e in entries],
        "shared": shared,
        "meta": meta,
    }
    container.write(place, tensors, about)


def _of_layer(layer: MaskedLayer, mask: torch.Tensor) -> tuple[PackedLayer, Tensors]:
    """The layer's description, and its tensors by their names in it."""
    bits = selecting.pack_mask(mask)
    tensors, weight = {"mask_bits": bits}, layer._bare_weight().detach()
    if layer._weight_is_packed():
        held: dict[str, Any] = layer._buffers
        magnitude, signs, seed = held["weight_magnitude"], held["weight_signs"], held.get("weight_seed")
    else:
        packable = weight.numel() > 0 and one_magnitude(weight) is not None
        magnitude, signs = magnitude_and_signs(weight) if packable else (None, None)
        seed = None
    if magnitude is None:
        tensors["weight_kept"] = weight[mask]
    elif seed is None and signs is not None:
        tensors["weight_signs"] = signs
    bias = layer.effective_bias()
    if bias is not None:
        tensors["bias"] = bias
    described = PackedLayer(
        kind=layer._plain.__name__,
        geometry=geometry(layer),
        method=layer._method,
        rule=as_dict(layer.rule if layer._loose_rule is None else layer._loose_rule),
        shape=list(weight.shape),
        dtype=_name(weight.dtype),
        kept=int(popcount(bits)),
        weight="kept" if magnitude is None else "signs" if seed is None else "seed",
        magnitude=None if magnitude is None else magnitude.item(),
        seed=None if seed is None else int(seed),
        rescale=getattr(layer, "rescale", False),
    )
    return described, tensors


def _check_saves(entry: Entry) -> None:
    """Raises TypeError or ValueError for what a packed file cannot hold."""
    if not isinstance(entry.value, torch.Tensor):
        raise TypeError(f"{entry.name}: expected a state_dict of tensors, got {type(entry.value).__name__}")
    if entry.value.is_meta or torch_private.sharded(entry.value):
        where = "on the meta device" if entry.value.is_meta else "one that fully_shard has a part of"
        raise ValueError(f"{entry.name}: expected a tensor with all its values, got {where}")
    if entry.value.layout != torch.strided or entry.value.is_complex() or entry.value.is_quantized:
        raise TypeError(f"{entry.name}: expected dense real numbers, got {entry.value.dtype} {entry.value.layout}")


def _memory(value: torch.Tensor) -> object:
    """A key that two names of one tensor have in common."""
    if value.numel() == 0:
        return object()
    return value.device, value.data_ptr(), value.dtype, value.shape, value.stride()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
