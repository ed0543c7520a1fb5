"""Layers and checkpoints of hidden-networks (Ramanujan et al. 2020, "What's Hidden in a Randomly Weighted Neural
Network?").

``prune_rate`` is the fraction KEPT in its SubnetConv; the layers of its one-file MNIST example do not hold theirs.
"""

from typing import Any

import torch
from torch import nn

from ..nn import MaskedLayer
from ..nn.supermask import Supermask
from ..rules import Bernoulli, TopK
from .origin import Origin, holds, is_binary, kept_rule, named

_PROJECT = "hidden-networks"


def _is_of(*names: str) -> Any:
    return lambda layer: named(layer, *names) and holds(layer, "scores") and layer.scores.shape == layer.weight.shape


def _is_of_the_example(layer: Any) -> bool:
    # torchao's SupermaskLinear holds its rate, as sparsity_level.
    return bool(_is_of("SupermaskConv", "SupermaskLinear")(layer)) and not hasattr(layer, "sparsity_level")


def _no_subnet_yet(layer: Any) -> str:
    # Its scores are random numbers until then, and multiply the weight as they are.
    return "" if is_binary(layer.scores) else "has no fixed mask yet; call set_subnet() on it first"


LAYERS = (
    Origin(
        _PROJECT,
        _is_of("SubnetConv"),
        rule=kept_rule("prune_rate"),
        unsaid="has no prune_rate: set_prune_rate was never called",
        gone=("prune_rate",),
    ),
    Origin(_PROJECT, _is_of("SampleSubnetConv"), "supermask", rule=lambda layer: Bernoulli(), gone=("prune_rate",)),
    Origin(
        _PROJECT,
        _is_of("FixedSubnetConv"),
        mask=lambda layer: layer.scores,
        scores=None,
        gone=("scores", "prune_rate"),
        refused=_no_subnet_yet,
    ),
    Origin(
        f"{_PROJECT}' MNIST example",
        _is_of_the_example,
        unsaid="does not hold its rate, which is args.sparsity there, the fraction KEPT",
    ),
)


@torch.no_grad()
def state_dict(model: nn.Module, linear_as_conv: bool = True) -> dict[str, torch.Tensor]:
    """Returns the state_dict of ``model`` as hidden-networks' own layers have it: what its programs load.

    A masked layer has ``weight``, ``scores`` and ``bias``. Under ``TopK`` those are a SubnetConv's, whose rate is not
    among them: it is ``--prune-rate`` there, the fraction kept. Under ``Bernoulli`` they are a SampleSubnetConv's; of a
    frozen layer, scores of 0 and 1, a FixedSubnetConv's. A packed weight is written as numbers.

    linear_as_conv  weights of linear layers, masked or not, as (O, I, 1, 1): there they are convolutions of 1x1.
                    False: as (O, I), for the SupermaskLinear of its MNIST example

    Tensors share memory with the model's, where they are the same. Raises ValueError for a layer that has no
    counterpart there: under another rule, with rescaled weights or a masked bias, or one whose weight scores itself.

    >>> model = nn.Sequential(ek.FusedSubnetLinear(64, 10, bias=False, keep=0.3))
    >>> {name: tuple(t.shape) for name, t in ek.interop.hidden_networks.state_dict(model).items()}
    {'0.weight': (10, 64, 1, 1), '0.scores': (10, 64, 1, 1)}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    masked: dict[str, dict[str, torch.Tensor]] = {}
    linear = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, MaskedLayer):
            held = {"weight": module.weight, "scores": _scores(name, module), "bias": module.bias}
            masked[name] = {f"{name}.{key}" if name else key: t for key, t in held.items() if t is not None}
        if linear_as_conv and isinstance(module, nn.Linear):
            linear |= {f"{name}.{key}" if name else key for key in ("weight", "scores")}
    state: dict[str, torch.Tensor] = {}
    for entry, tensor in model.state_dict().items():  # in the order of layers: some load by position
        layer = entry.rpartition(".")[0]
        state |= masked.get(layer, {entry: tensor})
    return {entry: t.detach()[:, :, None, None] if entry in linear else t.detach() for entry, t in state.items()}


def _scores(name: str, layer: MaskedLayer) -> torch.Tensor:
    """The scores that make the layer's mask there. Raises ValueError where none do."""
    subject = f"model: layer {name!r}" if name else "model: it"
    if isinstance(layer, Supermask) and (layer.rescale or layer.bias_scores is not None or layer.bias_mask is not None):
        what = "rescaled weights" if layer.rescale else "a masked bias"
        raise ValueError(f"{subject} has {what}, which no layer of hidden-networks has; materialize(model) instead")
    rule = layer.rule
    if rule.fixed:
        return layer.mask().to(layer.weight.dtype)
    if layer.scores is not None and ((type(rule) is TopK and rule.of == "abs") or rule == Bernoulli()):
        return layer.scores
    has = f"the rule {rule}" if layer.scores is not None else "a weight that scores itself"
    raise ValueError(f"{subject} has {has}, which no layer of hidden-networks has; freeze() it, for its fixed mask")
