"""The exchange of one layer for a masked one, in place, and the way back where it was interrupted."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from .init import scores_from_weight_
from .interop.origin import Origin
from .nn import MaskedLayer
from .rules import Rule, Threshold, TopK

Start = Literal["random", "magnitude", "hydra"]
# The rule of each method where none is given.
METHOD_RULES: dict[str, Rule] = {"subnet": TopK(), "supermask": Threshold(), "sparse": TopK()}


class Before(NamedTuple):
    """A layer as it was, apart from values that nothing here writes."""

    kind: type
    attributes: dict[str, Any]
    trains: list[tuple[nn.Parameter, bool]]
    values: list[tuple[nn.Parameter, torch.Tensor]]

    @classmethod
    def of(cls, layer: Any, writes: bool) -> "Before":
        """writes: whether values are about to be drawn anew."""
        # Tables of hooks and parameters stay the same objects: handles of hooks point to them.
        attributes = {key: (v, dict(v) if isinstance(v, dict) else None) for key, v in vars(layer).items()}
        held = list(layer.parameters())
        values = [(p, p.detach().clone()) for p in held] if writes else []
        return cls(type(layer), attributes, [(p, p.requires_grad) for p in held], values)

    def restore(self, layer: Any) -> None:
        layer.__class__ = self.kind
        vars(layer).clear()
        for key, (value, entries) in self.attributes.items():
            vars(layer)[key] = value
            if entries is not None:
                value.clear()
                value.update(entries)
        for p, trained in self.trains:
            p.requires_grad_(trained)
        with torch.no_grad():
            for p, value in self.values:
                p.copy_(value)


class Swap(NamedTuple):
    """A layer to be converted, and what it becomes."""

    layer: Any
    kind: type[MaskedLayer]
    rule: Rule
    origin: Origin | None
    draw: Callable[[torch.Tensor], torch.Tensor]
    start: Start = "random"

    def convert(self, options: dict[str, Any]) -> None:
        # The class is exchanged rather than the module: hooks, references from elsewhere and the root stay valid.
        layer, scores, mask, trains = self.layer, None, None, None
        if self.origin is not None:
            scores, mask = self.origin.take(layer)
            trains = layer.weight.requires_grad
        layer.__dict__.pop("forward", None)  # of its class, which accelerate leaves behind
        layer.__class__ = self.kind
        if options.get("mask_bias") and layer.bias is None:
            options = options | {"mask_bias": False}
        layer._mask_with(METHOD_RULES[self.kind._method] if mask is not None else self.rule, **options)
        if scores is not None and layer.scores is not None:
            if scores.dtype != torch.float32 or not isinstance(scores, nn.Parameter):
                scores = nn.Parameter(scores.detach().to(torch.float32), requires_grad=scores.requires_grad)
            layer.scores = scores  # the parameter itself, where it can be: an optimizer may hold it
        if mask is not None:
            layer._freeze(mask, keep_scores=False)
        if trains is not None:
            layer.weight.requires_grad_(trains)
        with torch.no_grad():
            self.draw(self.kind._kind.outputs_first(layer.weight))
        if self.start != "random":
            scores_from_weight_(layer, self.start)
