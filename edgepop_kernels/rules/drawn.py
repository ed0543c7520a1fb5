"""The rule that draws its masks."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ..cut import Bits, Cut
from .rule import Ops, Rule
from .threshold import Threshold

_ROUNDED = Threshold(0.5)


@dataclass(frozen=True)
class Bernoulli(Rule):
    """A rule that keeps each weight with probability sigmoid(score), drawn anew in every forward; NaN is never kept.

    Zhou et al. 2019, "Deconstructing Lottery Tickets". The seed of a draw comes from torch's generator of the scores'
    device, so ``torch.manual_seed`` reproduces it, and ranks whose generators agree draw one mask; backward uses the
    mask of its forward. at_eval: what layers do in eval mode, and for good when frozen or materialised: "sample" draws
    there too, as the paper does; "round" keeps sigmoid(score) > 0.5.

    >>> ek.mask(torch.full((1000,), 100.0), ek.Bernoulli()).all()
    tensor(True)
    """

    at_eval: Literal["sample", "round"] = "sample"
    of: ClassVar[str] = "sigmoid"
    fresh: ClassVar[bool] = True
    selects: ClassVar[type[Cut] | type[Bits]] = Bits

    def __post_init__(self) -> None:
        if self.at_eval not in ("sample", "round"):
            raise ValueError(f"at_eval: expected 'sample' or 'round', got {self.at_eval!r}")

    def settled(self) -> Rule:
        return _ROUNDED if self.at_eval == "round" else self

    def select(self, scores: torch.Tensor, ops: Ops) -> Bits:
        seed = torch.randint((1 << 63) - 1, (), dtype=torch.int64, device=scores.device)
        return Bits(ops.draw(scores, seed), self.of)

    def share(self, scores: torch.Tensor) -> float:
        return scores.sigmoid().mean().item()
