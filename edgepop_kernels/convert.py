"""Whole networks: into masked layers and back."""

import fnmatch
from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import nn

from .init import by_name
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
from .rules import Rule, Threshold, TopK, checked_keep, ranked_rule
from .sharing import layer_masks, unshare_selection

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
    keep: float | None = None,
    init: str | None = None,
    scale: str = "none",
    **options,
) -> nn.Module:
    """Turns nn.Conv2d and nn.Linear layers of ``model`` into masked ones, in place, and returns it.

    rule              for every converted layer; default ``TopK(0.5)``, for supermasks ``Threshold(0.5)``
    method            which layers: "subnet" (FusedSubnet*: frozen weights, edge-popup), "supermask" (FusedSupermask*:
                      frozen weights), "sparse" (FusedSparse*: trained weights that score themselves)
    include, exclude  fnmatch patterns on the layers' qualified names, e.g. ``"layer4.*"``, ``["fc", "conv1"]``
    keep              fraction of weights kept, in (0, 1], in ``rule``'s place: ``TopK(keep)``; not for supermasks
    init, scale       draws the converted layers' weights anew: a name of ``edgepop_kernels.init.NAMES``; how their
                      deviation follows the fraction kept, of ``init.SCALES``. None: the weights stay, e.g. trained ones
    options           scores_init, mask_bias, rescale of supermasks; layers without bias have none to mask

    Random weights want an init, and each method its rate; these learn the digits (README.md says how well):

      "subnet"                   init="signed_constant"; keep far from 0.5: scale="paper"   SGD 0.1, momentum 0.9
      "supermask"                init="signed_constant", scores_init=None, the default      Adam 0.01
      "supermask", Bernoulli()   init="signed_constant", scores_init=None                   Adam 0.1
      "sparse"                   init="kaiming_normal"                                      SGD 0.1, momentum 0.9

    Weights, biases, hooks and identity stay; scores are new. hidden-networks' SubnetConv layers are taken
    too, with their scores and, where neither ``rule`` nor ``keep`` is given, their prune_rate (there the fraction
    kept). Raises TypeError or ValueError, and leaves the model as it was, for a wrong argument, where there is no layer
    to convert, and where a pattern in ``include`` or ``exclude`` matches none.
    """
    conv, linear, default = _layers(method)
    allowed = {"scores_init", "mask_bias", "rescale"} if method == "supermask" else set()
    for option in options.keys() - allowed:
        raise TypeError(f"{option}: method {method!r} takes {', '.join(sorted(allowed)) or 'no options'}")
    if keep is not None:
        checked_keep(keep)
        if method == "supermask":
            raise ValueError(
                f"keep: a supermask's rule is a threshold or a draw; expected rule=Threshold(...), got {keep=}"
            )
        rule = ranked_rule(keep, rule)
    if isinstance(rule, Rule) and rule.fixed:
        raise ValueError("rule: a fixed mask comes from freeze() on the converted layers; expected another rule")
    chosen = []
    for module in _chosen(model, include, exclude):
        kind, layer_rule = conv if isinstance(module, nn.Conv2d) else linear, _rule(module, rule, default, method)
        kind._check(layer_rule, **options)
        chosen.append((module, kind, layer_rule, _drawing(init, layer_rule, scale)))
    for module, kind, layer_rule, draw in chosen:
        _convert_layer(module, kind, layer_rule, options)
        draw(module.weight)
    return model


def materialize(model: nn.Module, copy: bool = False) -> nn.Module:
    """Turns every masked layer of ``model`` back into torch's own with weight W * M, in place, and returns it.

    copy  True: ``model`` stays as it is, scores and all, and a copy is turned and returned

    Nothing of this package is left: no scores, no buffers, no hooks. In place the weights not kept are gone. They are
    0, and train from there like the others: to train on with them at 0, train the masked network after
    ``train_weights(model)``, and materialize it at the end.
    """
    layers = _masked_layers(model)
    masks = layer_masks(layers)  # all before any weight changes: one threshold may hang on all of them
    if copy:
        model = deepcopy(model)
        layers = _masked_layers(model)
    for module in model.modules():
        unshare_selection(module)
    for layer, mask in zip(layers, masks, strict=True):
        _materialize_layer(layer, mask)
    return model


def _layers(method):
    if not isinstance(method, str) or method not in _METHODS:
        raise ValueError(
            "method: expected 'subnet' (edge-popup), 'supermask' or 'sparse' (Discovering Neural Wirings, DNW), "
            f"got {method!r}"
        )
    return _METHODS[method]


def _chosen(model, include, exclude):
    """The layers to convert. Raises TypeError, ValueError."""
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
    included = [name for name in candidates if _matches(name, include)]
    if not included:
        raise ValueError("include: expected a pattern, or several, of the layers to convert, got none")
    names = [name for name in included if not _matches(name, exclude)]
    if not names:
        raise ValueError(f"exclude: expected to leave one of the layers {_list(included)} to convert, got {exclude}")
    return [candidates[name] for name in names]


def _rule(module, rule, default, method):
    if rule is not None:
        return rule
    kept = getattr(module, "prune_rate", None)
    return default if kept is None or method == "supermask" else TopK(kept)


def _drawing(init, rule, scale):
    """What is done to a layer's weight. Raises ValueError."""
    if init is None:
        if scale != "none":
            raise ValueError(f"scale: it is of init, which is None; expected 'none', got {scale!r}")
        return lambda weight: weight
    if scale != "none" and not rule.ranks:
        raise ValueError(
            f"scale: it follows the fraction kept, which {rule} does not name; expected 'none', got {scale!r}"
        )
    return by_name(init, rule.keep if rule.ranks else None, scale)


def _convert_layer(module, kind, rule, options):
    # The class is exchanged rather than the module: hooks, references from elsewhere and the root itself stay valid.
    scores = getattr(module, "scores", None)
    if scores is not None:
        module.__dict__.pop("prune_rate", None)
        del module.scores
    module.__class__ = kind
    if options.get("mask_bias") and module.bias is None:
        options = options | {"mask_bias": False}
    module._mask_with(rule, **options)
    if scores is not None and module.scores is not None:
        module.scores = nn.Parameter(scores.detach().to(torch.float32), requires_grad=scores.requires_grad)


def _masked_layers(model):
    return [m for m in model.modules() if isinstance(m, MaskedLayer)]


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
    for name in layer._added:
        if name in vars(layer) or name in layer._parameters or name in layer._buffers:
            delattr(layer, name)
    for key in [key for key, hook in layer._forward_pre_hooks.items() if hook is past_no_forward]:
        del layer._forward_pre_hooks[key]
    layer.__class__ = plain
    layer.weight = nn.Parameter(weight)
    if bias is not None and bias is not layer.bias:
        layer.bias = nn.Parameter(bias.detach())


def _patterns(argument, patterns, candidates):
    if not isinstance(patterns, Iterable):
        raise TypeError(f"{argument}: expected a pattern of layers' names, or several, got {patterns!r}")
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument}: expected patterns of layers' names, got {pattern!r}")
        if pattern != "*" and not any(fnmatch.fnmatchcase(name, pattern) for name in candidates):
            raise ValueError(f"{argument}: {pattern!r} matches none of the layers {_list(candidates)}")
    return patterns


def _list(names):
    return ", ".join(name or "(the model itself)" for name in names)


def _matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
