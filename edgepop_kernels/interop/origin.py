"""A masked layer of another project: how it is told, and what it says of itself.

Nothing of those projects is imported: a layer is known by the name of its class and by the tensors in it. One that has
the name but holds more is of another method, and is not known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..nn.packed import weight_first
from ..rules import Rule, TopK

Method = Literal["subnet", "supermask", "sparse"]


@dataclass(frozen=True)
class Origin:
    """A kind of layer of another project.

    project  its name, for messages
    is_one   whether a layer, of a subclass of torch's, is of this kind
    method   which of this package's layers it becomes
    rule     of a layer, in this package's words; None where the layer does not say. Raises ValueError
    unsaid   why a layer would not say, for a message
    weight   the name of the parameter that is the weight
    scores   the name of the attribute that holds them; None where there are none
    mask     of a layer, its fixed mask of 0 and 1 in the scores' place
    gone     the names of what else of that project a layer holds
    release  takes that project's hooks off a layer
    differs  how that project trains such a layer otherwise, where it does
    refused  why a layer cannot be converted, a phrase that follows its name; empty where it can
    """

    project: str
    is_one: Callable[[Any], bool]
    method: Method = "subnet"
    rule: Callable[[Any], Rule | None] = lambda layer: None
    unsaid: str = ""
    weight: str = "weight"
    scores: str | None = "scores"
    mask: Callable[[Any], torch.Tensor] | None = None
    gone: tuple[str, ...] = ()
    release: Callable[[Any], None] = lambda layer: None
    differs: str = ""
    refused: Callable[[Any], str] = lambda layer: ""

    def problem(self, layer: Any) -> str:
        """Why ``layer`` cannot be converted, a phrase that follows its name; empty where it can."""
        refused = self.refused(layer)
        if refused:
            return refused
        shape = layer._parameters[self.weight].shape
        scores = None if self.scores is None else getattr(layer, self.scores, None)
        if self.scores is not None and not isinstance(scores, torch.Tensor):
            return f"has no tensor {self.scores!r} of scores"
        if scores is not None and scores.shape != shape:
            return f"has {self.scores} of shape {tuple(scores.shape)} beside a weight of {tuple(shape)}"
        if self.mask is not None:
            mask = self.mask(layer)
            if not isinstance(mask, torch.Tensor) or mask.shape != shape:
                return f"has no mask of its weight's shape {tuple(shape)}"
            if not is_binary(mask):
                return "has a mask of other values than 0 and 1"
        return ""

    def take(self, layer: Any) -> tuple[nn.Parameter | None, torch.Tensor | None]:
        """Takes what is that project's out of ``layer``, and returns its scores and its fixed mask."""
        mask = None if self.mask is None else self.mask(layer).detach() != 0
        scores = None if self.scores is None else getattr(layer, self.scores)
        weight = layer._parameters[self.weight]
        self.release(layer)
        for name in {self.scores, self.weight, "weight", *self.gone}:
            for held in (layer.__dict__, layer._parameters, layer._buffers):
                held.pop(name, None)
            layer._non_persistent_buffers_set.discard(name)
        layer.register_parameter("weight", weight)
        weight_first(layer._parameters)
        return scores, mask


def named(layer: nn.Module, *names: str) -> bool:
    """Whether the layer's class has one of the names."""
    return type(layer).__name__ in names


def holds(layer: nn.Module, *names: str) -> bool:
    """Whether weight, bias and those named are all that the layer holds: more would be of another method of that
    name."""
    return layer._parameters.keys() == {"weight", "bias", *names} and not layer._buffers and not layer._modules


def is_binary(mask: torch.Tensor) -> bool:
    """Whether all values are 0 or 1."""
    return bool(((mask == 0) | (mask == 1)).all())


def kept_rule(attribute: str) -> Callable[[Any], Rule | None]:
    """The rule of layers that name the fraction KEPT, as GetSubnet takes it: the best |s|."""

    def rule(layer: Any) -> Rule | None:
        keep = getattr(layer, attribute, None)
        if keep is None:
            return None
        try:
            return TopK(keep)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"has {attribute} {keep!r}, there the fraction KEPT; expected a number in (0, 1], or keep=..."
            ) from error

    return rule
