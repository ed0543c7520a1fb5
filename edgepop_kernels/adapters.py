"""Adapters around a layer, as peft and its like put them there: known by their shape, so that nothing is imported.

An adapter holds the layer that it adapts as its child ``base_layer``. It reads that layer's weight (for norms,
rotations, what it starts from) and merges into it, in ways that differ from kind to kind and from release to release;
all of them take the weight for what the layer multiplies by. A masked layer's weight is not that.
"""

from typing import Any, cast

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from .nn import MaskedLayer

_ADAPTED = "base_layer"


def adapted(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Each module of ``model`` that is beneath an adapter, and the adapter."""
    found: dict[nn.Module, nn.Module] = {}
    for adapter in _adapters(model):
        found |= dict.fromkeys(adapter.get_submodule(_ADAPTED).modules(), adapter)
    return found


def adapter_parts(model: nn.Module) -> set[nn.Module]:
    """The modules of ``model`` that belong to adapters: what stands beside a ``base_layer`` (peft's lora_A, lora_B),
    and what peft's model holds outside of its network (the encoder of a prompt)."""
    found: set[nn.Module] = set()
    for adapter in _adapters(model):
        for name, child in adapter._modules.items():
            if name != _ADAPTED and child is not None:
                found.update(child.modules())
    for module in model.modules():
        if hasattr(type(module), "get_base_model") and hasattr(module, "peft_config"):
            network = cast(Any, module).get_base_model()
            found |= set(module.modules()) - set(network.modules())
    return found


def called(adapter: nn.Module) -> str:
    """The adapter's class for a message. peft's are called Linear, Conv2d... as torch's are."""
    return f"{type(adapter).__module__}.{type(adapter).__qualname__}"


def _adapters(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m._modules.get(_ADAPTED), nn.Module)]


def _refuse_masked(holder: nn.Module, name: str, child: nn.Module | None) -> None:
    """Raises ValueError where a masked layer gets an adapter that can be merged.

    The one moment at which every kind of adapter passes through torch, and before any has read or written a weight:
    what merges does so through ``weight.data``, unseen, and is gone afterwards.
    """
    if name != _ADAPTED or child is None or not hasattr(type(holder), "merge"):
        return
    for layer in child.modules():
        if isinstance(layer, MaskedLayer):
            raise ValueError(
                f"{_ADAPTED}: expected a plain layer under an adapter ({called(holder)}), which reads a weight and "
                f"merges into it as if all of it counted, got a {type(layer).__name__}, whose mask would cut that off; "
                "materialize first (edgepop_kernels.materialize(model, copy=True) leaves the masked model as it is), "
                "or leave this layer out of convert (exclude)"
            )


register_module_module_registration_hook(_refuse_masked)
