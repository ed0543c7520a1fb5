"""The layers of dnw's sparse networks and of its graphs (Wortsman et al. 2019, "Discovering Neural Wirings").

``prune_rate`` is the fraction REMOVED; in SparseConv it has to be set before the first forward.
"""

from typing import Any

import torch

from ..nn import FusedSparseConv
from ..rules import Ranked
from .theirs import NeverSet, Theirs

__all__ = ["DNW", "SparseConv"]


class SparseConv(Theirs, FusedSparseConv):
    """A convolution that uses its largest weights and trains all: nn.Conv2d's arguments.

    >>> from edgepop_kernels.compat.dnw import SparseConv
    >>> conv = SparseConv(64, 80, kernel_size=1, bias=False)
    >>> conv.set_prune_rate(0.1)
    >>> conv.mask().sum().item(), conv.prune_rate
    (4608, 0.1)
    >>> conv.get_weight()[:40].sum().backward()  # slices of the masked weight train, every edge of them
    >>> conv.weight.grad.sum().item()
    2560.0
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, rule=NeverSet(), **kwargs)

    @property
    def prune_rate(self) -> float:
        """The fraction REMOVED; AttributeError before ``set_prune_rate``."""
        rule = self._set_rule()
        if not isinstance(rule, Ranked):
            raise AttributeError("prune_rate")
        return rule.removed

    @prune_rate.setter
    def prune_rate(self, prune_rate: float) -> None:
        self.set_prune_rate(prune_rate)

    def get_weight(self) -> torch.Tensor:
        """The masked weight, written to memory, through which every weight trains, kept or not."""
        return self.masked_weight()


class DNW(SparseConv):
    """The edges of a graph: a convolution of 1x1 without bias, from ``dim_in`` nodes to ``dim_out``, which uses its
    largest weights and trains all.

    prune_rate  the fraction REMOVED, in [0, 1)

    A graph calls it, or slices ``get_weight()``. Raises TypeError, ValueError.

    >>> from edgepop_kernels.compat.dnw import DNW
    >>> graph = DNW(0.95, 16, 32)
    >>> graph.get_weight()[8:, :4].shape
    torch.Size([24, 4, 1, 1])
    """

    def __init__(self, prune_rate: float, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, kernel_size=1, bias=False)
        self.prune_rate = prune_rate
