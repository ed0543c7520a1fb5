"""Layers of ``utils/conv_type.py`` in hidden-networks (Ramanujan et al. 2020, "What's Hidden in a Randomly Weighted
Neural Network?").

Weights train beside scores until the program stops them (``freeze_model_weights``), and a rate has to be set before the
first forward. ``prune_rate`` is the fraction KEPT in SubnetConv, the fraction REMOVED in FixedSubnetConv.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from .. import selecting
from ..nn import FusedSubnetConv, FusedSupermaskConv
from ..rules import Bernoulli, Ranked, TopK, checked_drop
from .theirs import NeverSet, Theirs

__all__ = ["FixedSubnetConv", "SampleSubnetConv", "SubnetConv"]


class SubnetConv(Theirs, FusedSubnetConv):
    """A convolution that keeps the best |scores|: nn.Conv2d's arguments.

    >>> from edgepop_kernels.compat.hidden_networks import SubnetConv
    >>> conv = SubnetConv(3, 8, kernel_size=3, bias=False)
    >>> conv.set_prune_rate(0.25)
    >>> conv.prune_rate, conv.mask().sum().item(), sorted(conv.state_dict())
    (0.25, 54, ['scores', 'weight'])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, rule=NeverSet(), **kwargs)
        self.weight.requires_grad_()

    @property
    def prune_rate(self) -> float:
        """The fraction KEPT; AttributeError before ``set_prune_rate``."""
        return _rate(self).keep

    @prune_rate.setter
    def prune_rate(self, prune_rate: float) -> None:
        self.set_prune_rate(prune_rate)

    @property
    def clamped_scores(self) -> torch.Tensor:
        """The absolute scores, which are ranked."""
        assert self.scores is not None  # as freeze() leaves them, which is not of that project
        return self.scores.abs()


class SampleSubnetConv(Theirs, FusedSupermaskConv):
    """A convolution that draws its mask in every forward, in evaluation too: each weight is kept with the probability
    sigmoid(score). nn.Conv2d's arguments.

    score_init_constant  of the class: where all scores start, as ``args.score_init_constant`` of that program; None
                         draws them

    Not the masks that the same seed draws there, but as many of each. It ranks nothing: there is no ``set_prune_rate``.
    """

    score_init_constant: ClassVar[float | None] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, rule=Bernoulli(), scores_init=self.score_init_constant, **kwargs)
        self.weight.requires_grad_()

    def reset_scores(self) -> None:
        """Sets all scores to ``score_init_constant``, or draws them."""
        if self.scores is not None and self.scores_init is not None:
            nn.init.constant_(self.scores, self.scores_init)
        else:
            super().reset_scores()

    @property
    def clamped_scores(self) -> torch.Tensor:
        """The probability of each weight to be kept."""
        assert self.scores is not None  # as freeze() leaves them, which is not of that project
        return self.scores.sigmoid()

    @property
    def set_prune_rate(self) -> Any:
        """Not there, as in that project, whose helpers look for it: AttributeError."""
        raise AttributeError("set_prune_rate")


class FixedSubnetConv(Theirs, FusedSubnetConv):
    """A convolution with a fixed mask, whose weights train where they are kept: nn.Conv2d's arguments.

    ``set_prune_rate(p)``, p the fraction REMOVED; then, with scores loaded or as drawn, ``set_subnet()``, which leaves
    the mask in ``scores``, 0 and 1, where a state_dict has it too. A forward before that multiplies by scores there and
    is refused here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, rule=NeverSet(), **kwargs)
        self.weight.requires_grad_()

    def set_prune_rate(self, prune_rate: float) -> None:
        """Sets the fraction REMOVED by the next ``set_subnet``, in [0, 1). Raises TypeError, ValueError."""
        rule = TopK(drop=checked_drop(prune_rate, "prune_rate"))
        if self._rule.fixed:
            self._loose_rule = rule
        else:
            self.rule = rule

    @property
    def prune_rate(self) -> float:
        """The fraction REMOVED; AttributeError before ``set_prune_rate``."""
        return _rate(self).removed

    @prune_rate.setter
    def prune_rate(self, prune_rate: float) -> None:
        self.set_prune_rate(prune_rate)

    def set_subnet(self) -> None:
        """Keeps the best |scores|, as the rate says, for good: ``scores`` become their mask, and stop."""
        assert self.scores is not None  # as freeze() leaves them, which is not of that project
        mask = selecting.mask(self.clamped_scores().detach(), _rate(self))
        with torch.no_grad():
            self.scores.copy_(mask)
        self.freeze(mask, keep_scores=True)

    def clamped_scores(self) -> torch.Tensor:
        """The absolute scores, which ``set_subnet`` ranks; a method, in that project."""
        assert self.scores is not None  # as freeze() leaves them, which is not of that project
        return self.scores.abs()

    def get_subnet(self) -> torch.Tensor:
        """The masked weight, through which kept weights train. Raises RuntimeError before ``set_subnet``."""
        self._check_subnet()
        return self.masked_weight()

    def _output(self, x: torch.Tensor, *how: Any) -> torch.Tensor:
        self._check_subnet()
        return super()._output(x, *how)

    def _check_subnet(self) -> None:
        if not self._rule.fixed:
            raise RuntimeError(
                "set_subnet: this layer has no fixed mask yet; call set_subnet() before its first forward"
            )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if _is_mask(destination.get(f"{prefix}scores")):
            destination.pop(f"{prefix}mask_bits", None)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Scores of nothing but 0 and 1 are a mask, which is fixed from then on; with others ``set_subnet`` is due."""
        scores, bits = f"{prefix}scores", f"{prefix}mask_bits"
        if _is_mask(state_dict.get(scores)):
            state_dict = {**state_dict, bits: selecting.pack_mask(state_dict[scores] != 0)}
        elif scores not in state_dict and bits in state_dict and self.scores is not None:
            mask = selecting.unpack_mask(state_dict[bits], self._weight_shape())
            state_dict = {**state_dict, scores: mask.to(torch.float32)}
        super()._load_from_state_dict(state_dict, prefix, *args)


def _is_mask(scores: object) -> bool:
    """Whether these are no scores but a mask: nothing but 0 and 1."""
    if not isinstance(scores, torch.Tensor) or scores.is_meta:
        return False
    return bool(((scores == 0) | (scores == 1)).all())


def _rate(layer: Theirs) -> Ranked:
    rule = layer._set_rule()
    if not isinstance(rule, Ranked):
        raise AttributeError("prune_rate")
    return rule
