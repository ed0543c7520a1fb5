"""The outline of a network as packed files and those who read them see it: layers, places of tensors, their names."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..nn import MaskedLayer

# The names in a masked layer's state_dict of which a packed file has its own forms.
_OF_LAYERS = frozenset(
    (
        *("weight", "scores", "popup_scores", "bias", "bias_scores", "bias_mask", "mask_bits", "_extra_state"),
        *("weight_signs", "weight_magnitude", "weight_seed"),
    )
)
_GEOMETRY = ("stride", "padding", "dilation", "groups", "padding_mode")


class PackedLayer(NamedTuple):
    """A masked layer as a packed file describes it.

    kind       the class of torch's layer; geometry, of a convolution: its stride, padding, dilation, groups and
               padding_mode, of a transposed one its output_padding too
    method     "subnet", "supermask" or "sparse"; rule: the fields of its rule, and its class under "kind"
    shape      of the weight; dtype: its dtype by torch's name; kept: how many are kept
    weight     "seed", "signs" or "kept": what the file has of the weight. Of the first two a ``magnitude``, of the
               first a ``seed``
    rescale    whether the kept weights are multiplied by numel / kept
    """

    kind: str
    geometry: dict[str, Any]
    method: str
    rule: dict[str, Any]
    shape: list[int]
    dtype: str
    kept: int
    weight: str
    magnitude: float | None = None
    seed: int | None = None
    rescale: bool = False


class Entry(NamedTuple):
    """A place of a network's plain state_dict: of a masked layer, whose name it has, or of anything else, with what it
    holds."""

    name: str
    layer: str | None
    value: Any


def entries_of(model: nn.Module) -> Iterator[Entry]:
    """The places of the state_dict that ``materialize(model)`` would have, in its order."""
    named, seen = named_layers(model), set[str]()
    for name, value in model.state_dict().items():
        prefix, _, key = name.rpartition(".")
        layer = named.get(prefix)
        if layer is None or key not in _OF_LAYERS:
            yield Entry(name, None, value)
        elif prefix not in seen:
            seen.add(prefix)
            yield Entry(join(prefix, "weight"), prefix, layer._bare_weight())
            if layer.bias is not None:
                yield Entry(join(prefix, "bias"), prefix, layer.bias)


def geometry(layer: nn.Module) -> dict[str, Any]:
    names = (*_GEOMETRY, "output_padding") if getattr(layer, "transposed", False) else _GEOMETRY
    found = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def named_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    """The masked layers by name, one that has several by all of them."""
    return {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, MaskedLayer)}


def unwrapped(model: nn.Module) -> nn.Module:
    """The network that torch.compile or DistributedDataParallel has wrapped. Raises TypeError for what is none."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    compiled = model._modules.get("_orig_mod")
    return model if compiled is None else unwrapped(compiled)


def path(file: object) -> Path:
    if not isinstance(file, str | os.PathLike):
        raise TypeError(f"file: expected a path, got {type(file).__name__}")
    return Path(file)


def join(prefix: str, key: str) -> str:
    """A name in a state_dict: that of the network itself is empty."""
    return f"{prefix}.{key}" if prefix else key


def check_plain_data(meta: Mapping[str, object]) -> None:
    """Raises TypeError for what JSON has no words for."""
    for key, value in meta.items():
        if not _plain_data(value):
            raise TypeError(f"{key}: expected finite numbers, strings, None, lists and dicts of them, got {value!r}")


def _plain_data(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _plain_data(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_plain_data, value))
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and value - value == 0)
