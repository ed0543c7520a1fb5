"""The SupermaskLinear of torchao (SuperBlock, in releases 0.11 to 0.18), where a score stands for one weight.

``sparsity_level`` is the fraction REMOVED. Raw scores are ranked and ties at the percentile kept; the gradient reaches
every weight as it is, and every score without the weight. No product of this package has those gradients: the masked
weight and its gradient are written to memory here, as they are there. Selection is this package's.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from .. import effective
from ..nn import FusedSubnetLinear
from ..rules import Percentile, Ranked
from .theirs import Theirs

__all__ = ["SupermaskLinear"]


class SupermaskLinear(Theirs, FusedSubnetLinear):
    """A linear layer that keeps the scores at or above a percentile, and trains weights beside them.

    sparsity_level  the fraction REMOVED, in [0, 1]; 1 - 1 / numel at most
    blocksize       1: tiles of weights that share a score are refused
    fixed_mask      True: the scores do not train
    fixed_weight    True: the weight does not train

    Then nn.Linear's arguments. Scores are float32 whatever the layer's dtype. Raises TypeError, ValueError.

    >>> from edgepop_kernels.compat.torchao import SupermaskLinear
    >>> layer = SupermaskLinear.from_linear(nn.Linear(64, 10), sparsity_level=0.9)
    >>> layer.mask().sum().item(), SupermaskLinear.to_linear(layer)
    (65, Linear(in_features=64, out_features=10, bias=True))
    """

    blocksize: ClassVar[int] = 1

    def __init__(
        self, sparsity_level: float, blocksize: int, fixed_mask: bool, fixed_weight: bool, *args: Any, **kwargs: Any
    ) -> None:
        if blocksize != 1:
            raise ValueError(f"blocksize: a score stands for one weight here, expected 1, got {blocksize!r}")
        _check_level(sparsity_level)
        super().__init__(*args, rule=Percentile(of="raw"), **kwargs)
        self.sparsity_level = sparsity_level
        self.weight.requires_grad_(not fixed_weight)
        assert self.scores is not None  # as the constructor made them
        self.scores.requires_grad_(not fixed_mask)

    @property
    def sparsity_level(self) -> float:
        """The fraction REMOVED."""
        rule = self._set_rule()
        if not isinstance(rule, Ranked):
            raise AttributeError("sparsity_level")
        return rule.removed

    @sparsity_level.setter
    def sparsity_level(self, sparsity_level: float) -> None:
        _check_level(sparsity_level)
        most = 1 - 1 / max(math.prod(self._weight_shape()), 1)
        self.rule = Percentile(of="raw").with_drop(min(sparsity_level, most))

    def get_mask(self) -> torch.Tensor:
        """The mask in float32, whose gradient reaches every score as it is."""
        assert self.scores is not None  # as freeze() leaves them, which is not of that project
        return effective.masked(self.scores, self.rule)

    def _output(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.masked_weight(weight_grad="all", score_grad="unweighted"), self.bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, sparsity_level: float = 0.0, blocksize: int = 1) -> "SupermaskLinear":
        """A layer with the weight and bias of ``linear``, copies, and scores of its own."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear: expected an nn.Linear, got {type(linear).__name__}")
        bias = linear.bias is not None
        made = cls(sparsity_level, blocksize, False, False, linear.in_features, linear.out_features, bias=bias)
        made.to(linear.weight.device, linear.weight.dtype)
        _copy(linear.weight, made.weight)
        _copy(linear.bias, made.bias)
        return made

    @classmethod
    def to_linear(cls, supermask_linear: "SupermaskLinear") -> nn.Linear:
        """A plain layer with the weights that are kept, the others 0."""
        return supermask_linear.materialize()


def _check_level(sparsity_level: float) -> None:
    if isinstance(sparsity_level, bool) or not isinstance(sparsity_level, int | float):
        raise TypeError(f"sparsity_level: expected a float in [0, 1], got {type(sparsity_level).__name__}")
    if not 0 <= sparsity_level <= 1:
        raise ValueError(f"sparsity_level: the fraction of weights REMOVED must be in [0, 1], got {sparsity_level}")


@torch.no_grad()
def _copy(given: torch.Tensor | None, into: torch.Tensor | None) -> None:
    if given is not None and into is not None:
        into.copy_(given)
