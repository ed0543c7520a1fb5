"""Layers under torch.nn.utils.prune: a fixed mask, which a hook multiplies into the weight before every forward."""

from typing import Any

from torch.nn.utils import prune

from .. import torch_private
from ..nn import KINDS
from .origin import Origin


def _hooks(layer: Any) -> list[prune.BasePruningMethod]:
    hooks = layer._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == "weight"]


def _is_one(layer: Any) -> bool:
    held = "weight_orig" in layer._parameters and "weight_mask" in layer._buffers
    return type(layer) in KINDS and held and bool(_hooks(layer))


def _release(layer: Any) -> None:
    for hook in _hooks(layer):
        torch_private.remove_forward_pre_hook(layer, hook)


LAYERS = (
    Origin(
        "torch.nn.utils.prune",
        _is_one,
        weight="weight_orig",
        scores=None,
        mask=lambda layer: layer.weight_mask,
        gone=("weight_mask",),
        release=_release,
    ),
)
