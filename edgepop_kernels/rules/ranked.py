"""Rules that keep the best-ranked scores."""

import itertools
import math
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Literal

import torch

from ..cut import Cut
from ..reference import unpack_mask
from .rule import Ops, Rule, checked_of


def kept_count(numel: int, keep: float | None = None, *, drop: float | None = None) -> int:
    """The number of weights that a top-k rule keeps out of ``numel``: ``numel - int((1 - keep) * numel)``, or
    ``numel - int(drop * numel)``.

    Computed in Python floats on the host, as hidden-networks' GetSubnet does (Ramanujan et al. 2020) with what it keeps
    and dnw's ChooseEdges (Wortsman et al. 2019) with what it drops, truncation included: ``kept_count(10, 0.9)`` is 10,
    because ``(1 - 0.9) * 10`` is just below 1; ``kept_count(10, drop=0.1)`` is 9.

    >>> ek.kept_count(1000, keep=0.3)
    300
    """
    if isinstance(numel, bool) or not isinstance(numel, int):
        raise TypeError(f"numel: expected an int, got {type(numel).__name__}")
    if numel < 0:
        raise ValueError(f"numel: expected at least 0, got {numel}")
    if (keep is None) == (drop is None):
        raise ValueError(f"keep: expected keep or drop, one of the two, got keep={keep} and drop={drop}")
    return numel - int(((1 - checked_keep(keep)) if keep is not None else checked_drop(drop)) * numel)


def checked_kept(rule: Rule, numel: int) -> int:
    """The number of scores out of ``numel`` that a rule that ranks keeps. Raises TypeError or ValueError for what is no
    such number, as a rule of a user's own may say: kernels count on it."""
    kept = rule.kept(numel)
    if type(kept) is not int:
        raise TypeError(f"rule: expected {rule}.kept to return an int, got {type(kept).__name__}")
    if not 0 <= kept <= numel:
        raise ValueError(f"rule: expected {rule}.kept to return 0 to {numel}, the scores that there are, got {kept}")
    return kept


def checked_keep(keep: float, argument: str = "keep") -> float:
    """``keep`` as a float. Raises TypeError, ValueError, which call it by ``argument``."""
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        raise TypeError(f"{argument}: expected a float in (0, 1], got {type(keep).__name__}")
    if not 0 < keep <= 1:
        raise ValueError(f"{argument}: the fraction of weights KEPT must be in (0, 1], got {keep}")
    return float(keep)


def checked_drop(drop: object, argument: str = "drop") -> float:
    """``drop`` as a float. Raises TypeError, ValueError, which call it by ``argument``."""
    if isinstance(drop, bool) or not isinstance(drop, (int, float)):
        raise TypeError(f"{argument}: expected a float in [0, 1), got {type(drop).__name__}")
    if not 0 <= drop < 1:
        raise ValueError(f"{argument}: the fraction of weights REMOVED must be in [0, 1), got {drop}")
    return float(drop)


def ranked_rule(keep: float | None, rule: Rule | None) -> Rule:
    """The rule asked for by ``keep`` or ``rule``, of which one may be given; ``TopK(0.5)`` where neither is."""
    if keep is None:
        return TopK() if rule is None else rule
    if rule is not None:
        raise ValueError(f"keep: expected keep or rule, which says what is kept too, got keep={keep} and rule={rule}")
    return TopK(keep)


_NOT_GIVEN = float("0.5")  # the keep of who says none, told by identity: the 0.5 of who does is another object


@dataclass(frozen=True, repr=False)
class Ranked(Rule):
    """The base of rules that keep the best-ranked scores.

    keep  the fraction kept, in (0, 1]
    drop  in its place the fraction removed, in [0, 1), which is counted as it is given: ``1 - drop`` rounds, and the
          count by it is one off at times; None where keep was given
    """

    keep: float = _NOT_GIVEN
    of: Literal["abs", "raw"] = "abs"
    drop: float | None = field(default=None, kw_only=True)
    ranks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.drop is not None:
            drop = checked_drop(self.drop)
            if self.keep is not _NOT_GIVEN and self.keep != 1 - drop:  # which a saved rule has beside it
                raise ValueError(f"drop: expected keep or drop, one of the two, got keep={self.keep} and drop={drop}")
            object.__setattr__(self, "drop", drop)
            object.__setattr__(self, "keep", 1 - drop)
        object.__setattr__(self, "keep", checked_keep(self.keep))
        checked_of(self.of, ("abs", "raw"))

    def __repr__(self) -> str:
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        shown = (f"{name}={value!r}" for name, value in values if name != "drop" or value is not None)
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def removed(self) -> float:
        """The fraction that is removed, as it is counted with."""
        return 1 - self.keep if self.drop is None else self.drop

    @classmethod
    def removing(cls, removed: float) -> "Ranked":
        """A rule that counts as one whose ``removed`` this is."""
        rule = cls()
        object.__setattr__(rule, "drop", removed)
        return rule

    def kept(self, numel: int) -> int:
        """The number of scores out of ``numel`` that are kept, before ties at the cut."""
        numel = int(numel)
        return numel - int((1 - self.keep if self.drop is None else self.drop) * numel)

    def cut(self, data: torch.Tensor, numel: int) -> Cut:
        """The cut of a layer of ``numel`` scores where ``data`` is what ``ops.select`` found for it."""
        return Cut(data, self.of)

    def moved(self) -> torch.Tensor:
        return torch.tensor(self.removed, dtype=torch.float64) if self.moving is None else self.moving

    def share(self, scores: torch.Tensor) -> float | None:
        return self.keep

    def with_keep(self, keep: float) -> "Ranked":
        return self._moving_on(replace(self, keep=keep, drop=None))

    def with_drop(self, drop: float) -> "Ranked":
        return self._moving_on(replace(self, keep=_NOT_GIVEN, drop=drop))

    def _moving_on(self, rule: "Ranked") -> "Ranked":
        if type(self) in (TopK, Percentile):  # which the op of a keep that moves knows by name
            # One change is rarely the last. A compiled forward takes a number as a constant, and is compiled anew for
            # the next; a tensor is an input.
            object.__setattr__(rule, "moving", torch.tensor(rule.removed, dtype=torch.float64, device="cpu"))
        return rule


@dataclass(frozen=True, repr=False)
class TopK(Ranked):
    """A rule that keeps the best-scored fraction ``keep`` of each layer, exactly ``kept_count(numel, keep)`` weights.

    of: "abs" ranks by |s| (edge-popup, Ramanujan et al. 2020); "raw" by s itself. Ties go to the lower flat index,
    NaN ranks below every number. drop: in keep's place the fraction REMOVED, in [0, 1), and exactly
    ``int(drop * numel)`` weights are, as sources count that say what they remove (dnw); ``keep=1 - drop`` rounds.

    >>> rule = ek.TopK(0.5)
    >>> ek.mask(torch.tensor([0.1, -3.0, 2.0, -0.2]), rule)
    tensor([False,  True,  True, False])
    """


@dataclass(frozen=True, repr=False)
class Percentile(Ranked):
    """A rule that keeps the scores at or above a percentile of their layer, all ties included.

    It is that of hidden-networks' GetSubnetFaster.

    The threshold is the j-th smallest score, j = 1 + round(.01 * q * (numel - 1)), q = (1 - keep) * 100, in Python
    floats with Python's rounding to even. So the count differs from TopK's by one at times, and tied scores are kept
    or dropped together: of equal scores all are kept. There, and in torchao, q comes from the fraction REMOVED: with
    ``drop`` in keep's place it does here, q = drop * 100.
    """

    def kept(self, numel: int) -> int:
        numel = int(numel)
        return numel - round(0.01 * (self.removed * 100) * (numel - 1)) if numel else 0

    def cut(self, data: torch.Tensor, numel: int) -> Cut:
        return Cut(data, self.of).with_ties(numel - 1)


@dataclass(frozen=True, repr=False)
class GlobalTopK(Ranked):
    """A rule that keeps the best-scored fraction ``keep`` of all layers together, any share of a single one.

    The layers of one ``select_all`` call (of one model under ``share_selection``) whose rules are equal are ranked
    together, exactly ``kept_count`` of their total; ties go to the earlier layer, then to the lower flat index.

    at_least: the fraction of its own weights that every layer keeps, in [0, keep], 0 for no such floor. A layer whose
    scores are on a smaller scale than the others' would keep nothing, and let nothing through. What floors take, the
    other layers keep less. Raises TypeError, ValueError.

    >>> large, small = torch.tensor([4.0, 3.0]), torch.tensor([0.2, 0.1])
    >>> cuts = ek.select_all([large, small], [ek.GlobalTopK(0.5)] * 2)
    >>> [cut.threshold.item() for cut in cuts]
    [3.0, 3.0]
    """

    at_least: float = 0.0
    together: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.at_least, bool) or not isinstance(self.at_least, (int, float)):
            raise TypeError(f"at_least: expected a float in [0, keep], got {type(self.at_least).__name__}")
        if not 0 <= self.at_least <= self.keep:
            raise ValueError(f"at_least: expected a fraction in [0, {self.keep}], keep, got {self.at_least}")
        object.__setattr__(self, "at_least", float(self.at_least))

    def share(self, scores: torch.Tensor) -> None:
        return None

    def cuts(self, scores: list[torch.Tensor], ops: Ops) -> list[Cut]:
        """One cut for each layer, all of one threshold: an index of -1 drops a layer's ties, its last keeps them all.

        scores: float32, detached, of all layers that are ranked together; ops: the module. Copies them once.
        """
        if not self.at_least:
            return self._ranked(scores, scores, ops)
        # Floors first: what they keep is put above every number, and the rest is ranked for what is left. A layer's
        # floor and its part of the whole are both its best scores, so the mask is that of the lower of the two cuts.
        kept = [kept_count(s.numel(), self.at_least) for s in scores]
        floors = ops.select(scores, kept, [self.of] * len(scores), None).unbind()
        held = [ops.mask_bits(s, floor, self.of) for s, floor in zip(scores, floors, strict=True)]
        raised = [s.masked_fill(unpack_mask(bits, s.shape), math.inf) for s, bits in zip(scores, held, strict=True)]
        cuts = self._ranked(scores, raised, ops)
        return [_lower(cut, Cut(floor, self.of)) for cut, floor in zip(cuts, floors, strict=True)]

    def _ranked(self, scores: list[torch.Tensor], ranked: list[torch.Tensor], ops: Ops) -> list[Cut]:
        joined = torch.cat([s.reshape(-1) for s in ranked])
        cut = Cut(ops.select([joined], [self.kept(joined.numel())], [self.of], None)[0], self.of)
        starts = itertools.accumulate((s.numel() for s in scores[:-1]), initial=0)
        return [
            cut.with_ties((cut.index - start).clamp(-1, s.numel() - 1)) for s, start in zip(scores, starts, strict=True)
        ]


def _lower(a: Cut, b: Cut) -> Cut:
    """The one of two cuts of a layer's scores that keeps more."""
    (key, index), (other_key, other_index) = a.data, b.data
    keeps_more = (other_key < key) | ((other_key == key) & (other_index > index))
    return Cut(torch.where(keeps_more, b.data, a.data), a.of)
