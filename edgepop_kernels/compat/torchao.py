"""The SupermaskLinear of torchao (SuperBlock, in releases 0.11 to 0.18).

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

__all__ = ["SupermaskLinear", "TiledSupermaskLinear"]


class _OrTiled(type):
    """The type of SupermaskLinear, of which layers with tiles are instances too."""

    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or isinstance(instance, TiledSupermaskLinear)


class SupermaskLinear(Theirs, FusedSubnetLinear, metaclass=_OrTiled):
    """A linear layer that keeps the scores at or above a percentile, and trains weights beside them.

    sparsity_level  the fraction REMOVED, in [0, 1]; 1 - 1 / (the number of scores) at most
    blocksize       the side of the square of weights that share a score; above 1 the layer is a
                    ``TiledSupermaskLinear``
    fixed_mask      True: the scores do not train
    fixed_weight    True: the weight does not train

    Then nn.Linear's arguments. Scores are float32 whatever the layer's dtype. Raises TypeError, ValueError.

    >>> from edgepop_kernels.compat.torchao import SupermaskLinear
    >>> layer = SupermaskLinear.from_linear(nn.Linear(64, 10), sparsity_level=0.9)
    >>> layer.mask().sum().item(), SupermaskLinear.to_linear(layer)
    (65, Linear(in_features=64, out_features=10, bias=True))
    """

    blocksize: ClassVar[int] = 1

    def __new__(cls, sparsity_level: float = 0.0, blocksize: int = 1, *args: Any, **kwargs: Any) -> Any:
        if blocksize == 1:
            return super().__new__(cls)
        return TiledSupermaskLinear(sparsity_level, blocksize, *args, **kwargs)

    def __init__(
        self, sparsity_level: float, blocksize: int, fixed_mask: bool, fixed_weight: bool, *args: Any, **kwargs: Any
    ) -> None:
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

    def _output(self, x: torch.Tensor, *how: Any) -> torch.Tensor:
        return F.linear(x, self.masked_weight(weight_grad="all", score_grad="unweighted"), self.bias)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, sparsity_level: float = 0.0, blocksize: int = 1
    ) -> "SupermaskLinear | TiledSupermaskLinear":
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
    def to_linear(cls, supermask_linear: "SupermaskLinear | TiledSupermaskLinear") -> nn.Linear:
        """A plain layer with the weights that are kept, the others 0."""
        return supermask_linear.materialize()


class TiledSupermaskLinear(nn.Linear):
    """A ``SupermaskLinear`` whose scores stand for squares of ``blocksize`` weights; smaller ones at the far edges.

    Scores are [ceil(out / blocksize), ceil(in / blocksize)], in the layer's dtype; ties at the percentile are kept. The
    gradient of a score is the sum of its square's. Torch multiplies: the layer is none of this package's masked ones,
    which ``convert``, ``materialize`` and ``summary`` of a model look at.

    Arguments as in ``SupermaskLinear``, which makes it. Raises TypeError, ValueError.
    """

    def __init__(
        self, sparsity_level: float, blocksize: int, fixed_mask: bool, fixed_weight: bool, *args: Any, **kwargs: Any
    ) -> None:
        if isinstance(blocksize, bool) or not isinstance(blocksize, int):
            raise TypeError(f"blocksize: expected an int, got {type(blocksize).__name__}")
        if blocksize < 1:
            raise ValueError(f"blocksize: expected 1 or more, got {blocksize}")
        _check_level(sparsity_level)
        super().__init__(*args, **kwargs)
        tiles = [max(1, -(-size // blocksize)) for size in self.weight.shape]
        self.blocksize, self.sparsity_level = blocksize, min(sparsity_level, 1 - 1 / math.prod(tiles))
        scores = nn.init.kaiming_uniform_(self.weight.new_empty(tiles), a=math.sqrt(5))
        self.scores = nn.Parameter(scores, requires_grad=not fixed_mask)
        self.weight.requires_grad_(not fixed_weight)

    def get_mask(self) -> torch.Tensor:
        """The mask of the weight's shape, in float32, whose gradient reaches the scores."""
        rule = Percentile(of="raw").with_drop(self.sparsity_level)
        mask = effective.masked(self.scores.to(torch.float32), rule)
        for dim, size in enumerate(self.weight.shape):
            mask = mask.repeat_interleave(self.blocksize, dim).narrow(dim, 0, size)
        return mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product of ``x`` and the weights that are kept, and the bias."""
        masked: torch.Tensor = _Applied.apply(self.weight, self.get_mask())  # type: ignore[no-untyped-call]  # torch's
        return F.linear(x, masked, self.bias)

    @torch.no_grad()
    def materialize(self) -> nn.Linear:
        """A plain layer with the weights that are kept, the others 0."""
        weight = self.weight
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, weight.device, weight.dtype)
        plain.weight.copy_(weight.masked_fill(self.get_mask() == 0, 0))
        _copy(self.bias, plain.bias)
        return plain


class _Applied(torch.autograd.Function):
    """weight * mask, whose gradient both get as it is."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return weight * mask.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, mask = ctx.needs_input_grad
        return gradient if weight else None, gradient.to(torch.float32) if mask else None


def _check_level(sparsity_level: float) -> None:
    if isinstance(sparsity_level, bool) or not isinstance(sparsity_level, int | float):
        raise TypeError(f"sparsity_level: expected a float in [0, 1], got {type(sparsity_level).__name__}")
    if not 0 <= sparsity_level <= 1:
        raise ValueError(f"sparsity_level: the fraction of weights REMOVED must be in [0, 1], got {sparsity_level}")


@torch.no_grad()
def _copy(given: torch.Tensor | None, into: torch.Tensor | None) -> None:
    if given is not None and into is not None:
        into.copy_(given)
