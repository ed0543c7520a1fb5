"""What a network has of one task, taken out of it and put into it: the masks, and what else is of a task alone.

Of a task are the scores or the packed mask of every masked layer, the running statistics of norms, and the parameters
that train beside masks (biases, a dense head); the weights under masks are everybody's.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .. import checks, selecting
from ..nn import MaskedLayer
from ..nn.supermask import Supermask

State = dict[str, torch.Tensor]  # by the names that a state_dict of the network has


def join(prefix: str, leaf: str) -> str:
    """A name in a state_dict: that of the network itself is empty."""
    return f"{prefix}.{leaf}" if prefix else leaf


def masked_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    """The masked layers by name. Raises ValueError where there are none, and for one that cannot hold several masks."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, MaskedLayer)}
    if not layers:
        raise ValueError("model: it has no masked layer; expected a converted model, or one built of Fused layers")
    for name, layer in layers.items():
        subject = f"model: {f'layer {name!r}' if name else 'it'}"
        if layer.scores is None:
            why = "its scores were dropped by freeze()" if layer.rule.fixed else "its weight scores itself"
            raise ValueError(f"{subject} has no scores for a mask of each task, {why}")
        if isinstance(layer, Supermask) and (layer.rescale or layer.bias_scores is not None):
            what = "rescaled weights" if layer.rescale else "a masked bias"
            raise ValueError(f"{subject} has {what}; expected a layer whose masks are all that differs between tasks")
    return layers


def norms(model: nn.Module) -> Iterator[tuple[str, _NormBase]]:
    """The norms that keep running statistics, by name."""
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            yield name, module


def trained_beside(model: nn.Module, layers: Mapping[str, MaskedLayer]) -> list[str]:
    """The names of the parameters that train beside masks, the weights under masks left out."""
    shared = {p for layer in layers.values() for p in (layer._parameters.get("weight"), layer.scores)}
    return [name for name, p in model.named_parameters() if p.requires_grad and p not in shared]


def statistics(model: nn.Module) -> list[str]:
    return [join(name, leaf) for name, m in norms(model) for leaf, value in m._buffers.items() if value is not None]


def named(model: nn.Module, name: str) -> torch.Tensor:
    """The parameter or buffer of that name."""
    owner, _, leaf = name.rpartition(".")
    found: torch.Tensor = getattr(model.get_submodule(owner), leaf)
    return found


def taken(model: nn.Module, layers: Mapping[str, MaskedLayer], beside: list[str]) -> State:
    """Copies of what the network has of the task that is in it."""
    state: State = {}
    for name, layer in layers.items():
        if layer.rule.fixed:
            assert layer.mask_bits is not None  # as of a frozen layer
            state[join(name, "mask_bits")] = layer.mask_bits.clone()
        else:
            assert layer.scores is not None  # as masked_layers has seen
            state[join(name, "scores")] = layer.scores.detach().clone()
    return state | {name: named(model, name).detach().clone() for name in beside}


@torch.no_grad()
def put(model: nn.Module, layers: Mapping[str, MaskedLayer], state: Mapping[str, torch.Tensor]) -> None:
    """Puts a task that ``taken`` took into the network, its scores into the parameters that are there."""
    state = dict(state)
    for name, layer in layers.items():
        bits = state.pop(join(name, "mask_bits"), None)
        if bits is not None:
            layer._freeze_as(bits.clone())
            continue
        thaw(layer)
        assert layer.scores is not None  # as masked_layers has seen
        layer.scores.copy_(state.pop(join(name, "scores")))
        layer.forget()
    for name, value in state.items():
        named(model, name).copy_(value)


def thaw(layer: MaskedLayer) -> None:
    if layer.rule.fixed:
        layer._thaw()


def place(model: nn.Module, layers: Mapping[str, MaskedLayer], values: Mapping[str, torch.Tensor]) -> State:
    """Copies of a task's ``values`` where the network has its own, scores in float32."""
    placed: State = {}
    for name, value in values.items():
        owner, _, leaf = name.rpartition(".")
        layer = layers.get(owner) if leaf in ("scores", "mask_bits") else None
        device = named(model, name).device if layer is None else layer._bare_weight().device
        placed[name] = value.detach().to(device, torch.float32 if leaf == "scores" else value.dtype, copy=True)
    return placed


def packed(state: Mapping[str, torch.Tensor], layers: Mapping[str, MaskedLayer]) -> State:
    """The packed masks of a task by the names of the layers, those of scores as evaluation uses them."""
    bits: State = {}
    scored: dict[str, torch.Tensor] = {}
    for name in layers:
        mask = state.get(join(name, "mask_bits"))
        if mask is None:
            scored[name] = state[join(name, "scores")].detach()
        else:
            bits[name] = mask
    rules = [(layers[name]._loose_rule or layers[name].rule).settled() for name in scored]
    if scored:
        selections = selecting.select_all(list(scored.values()), rules)
        for (name, scores), selection in zip(scored.items(), selections, strict=True):
            bits[name] = selecting.selected_bits(scores, selection)
    return {name: bits[name] for name in layers}


def problems(
    state: Mapping[str, object], model: nn.Module, layers: Mapping[str, MaskedLayer], beside: list[str]
) -> Iterator[str]:
    """Why ``state`` is of no task of this network, in phrases that name an entry."""
    expected: dict[str, torch.Size] = {}
    for name, layer in layers.items():
        shape, mask, scores = layer._weight_shape(), join(name, "mask_bits"), join(name, "scores")
        if (mask in state) == (scores in state):
            yield f"{scores}: expected it or {mask}, one of the two"
        expected |= {scores: shape} if mask not in state else {mask: torch.Size(checks.packed_shape(shape))}
    expected |= {name: named(model, name).shape for name in beside}
    for name in expected.keys() - state.keys():
        if not name.endswith("scores"):
            yield f"{name}: it is missing"
    for name, value in state.items():
        wanted = expected.get(name)
        if wanted is None:
            if not name.endswith(("scores", "mask_bits")):
                yield f"{name}: no task of this network has it"
        elif not isinstance(value, torch.Tensor) or value.shape != wanted:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            yield f"{name}: expected shape {tuple(wanted)}, got {got}"
        elif (value.dtype == torch.uint8) != name.endswith("mask_bits"):
            yield f"{name}: got {value.dtype}"
