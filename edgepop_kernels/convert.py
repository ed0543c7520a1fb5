"""Whole networks: into masked layers and back, and one selection for all of them."""

import fnmatch
from collections.abc import Iterable

import torch
from torch import nn

from . import checks, functional
from .nn import FusedSubnetConv, FusedSubnetLinear, MaskedLayer
from .rules import Frozen, Rule, TopK

_FUSED = {nn.Conv2d: FusedSubnetConv, nn.Linear: FusedSubnetLinear}
_PLAIN = {fused: plain for plain, fused in _FUSED.items()}
_SHARED = "_edgepop_shared_selection"


def convert(
    model: nn.Module,
    rule: Rule | None = None,
    *,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
) -> nn.Module:
    """Turns nn.Conv2d and nn.Linear layers of ``model`` into masked ones, in place, and returns it.

    rule              for every converted layer; default ``TopK(0.5)``
    include, exclude  fnmatch patterns on the layers' qualified names, e.g. ``"layer4.*"``, ``["fc", "conv1"]``

    Weights (frozen), biases, hooks and identity stay; scores are new. hidden-networks' SubnetConv layers are taken
    too, with their scores and, where ``rule`` is None, their prune_rate (there the fraction kept). Raises ValueError
    where a pattern in ``include`` or ``exclude`` matches no layer.
    """
    if rule is not None:
        checks.rule(rule)
        if isinstance(rule, Frozen):
            raise ValueError("rule: expected TopK or Threshold; freeze the masks of a converted model with freeze()")
    candidates = {name: m for name, m in model.named_modules() if type(m) in _FUSED or _is_hidden_networks_layer(m)}
    include, exclude = _patterns("include", include, candidates), _patterns("exclude", exclude, candidates)
    for name, module in candidates.items():
        if _matches(name, include) and not _matches(name, exclude):
            _convert_layer(module, rule)
    return model


def materialize(model: nn.Module) -> nn.Module:
    """Turns every masked layer of ``model`` back into torch's own with weight W * M, in place, and returns it.

    Nothing of this package is left: no scores, no buffers, no hooks. The weights not kept are gone.
    """
    unshare_selection(model)
    for module in model.modules():
        if isinstance(module, MaskedLayer):
            _materialize_layer(module)
    return model


def _convert_layer(module, rule):
    # The class is exchanged rather than the module: hooks, references from elsewhere and the root itself stay valid.
    scores = getattr(module, "scores", None)
    kept = getattr(module, "prune_rate", None)
    if rule is None:
        rule = TopK() if kept is None else TopK(kept)
    module.__class__ = FusedSubnetConv if isinstance(module, nn.Conv2d) else FusedSubnetLinear
    module.__dict__.pop("prune_rate", None)
    module.mask_with(rule)
    if scores is not None:
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


def _materialize_layer(module):
    module.weight = nn.Parameter(module.effective_weight())
    for name in ("scores", "mask_bits"):
        delattr(module, name)
    for name in ("rule", "shared_cut", "_last_cut"):
        module.__dict__.pop(name, None)
    module.__class__ = next(plain for fused, plain in _PLAIN.items() if isinstance(module, fused))


def _patterns(argument, patterns, candidates):
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in patterns:
        if pattern != "*" and not any(fnmatch.fnmatchcase(name, pattern) for name in candidates):
            raise ValueError(f"{argument}: {pattern!r} matches none of the layers {', '.join(candidates) or '(none)'}")
    return patterns


def _matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


class _SharedSelection:
    """Hooks on a network's root: one select_all before its forward, nothing kept after it."""

    def __init__(self, model):
        self.layers = [m for m in model.modules() if isinstance(m, MaskedLayer)]
        self.handles = [
            model.register_forward_pre_hook(self.select),
            # always_call: a forward that raises must not leave its cuts to a later one.
            model.register_forward_hook(self.forget, always_call=True),
        ]

    def select(self, model, args):
        layers = [m for m in self.layers if isinstance(m, MaskedLayer) and not isinstance(m.rule, Frozen)]
        if not layers:
            return
        hints = [m.hint() for m in layers]
        cuts = functional.select_all([m.scores for m in layers], [m.rule for m in layers], hints)
        for layer, cut in zip(layers, cuts, strict=True):
            layer.shared_cut = layer._last_cut = cut

    def forget(self, model, args, output):
        for layer in self.layers:
            layer.shared_cut = None


def share_selection(model: nn.Module) -> nn.Module:
    """Makes every forward of ``model`` select all its masked layers' cuts in one call, instead of one call a layer.

    Layers added later are not seen: call it again. Sub-modules called on their own select for themselves. Returns the
    model; ``unshare_selection`` undoes it.
    """
    unshare_selection(model)
    if not any(isinstance(m, MaskedLayer) for m in model.modules()):
        raise ValueError("model: it has no masked layer; expected a converted model, or one built of Fused layers")
    setattr(model, _SHARED, _SharedSelection(model))
    return model


def unshare_selection(model: nn.Module) -> nn.Module:
    """Undoes ``share_selection``; does nothing where it was not shared."""
    shared = model.__dict__.pop(_SHARED, None)
    if shared is not None:
        for handle in shared.handles:
            handle.remove()
    return model
