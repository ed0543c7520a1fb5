"""Layers of hydra's ``models/layers.py`` (Sehwag et al. 2020, "HYDRA: Pruning Adversarially Robust Neural Networks").

``k`` is the fraction KEPT, and has to be set before the first forward. Scores are ``popup_scores``, as an attribute, as
a parameter and in a state_dict. Weight and bias stand still until the program trains them.
"""

from typing import Any

import torch
from torch import nn

from ..nn import FusedSubnetConv, FusedSubnetLinear
from ..rules import Ranked
from .theirs import NeverSet, Theirs

__all__ = ["SubnetConv", "SubnetLinear"]


class _Subnet(Theirs):
    """What both layers are."""

    _added = (*Theirs._added, "popup_scores", "_w")
    _scores_name = "popup_scores"
    _w: torch.Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, rule=NeverSet(rate="k"), **kwargs)
        if self.bias is not None:
            self.bias.requires_grad_(False)

    @property
    def scores(self) -> nn.Parameter | None:
        """The ``popup_scores``, as this package calls them."""
        return self.popup_scores

    @scores.setter
    def scores(self, scores: nn.Parameter | None) -> None:
        self.popup_scores = scores

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Registers as torch does; scores by their name here."""
        super().register_parameter("popup_scores" if name == "scores" else name, param)

    @property
    def k(self) -> float:
        """The fraction KEPT; AttributeError before ``set_prune_rate``."""
        rule = self._set_rule()
        if not isinstance(rule, Ranked):
            raise AttributeError("k")
        return rule.keep

    @k.setter
    def k(self, k: float) -> None:
        self.keep = k

    @property
    def w(self) -> torch.Tensor:
        """The masked weight, made when asked for; there it is that of the last forward. What certified training
        computes and assigns stays until the next forward."""
        return self.masked_weight() if self._w is None else self._w

    @w.setter
    def w(self, w: torch.Tensor) -> None:
        self._w = w

    def _output(self, x: torch.Tensor, *how: Any) -> torch.Tensor:
        if self._w is not None:
            self._w = None
        return super()._output(x, *how)


class SubnetConv(_Subnet, FusedSubnetConv):
    """A convolution that keeps the best |popup_scores|: nn.Conv2d's arguments.

    >>> from edgepop_kernels.compat.hydra import SubnetConv
    >>> conv = SubnetConv(3, 8, 3)
    >>> conv.set_prune_rate(0.25)
    >>> conv.k, [name for name, p in conv.named_parameters() if p.requires_grad]
    (0.25, ['popup_scores'])
    """


class SubnetLinear(_Subnet, FusedSubnetLinear):
    """A linear layer that keeps the best |popup_scores|: nn.Linear's arguments."""
