"""Mask rules: how the mask M of a layer follows from its scores S.

A rule is a frozen value. It says which weights are kept; the straight-through gradient follows from it
(``dS = dL/d(W*M) * W * map'(S)``, with ``map`` the function named by ``of``).
"""

import math
from dataclasses import dataclass
from typing import ClassVar


def kept_count(numel: int, keep: float) -> int:
    """Number of weights a top-k rule keeps out of ``numel``: ``numel - int((1 - keep) * numel)``.

    Computed in Python floats on the host, as hidden-networks' GetSubnet does (Ramanujan et al. 2020), truncation
    included: ``kept_count(10, 0.9)`` is 10, because ``(1 - 0.9) * 10`` is just below 1.
    """
    if isinstance(numel, bool) or not isinstance(numel, int):
        raise TypeError(f"numel: expected an int, got {type(numel).__name__}")
    if numel < 0:
        raise ValueError(f"numel: expected at least 0, got {numel}")
    keep = checked_keep(keep)
    return numel - int((1 - keep) * numel)


def checked_keep(keep: float) -> float:
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        raise TypeError(f"keep: expected a float in (0, 1], got {type(keep).__name__}")
    if not 0 < keep <= 1:
        raise ValueError(f"keep: the fraction of weights KEPT must be in (0, 1], got {keep}")
    return float(keep)


def _checked_of(of: str, allowed: tuple[str, ...]) -> None:
    if of not in allowed:
        raise ValueError(f"of: expected one of {', '.join(map(repr, allowed))}, got {of!r}")


@dataclass(frozen=True)
class Ranked:
    """What rules share that keep the best-ranked scores."""

    keep: float = 0.5
    of: str = "abs"

    def __post_init__(self):
        object.__setattr__(self, "keep", checked_keep(self.keep))
        _checked_of(self.of, ("abs", "raw"))

    def kept(self, numel: int) -> int:
        """How many of ``numel`` scores are kept, before ties at the cut."""
        return kept_count(numel, self.keep)


@dataclass(frozen=True)
class TopK(Ranked):
    """Keep the best-scored fraction ``keep`` of each layer, exactly ``kept_count(numel, keep)`` weights.

    of: "abs" ranks by |s| (edge-popup, Ramanujan et al. 2020); "raw" by s itself. Ties go to the lower flat index,
    NaN ranks below every number.
    """


@dataclass(frozen=True)
class GlobalTopK(Ranked):
    """Keep the best-scored fraction ``keep`` of all layers together: one threshold, any share of a single layer.

    The layers of one ``select_all`` call (of one model under ``share_selection``) whose rules are equal are ranked
    together, exactly ``kept_count`` of their total; ties go to the earlier layer, then to the lower flat index.
    """


@dataclass(frozen=True)
class Percentile(Ranked):
    """Keep the scores at or above a percentile of their layer, all ties included: hidden-networks' GetSubnetFaster.

    The threshold is the j-th smallest score, j = 1 + round(.01 * q * (numel - 1)), q = (1 - keep) * 100, in Python
    floats with Python's rounding to even. So the count differs from TopK's by one at times, and tied scores are kept
    or dropped together: of equal scores all are kept. There, q comes from the fraction REMOVED.
    """

    def kept(self, numel: int) -> int:
        return numel - round(0.01 * ((1 - self.keep) * 100) * (numel - 1)) if numel else 0


@dataclass(frozen=True)
class Threshold:
    """Keep the weights with ``of(score) > cutoff``, strictly; NaN is never kept.

    of: "sigmoid" (supermasks; ``cutoff`` in [0, 1], compared as s > logit(cutoff) in exact arithmetic), "abs" or "raw".
    """

    cutoff: float = 0.5
    of: str = "sigmoid"

    def __post_init__(self):
        if isinstance(self.cutoff, bool) or not isinstance(self.cutoff, (int, float)):
            raise TypeError(f"cutoff: expected a float, got {type(self.cutoff).__name__}")
        _checked_of(self.of, ("sigmoid", "abs", "raw"))
        if math.isnan(self.cutoff) or (self.of == "sigmoid" and not 0 <= self.cutoff <= 1):
            allowed = "a number in [0, 1]" if self.of == "sigmoid" else "a number"
            raise ValueError(f"cutoff: expected {allowed}, got {self.cutoff}")
        object.__setattr__(self, "cutoff", float(self.cutoff))


@dataclass(frozen=True)
class Bernoulli:
    """Keep each weight with probability sigmoid(score), drawn anew in every forward; NaN is never kept.

    Zhou et al. 2019, "Deconstructing Lottery Tickets". The seed of a draw comes from torch's generator of the scores'
    device, so ``torch.manual_seed`` reproduces it, and ranks whose generators agree draw one mask; backward uses the
    mask of its forward. at_eval: what layers do in eval mode, and for good when frozen or materialised: "sample" draws
    there too, as the paper does; "round" keeps sigmoid(score) > 0.5.
    """

    at_eval: str = "sample"
    of: ClassVar[str] = "sigmoid"

    def __post_init__(self):
        if self.at_eval not in ("sample", "round"):
            raise ValueError(f"at_eval: expected 'sample' or 'round', got {self.at_eval!r}")


@dataclass(frozen=True)
class Frozen:
    """Keep a fixed set of weights. In the scores' place stands the mask: a bool tensor of the weight's shape, or the
    packed bits of ``edgepop_kernels.pack_mask``. No gradient goes to it; a trained weight gets it only where kept."""


def ranked_rule(keep: float | None, rule: "Rule | None") -> "Rule":
    """The rule asked for by ``keep`` or ``rule``, of which one may be given; ``TopK(0.5)`` where neither is."""
    if keep is None:
        return TopK() if rule is None else rule
    if rule is not None:
        raise ValueError(f"keep: expected keep or rule, which says what is kept too, got keep={keep} and rule={rule}")
    return TopK(keep)


Rule = TopK | GlobalTopK | Percentile | Threshold | Bernoulli | Frozen
