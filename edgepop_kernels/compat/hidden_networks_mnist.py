"""Layers of hidden-networks' example in one file, ``simple_mnist_example.py``: Kaiming normal weights that stand still.

``sparsity`` is the fraction KEPT, one number for the whole program, ``args.sparsity``: 0.5 where nobody says another.
"""

from typing import Any

from torch import nn

from ..nn import FusedSubnetConv, FusedSubnetLinear, MaskedLayer
from .theirs import Theirs

__all__ = ["SupermaskConv", "SupermaskLinear", "set_sparsity"]


class _Supermask(Theirs):
    """What both layers are: scores are drawn, then the weight once more."""

    def __init__(self, *args: Any, sparsity: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, keep=sparsity, **kwargs)
        nn.init.kaiming_normal_(self.weight, mode="fan_in", nonlinearity="relu")

    @property
    def sparsity(self) -> float:
        """The fraction KEPT."""
        return self.keep

    @sparsity.setter
    def sparsity(self, sparsity: float) -> None:
        self.keep = sparsity


class SupermaskConv(_Supermask, FusedSubnetConv):
    """A convolution that keeps the best |scores| over random weights: nn.Conv2d's arguments, and by name sparsity, the
    fraction KEPT."""


class SupermaskLinear(_Supermask, FusedSubnetLinear):
    """A linear layer that keeps the best |scores| over random weights: nn.Linear's arguments, and by name sparsity, the
    fraction KEPT.

    >>> from edgepop_kernels.compat.hidden_networks_mnist import SupermaskLinear
    >>> layer = SupermaskLinear(64, 10, bias=False)
    >>> layer.sparsity, layer.weight.requires_grad
    (0.5, False)
    """


def set_sparsity(model: nn.Module, sparsity: float) -> None:
    """Sets the fraction KEPT of all masked layers of ``model``, as ``args.sparsity`` does there. Raises TypeError,
    ValueError."""
    for module in model.modules():
        if isinstance(module, MaskedLayer):
            module.keep = sparsity
