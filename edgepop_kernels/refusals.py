"""Refusals of what a conversion would get wrong, found before anything changes: each refused in a sentence that says
what to do."""

from typing import Any

from torch import nn
from torch.nn.utils import parametrize, prune

from .adapters import adapted, called
from .interop.table import origin_of, subject_of
from .nn.tools import replaced_forward

# Known by name, so that nothing is imported for them: torch.distributed.fsdp takes as long as this package.
_WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel",
    "DataParallel": "DataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "FSDPModule": "fully_shard",
}
# Hooks of torch.nn.utils that compute a weight before every forward, and what takes them off.
_COMPUTED_BY = {
    "WeightNorm": ("weight_norm", "remove_weight_norm"),
    "SpectralNorm": ("spectral_norm", "remove_spectral_norm"),
}


def refuse(model: nn.Module, layers: dict[str, nn.Module], several_tasks: bool = False) -> None:
    """Raises ValueError, TypeError for a model or for one of the ``layers``, by name, whose mask would not be what its
    forward uses. several_tasks: of layers that are known to have a mask for each, and are to be taken apart."""
    for name, module in model.named_modules():
        for wrapper in (_WRAPPERS[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in _WRAPPERS):
            raise ValueError(
                f"model: {name or 'it'} is wrapped by {wrapper}, which has taken note of its parameters; convert the "
                "network first, then wrap it"
            )
    for name, layer in layers.items():
        _refuse_layer(name, layer, several_tasks)
    _refuse_adapted(model, layers)
    _refuse_tied(model, layers)


def refuse_materializing(layers: dict[str, nn.Module]) -> None:
    """Raises ValueError for one of the masked ``layers``, by name, that something else calls in its own way."""
    for name, layer in layers.items():
        _refuse_own_forward(_subject(name), layer, "look for a mask; materialize")


def _subject(name: str) -> str:
    return f"model: layer {name!r}" if name else "model: it"


def _refuse_own_forward(subject: str, layer: Any, consequence: str) -> None:
    if replaced_forward(layer):
        raise ValueError(
            f"{subject} has a forward of its own, as accelerate and DeepSpeed set it, which would {consequence} before "
            "that, or take it off (accelerate.hooks.remove_hook_from_module(model, recurse=True))"
        )


def _refuse_layer(layer_name: str, layer: Any, several_tasks: bool) -> None:
    subject, origin = _subject(layer_name), origin_of(layer)
    _refuse_own_forward(subject, layer, "go on without a mask; convert")
    for name in (_weight_name(layer), "bias"):
        if name not in layer._parameters:
            raise ValueError(f"{subject} has a {name} that is computed, {_by_what(layer, name)}, or exclude it")
    if origin is not None and not several_tasks and (problem := origin.problem(layer)):
        raise ValueError(f"model: {subject_of(layer_name, layer, origin)} {problem}; or exclude it")
    if parametrize.is_parametrized(layer):
        raise ValueError(
            f"{subject} has parametrizations; call torch.nn.utils.parametrize.remove_parametrizations first"
        )
    weight = layer.weight
    if hasattr(weight, "device_mesh"):
        raise ValueError(f"{subject} has a sharded weight (DTensor); convert the network first, then shard it")
    if not weight.is_floating_point():
        raise TypeError(f"{subject} has a weight of {weight.dtype}; expected a floating dtype, or exclude it")


def _weight_name(layer: nn.Module) -> str:
    origin = origin_of(layer)
    return "weight" if origin is None else origin.weight


def _by_what(layer: Any, name: str) -> str:
    """A phrase that says by what a parameter is computed, and what to do about it."""
    if parametrize.is_parametrized(layer, name):
        kinds = ", ".join(dict.fromkeys(type(p).__name__.lstrip("_") for p in layer.parametrizations[name]))
        return (
            f"by torch.nn.utils.parametrize ({kinds}); call "
            f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r}) first"
        )
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == name:
            return f"by torch.nn.utils.prune; call torch.nn.utils.prune.remove(layer, {name!r}) first"
        kind = type(hook).__name__
        if kind in _COMPUTED_BY and getattr(hook, "name", None) == name:
            function, cure = _COMPUTED_BY[kind]
            return f"by torch.nn.utils.{function}; call torch.nn.utils.{cure}(layer) first"
    return f"being no parameter of the layer; set layer.{name} = nn.Parameter(...) first"


def _refuse_adapted(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    beneath = adapted(model)
    for name, layer in layers.items():
        if layer in beneath:
            raise ValueError(
                f"model: layer {name!r} has an adapter ({called(beneath[layer])}), whose change would be added to the "
                "weight beneath the mask and merged into it; convert and materialize before adapters are added, merge "
                "them first (merge_and_unload()), or exclude it"
            )


def _refuse_tied(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Weights that another module has too: only one of the two would see the mask."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for key, p in module._parameters.items():
            if p is not None:
                owners.setdefault(id(p), []).append((f"{name}.{key}" if name else key, module))
    for name, layer in layers.items():
        weight = layer._parameters[_weight_name(layer)]
        others = [other for other, module in owners[id(weight)] if module is not layer]
        if others:
            raise ValueError(
                f"model: {name}.weight is also {others[0]}, where no mask would reach it and it would stop training; "
                f"exclude {name!r}, or untie it: layer.weight = nn.Parameter(layer.weight.detach().clone())"
            )
