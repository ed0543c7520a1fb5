"""The masks of a network from outside: how many weights they keep, and how many they exchanged."""

import torch
from torch import nn

import edgepop_kernels as ek


def masked_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, layer) for name, layer in model.named_modules() if hasattr(layer, "mask")]


def count_weights(model: nn.Module) -> int:
    """The number of weights of all layers and norms; a packed weight is no parameter."""
    packed = [layer for _, layer in masked_layers(model) if hasattr(layer, "weight_signs")]
    held = sum(p.numel() for name, p in model.named_parameters() if name.endswith("weight"))
    return held + sum(_shape(layer).numel() for layer in packed)


def kept_per_layer(model: nn.Module) -> list[tuple[str, int, int]]:
    """(name, weights kept, weights) of each masked layer; under a rule that draws, those to be expected."""
    return [(row.name, row.kept, row.total) for row in ek.summary(model).rows]


@torch.no_grad()
def packed_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    """The masks by layer, 1 bit per weight; of a rule that draws, where a weight is more likely kept than not."""
    packed = {}
    for name, layer in masked_layers(model):
        # A draw would take its numbers from the generator that training goes on with.
        if isinstance(layer.rule, ek.Bernoulli):
            packed[name] = ek.pack_mask(ek.mask(layer.scores, ek.Threshold(0.5)))
        else:
            packed[name] = layer.packed_mask()
    return packed


def changed(model: nn.Module, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Share of the masked weights of ``model`` whose bits differ between two results of ``packed_masks``."""
    layers = masked_layers(model)
    differing = [ek.unpack_mask(before[name] ^ after[name], _shape(layer)).sum() for name, layer in layers]
    return int(torch.stack(differing).sum()) / sum(_shape(layer).numel() for _, layer in layers)


def _shape(layer: nn.Module) -> torch.Size:
    """That of the weight; asked for by name, a packed one would be made."""
    return layer.weight.shape if layer.scores is None else layer.scores.shape
