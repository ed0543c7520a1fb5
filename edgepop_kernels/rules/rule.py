"""What every mask rule answers."""

from typing import ClassVar

import torch

from ..cut import Cut, Selection


class Rule:
    """How the mask of a layer follows from its scores. The base of all rules, each a frozen dataclass.

    of       the function of the scores that is ranked or compared, and differentiated: "abs", "raw" or "sigmoid"
    ranks    whether it keeps the best-ranked: it has a ``keep`` and a ``kept(numel)``, and a cut can start warm
    together whether the layers of a network whose rules are equal are ranked as one
    fresh    whether every forward draws anew: nothing is remembered, and activation checkpointing repeats the draw
    fixed    whether the mask itself stands in the scores' place: there is nothing to select
    selects  what a selection under it is: ``Cut`` or ``Bits``
    """

    of: str = "abs"
    ranks: ClassVar[bool] = False
    together: ClassVar[bool] = False
    fresh: ClassVar[bool] = False
    fixed: ClassVar[bool] = False
    selects: ClassVar[type] = Cut

    def check(self, shape: torch.Size) -> None:
        """Raises ValueError where a weight of ``shape`` cannot be masked by this rule."""

    def settled(self) -> "Rule":
        """The rule of evaluation, of ``layer.mask()`` and of what is kept for good."""
        return self

    def select(self, scores: torch.Tensor, ops) -> Selection:
        """The selection of one layer, under a rule that does not rank. scores: float32, detached; ops: the module."""
        raise TypeError(f"rule: {self} selects nothing by itself")

    def share(self, scores: torch.Tensor) -> float | None:
        """The fraction of these scores that is kept, or expected to be; None where only a selection can tell."""
        return None

    def with_keep(self, keep: float) -> "Rule":
        """The same rule keeping another fraction. Raises ValueError for a rule without one."""
        raise ValueError(f"keep: only a rule that ranks has one to set, this layer's rule is {self}")


def checked_of(of: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError for an ``of`` that is not allowed."""
    if of not in allowed:
        raise ValueError(f"of: expected one of {', '.join(map(repr, allowed))}, got {of!r}")
