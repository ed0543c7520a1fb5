"""Whole networks: into masked layers and back."""

import fnmatch
from collections.abc import Iterable

import torch
from torch import nn

from . import checks
from .nn import (
    FusedSparseConv,
    FusedSparseLinear,
    FusedSubnetConv,
    FusedSubnetLinear,
    FusedSupermaskConv,
    FusedSupermaskLinear,
    MaskedLayer,
)
from .nn.products import past_no_forward
from .rules import Frozen, Rule, Threshold, TopK
from .sharing import layer_masks, unshare_selection

_PLAIN = (nn.Conv2d, nn.Linear)
# The layers of each method, for nn.Conv2d and nn.Linear, and its rule where none is given.
_METHODS = {
    "subnet": (FusedSubnetConv, FusedSubnetLinear, TopK()),
    "supermask": (FusedSupermaskConv, FusedSupermaskLinear, Threshold()),
    "sparse": (FusedSparseConv, FusedSparseLinear, TopK()),
}


def convert(
    model: nn.Module,
    rule: Rule | None = None,
    *,
    method: str = "subnet",
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
    **options,
) -> nn.Module:
    """Turns nn.Conv2d and nn.Linear layers of ``model`` into masked ones, in place, and returns it.

    rule              for every converted layer; default ``TopK(0.5)``, for supermasks ``Threshold(0.5)``
    method            which layers: "subnet" (FusedSubnet*: frozen weights, edge-popup), "supermask" (FusedSupermask*:
                      frozen weights), "sparse" (FusedSparse*: trained weights that score themselves)
    include, exclude  fnmatch patterns on the layers' qualified names, e.g. ``"layer4.*"``, ``["fc", "conv1"]``
    options           scores_init, mask_bias, rescale of supermasks; layers without bias have none to mask

    Weights, biases, hooks and identity stay; scores are new. hidden-networks' SubnetConv layers are taken
    too, with their scores and, where ``rule`` is None, their prune_rate (there the fraction kept). Raises ValueError
    where there is no layer to convert, or a pattern in ``include`` or ``exclude`` matches none.
    """
    if method not in _METHODS:
        raise ValueError(f"method: expected one of {', '.join(map(repr, _METHODS))}, got {method!r}")
    allowed = {"scores_init", "mask_bias", "rescale"} if method == "supermask" else set()
    for option in options.keys() - allowed:
        raise TypeError(f"{option}: method {method!r} takes {', '.join(sorted(allowed)) or 'no options'}")
    if rule is not None:
        checks.rule(rule)
        if isinstance(rule, Frozen):
            raise ValueError("rule: a fixed mask comes from freeze() on the converted layers; expected another rule")
    candidates = {
        name: m
        for name, m in model.named_modules()
        if type(m) in (nn.Conv2d, nn.Linear) or _is_hidden_networks_layer(m)
    }
    if not candidates:
        raise ValueError(
            "model: it has no nn.Conv2d or nn.Linear to convert; masked layers change their rule by layer.rule = ..."
        )
    include, exclude = _patterns("include", include, candidates), _patterns("exclude", exclude, candidates)
    for name, module in candidates.items():
        if _matches(name, include) and not _matches(name, exclude):
            _convert_layer(module, rule, method, options)
    return model


def materialize(model: nn.Module) -> nn.Module:
    """Turns every masked layer of ``model`` back into torch's own with weight W * M, in place, and returns it.

    Nothing of this package is left: no scores, no buffers, no hooks. The weights not kept are gone.
    """
    layers = [m for m in model.modules() if isinstance(m, MaskedLayer)]
    masks = layer_masks(layers)  # all before any weight changes: one threshold may hang on all of them
    for module in model.modules():
        unshare_selection(module)
    for layer, mask in zip(layers, masks, strict=True):
        _materialize_layer(layer, mask)
    return model


def _convert_layer(module, rule, method, options):
    # The class is exchanged rather than the module: hooks, references from elsewhere and the root itself stay valid.
    scores = getattr(module, "scores", None)
    kept = getattr(module, "prune_rate", None)
    conv, linear, default = _METHODS[method]
    if rule is None:
        rule = default if kept is None or method == "supermask" else TopK(kept)
    if scores is not None:
        module.__dict__.pop("prune_rate", None)
        del module.scores
    module.__class__ = conv if isinstance(module, nn.Conv2d) else linear
    if options.get("mask_bias") and module.bias is None:
        options = options | {"mask_bias": False}
    module.mask_with(rule, **options)
    if scores is not None and module.scores is not None:
        module.scores = nn.Parameter(scores.detach().to(torch.float32), requires_grad=scores.requires_grad)


def _is_hidden_networks_layer(module):
    """A Conv2d called SubnetConv with scores of the weight's shape: recognised without importing its project."""
    scores = getattr(module, "scores", None)
    return (
        isinstance(module, nn.Conv2d)
        and type(module).__name__ == "SubnetConv"
        and isinstance(scores, torch.Tensor)
        and scores.shape == module.weight.shape
    )


def _materialize_layer(layer, mask):
    weight, bias = layer.effective_weight(mask), layer.effective_bias()
    plain = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    for name in layer.added:
        if name in vars(layer) or name in layer._parameters or name in layer._buffers:
            delattr(layer, name)
    for key in [key for key, hook in layer._forward_pre_hooks.items() if hook is past_no_forward]:
        del layer._forward_pre_hooks[key]
    layer.__class__ = plain
    layer.weight = nn.Parameter(weight)
    if bias is not None and bias is not layer.bias:
        layer.bias = nn.Parameter(bias.detach())


def _patterns(argument, patterns, candidates):
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in patterns:
        if pattern != "*" and not any(fnmatch.fnmatchcase(name, pattern) for name in candidates):
            raise ValueError(f"{argument}: {pattern!r} matches none of the layers {', '.join(candidates) or '(none)'}")
    return patterns


def _matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
