"""Packed files back into networks, masked or plain, or into plain tensors."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import torch
from torch import nn

from .. import checks, reference, selecting
from ..bank import MaskBank
from ..interop.kinds import learn
from ..masks import popcount
from ..nn import MaskedLayer
from ..nn.kinds import KINDS
from ..nn.packed import drawn_signs
from ..nn.supermask import Supermask
from ..nn.tools import check_unwrapped
from . import banks, container
from .container import Tensors
from .outline import PackedLayer, entries_of, geometry, join, named_layers, path, unwrapped

Model = TypeVar("Model", bound=nn.Module)


class PackedState(dict[str, torch.Tensor]):
    """The plain tensors of a packed file by name, as ``materialize(model).state_dict()`` has them.

    layers  a description of each masked layer, by name
    meta    what was said beside the model when it was saved
    """

    layers: dict[str, PackedLayer]
    meta: dict[str, Any]


class _Content(NamedTuple):
    """A packed file, read: its tensors by their names in it, and what it says of the network.

    order: the names of the plain state_dict; shared: names of tensors that are other ones, by name.
    """

    file: Path
    tensors: Tensors
    layers: dict[str, PackedLayer]
    order: list[str]
    shared: dict[str, str]
    meta: dict[str, Any]

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[self.shared.get(name, name)]


@overload
def load_packed(file: str | os.PathLike[str]) -> PackedState: ...
@overload
def load_packed(file: str | os.PathLike[str], model: Model) -> Model: ...
@torch.no_grad()
def load_packed(file: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module | PackedState:
    """Loads what ``save_packed`` saved: into ``model``, which is returned, or as plain tensors.

    model  the network that was saved, of masked layers (any ``keep``, any weights), of torch's own, or of both. A
           masked layer is frozen with the mask in the file, and its scores are dropped; weights that are bits stay
           bits. A plain layer gets the effective weight, W * M. Or the ``MaskBank`` of the network that a bank was of:
           it has the tasks of the file then, frozen, the first in use

    The kinds, shapes and geometry of all layers and the names and shapes of all other tensors are those of the file, or
    a ValueError names what differs, and the model is as it was. So it is for a file that is damaged or no packed one.
    Raises TypeError; OSError; ImportError where safetensors is not installed; RuntimeError inside
    DistributedDataParallel or fully_shard.

    >>> model = nn.Sequential(ek.FusedSubnetLinear(64, 10, keep=0.3))
    >>> ek.save_packed(model, "net.safetensors")
    >>> ek.load_packed("net.safetensors", nn.Sequential(ek.FusedSubnetLinear(64, 10)))
    Sequential(
      (0): FusedSubnetLinear(in_features=64, out_features=10, bias=True, rule=Frozen())
    )
    >>> plain = nn.Sequential(nn.Linear(64, 10))
    >>> plain.load_state_dict(ek.load_packed("net.safetensors"))
    <All keys matched successfully>
    """
    inner = None if model is None else unwrapped(model)
    if model is not None and isinstance(inner, MaskBank):
        banks.load(path(file), inner)
        return model
    content = _read(path(file))
    if model is None or inner is None:
        state = PackedState(_state_dict(content, {}))
        state.layers, state.meta = content.layers, content.meta
        return state
    named = named_layers(inner)
    check_unwrapped("load_packed", list(named.values()))
    differing = list(_differing(content, inner, named))
    if differing:
        more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise ValueError(f"model: {content.file} is of another network; {'; '.join(differing[:4])}{more}")
    state_dict = _state_dict(content, named)
    for masked in named.values():
        if masked.rule.fixed:  # loading does not drop the scores of a layer that was frozen with them
            masked._freeze(keep_scores=False)
    inner.load_state_dict(state_dict)
    for name, masked in named.items():
        if isinstance(masked, Supermask):
            masked.rescale = content.layers[name].rescale
    return model


def _state_dict(content: _Content, masked: Mapping[str, MaskedLayer]) -> Tensors:
    """The state_dict of a network in which the layers ``masked`` are masked, and the others plain."""
    state: Tensors = {}
    for name in content.order:
        layer = _weighted(content, name)
        if layer is None:
            state[name] = content.tensor(name)
        elif layer in masked:
            state |= {join(layer, key): value for key, value in _for_masked(content, layer, masked[layer]).items()}
        else:
            state[name] = _effective_weight(content, layer)
    return state


def _weighted(content: _Content, name: str) -> str | None:
    """The layer whose weight ``name`` is; None where it is another tensor."""
    layer, _, key = name.rpartition(".")
    return layer if key == "weight" and layer in content.layers else None


def _read(file: Path) -> _Content:
    tensors, about = container.read(file)
    try:
        layers = {name: PackedLayer(**fields) for name, fields in about["layers"].items()}
        content = _Content(file, tensors, layers, about["order"], about["shared"], about["meta"])
        for name in layers:
            _check_layer(content, name)
        for name in content.order:
            if _weighted(content, name) is None:
                content.tensor(name)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} does not describe a network: {error!r}") from error
    return content


def _check_layer(content: _Content, name: str) -> None:
    """Raises KeyError, TypeError or ValueError where the tensors of a layer are not as its description says."""
    layer, shape = content.layers[name], torch.Size(content.layers[name].shape)
    bits = content.tensor(join(name, "mask_bits"))
    checks.packed_bits(bits, shape, join(name, "mask_bits"))
    if layer.weight not in ("seed", "signs", "kept") or not isinstance(getattr(torch, layer.dtype), torch.dtype):
        raise ValueError(f"{name}: expected a weight as 'seed', 'signs' or 'kept', of a dtype of torch, got {layer}")
    if layer.weight == "signs":
        checks.packed_bits(content.tensor(join(name, "weight_signs")), shape, join(name, "weight_signs"))
    kept = int(popcount(bits))
    saved = content.tensor(join(name, "weight_kept")).numel() if layer.weight == "kept" else kept
    if not kept == saved == layer.kept:
        raise ValueError(f"{name}: expected {layer.kept} weights kept, got {kept} bits and {saved} values")


def _weight(content: _Content, name: str) -> Tensors:
    """The weight of a layer, in the form that the file has, by the names of a masked layer's state_dict."""
    layer = content.layers[name]
    dtype = getattr(torch, layer.dtype)
    if layer.weight == "kept":
        weight = torch.zeros(layer.shape, dtype=dtype)
        weight[_mask(content, name)] = content.tensor(join(name, "weight_kept"))
        return {"weight": weight}
    magnitude = torch.tensor(layer.magnitude, dtype=dtype)
    if layer.weight == "seed":
        return {"weight_magnitude": magnitude, "weight_seed": torch.tensor(layer.seed)}
    return {"weight_magnitude": magnitude, "weight_signs": content.tensor(join(name, "weight_signs"))}


def _mask(content: _Content, name: str) -> torch.Tensor:
    return selecting.unpack_mask(content.tensor(join(name, "mask_bits")), tuple(content.layers[name].shape))


def _effective_weight(content: _Content, name: str) -> torch.Tensor:
    mask, form = _mask(content, name), _weight(content, name)
    if "weight" in form:
        weight = form["weight"]
    else:
        signs = form["weight_signs"] if "weight_signs" in form else drawn_signs(form["weight_seed"], mask.shape)
        weight = reference.signed(form["weight_magnitude"].expand(mask.shape), signs)
    weight = weight.masked_fill(~mask, 0)
    return weight * (mask.numel() / mask.sum().clamp(min=1)) if content.layers[name].rescale else weight


def _for_masked(content: _Content, name: str, layer: MaskedLayer) -> Tensors:
    """The state_dict of a masked layer that is frozen with the mask in the file, without its bias."""
    state = _weight(content, name) | {"mask_bits": content.tensor(join(name, "mask_bits"))}
    if isinstance(layer, Supermask) and (layer.bias_scores is not None or layer.bias_mask is not None):
        state["bias_mask"] = content.tensor(join(name, "bias")) != 0  # what is masked out is 0 already
    return state


def _differing(content: _Content, model: nn.Module, named: dict[str, MaskedLayer]) -> Iterator[str]:
    """The differences of the network in the file and ``model``, each in words."""
    learn(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, layer in content.layers.items():
        yield from _differing_layer(name, layer, modules.get(name))
    for name in named.keys() - content.layers.keys():
        yield f"{name}: it is masked in the model and dense in the file"
    held = {entry.name: entry for entry in entries_of(model)}
    missing, unexpected = [n for n in content.order if n not in held], [n for n in held if n not in content.order]
    for what, names in (("the model has no", missing), ("the file has no", unexpected)):
        if names:
            yield f"{what} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    for name in content.order:
        if name not in held or _weighted(content, name) is not None:
            continue
        value, saved = held[name].value, content.tensor(name)
        if not isinstance(value, torch.Tensor) or value.shape != saved.shape:
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            yield f"{name}: expected shape {tuple(saved.shape)}, got {shape}"
        elif value.is_meta:
            yield f"{name}: it is on the meta device; call model.to_empty(device=...) before"


def _differing_layer(name: str, layer: PackedLayer, module: Any) -> Iterator[str]:
    kinds: tuple[Any, ...] = tuple(kind for kind in KINDS if kind.__name__ == layer.kind)
    if not isinstance(module, kinds):
        yield f"{name}: expected {layer.kind}, got {'nothing' if module is None else type(module).__name__}"
        return
    masked = module if isinstance(module, MaskedLayer) else None
    shape: Any = module.weight.shape if masked is None else masked._weight_shape()
    if list(shape) != layer.shape:
        yield f"{name}: expected a weight of shape {tuple(layer.shape)}, got {tuple(shape)}"
    for key, value in geometry(module).items():
        if layer.geometry.get(key) != value:
            yield f"{name}: expected {key}={layer.geometry.get(key)}, got {value}"
    if masked is not None and layer.rescale and not isinstance(masked, Supermask):
        yield f"{name}: its weights are rescaled; expected a supermask or a plain layer, got {type(module).__name__}"
    if masked is not None and layer.weight == "kept" and masked._weight_is_packed():
        yield f"{name}: its weight is packed, and the file's has more than one magnitude; call unpack_weights(model)"
