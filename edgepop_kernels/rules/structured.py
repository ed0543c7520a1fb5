"""Rules of a structure that hardware knows."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from ..cut import Bits, Cut
from .rule import Ops, Rule, checked_of

LARGEST_GROUP = 64


@dataclass(frozen=True)
class NM(Rule):
    """A rule that keeps the ``n`` best-scored of every ``m`` weights in a row: 2:4 is what sparse tensor cores take.

    n, m: 1 <= n <= m <= 64. of: "abs" ranks by |s|, "raw" by s itself. Ties go to the lower index, NaN ranks below
    every number. dim: the weight's dimension along which the groups lie, a multiple of ``m`` long: 1, a linear layer's
    or convolution's inputs (Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From
    Scratch"); 0, those of a transposed convolution and of GPT-2's linear layers. Raises TypeError, ValueError.

    >>> ek.mask(torch.tensor([[0.1, -3.0, 2.0, -0.2, 5.0, 4.0, 0.0, 6.0]]), ek.NM(2, 4))
    tensor([[False,  True,  True, False,  True, False, False,  True]])
    """

    n: int
    m: int
    of: Literal["abs", "raw"] = "abs"
    dim: Literal[0, 1] = field(default=1, kw_only=True)
    grouped: ClassVar[bool] = True
    selects: ClassVar[type[Cut] | type[Bits]] = Bits

    def __post_init__(self) -> None:
        for name in ("n", "m", "dim"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
        if not 1 <= self.m <= LARGEST_GROUP:
            raise ValueError(f"m: expected 1 to {LARGEST_GROUP} weights in a group, got {self.m}")
        if not 1 <= self.n <= self.m:
            raise ValueError(f"n: expected 1 to m={self.m} weights kept of a group, got {self.n}")
        checked_of(self.of, ("abs", "raw"))
        if self.dim not in (0, 1):
            raise ValueError(f"dim: expected 0 or 1, got {self.dim}")

    @property
    def keep(self) -> float:
        """The fraction kept."""
        return self.n / self.m

    def check(self, shape: torch.Size) -> None:
        if len(shape) <= self.dim or shape[self.dim] % self.m:
            raise ValueError(
                f"rule: {self} takes weights whose dimension {self.dim} is a multiple of {self.m}, got shape "
                f"{tuple(shape)}"
            )

    def select(self, scores: torch.Tensor, ops: Ops) -> Bits:
        return Bits(ops.group_bits(scores, self.n, self.m, self.dim, self.of), self.of)

    def share(self, scores: torch.Tensor) -> float:
        return self.keep
