"""The base of all mask rules."""

from typing import TYPE_CHECKING, ClassVar, Protocol

import torch

from ..cut import Bits, Cut, Selection


class Ops(Protocol):
    """The part of ``edgepop_kernels.ops`` that rules use: the module is handed to them."""

    def select(
        self, scores: list[torch.Tensor], kept: list[int], of: list[str], hint: torch.Tensor | None, /
    ) -> torch.Tensor: ...

    def select_moving(
        self,
        scores: list[torch.Tensor],
        removed: list[torch.Tensor],
        rules: list[str],
        of: list[str],
        hint: torch.Tensor | None,
        /,
    ) -> torch.Tensor: ...

    def draw(self, scores: torch.Tensor, seed: torch.Tensor, /) -> torch.Tensor: ...

    def mask_bits(self, scores: torch.Tensor, cut: torch.Tensor, of: str, /) -> torch.Tensor: ...

    def group_bits(self, scores: torch.Tensor, kept: int, group: int, dim: int, of: str, /) -> torch.Tensor: ...

    def block_sums(self, scores: torch.Tensor, block: tuple[int, ...], of: str, /) -> torch.Tensor: ...

    def block_bits(self, sums: torch.Tensor, cut: torch.Tensor, block: tuple[int, ...], /) -> torch.Tensor: ...


_PACKAGE = __name__.partition(".")[0]
# The classes of rules by their names, the latest where one was defined again, as in a notebook.
_DEFINED: dict[str, dict[tuple[str, str], type["Rule"]]] = {}


class Rule:
    """The base of all rules, each a frozen dataclass: it says how the mask of a layer follows from its scores.

    A rule of your own is one too: its fields are numbers, bools, strings, None or tuples of them, and its ``select``
    returns what ``selects`` names; it may call what users call (``edgepop_kernels.select``, ``pack_mask``). A
    state_dict has it by the name of its class, which has to be imported before that is loaded. Raises TypeError where
    the class has the name of one of this package's rules.

    of       the function of the scores that is ranked or compared, and differentiated: "abs", "raw" or "sigmoid"
    ranks    whether it keeps the best-ranked: it has a ``keep`` and a ``kept(numel)``, and a cut can start warm
    grouped  whether it keeps the best of every few weights, or whole groups of them: ``keep`` is the fraction kept
    together whether the layers of a network whose rules are equal are ranked as one
    fresh    whether every forward draws anew: nothing is remembered, and activation checkpointing repeats the draw
    fixed    whether the mask itself stands in the scores' place: there is nothing to select
    selects  what a selection under it is: ``Cut`` or ``Bits``
    """

    if TYPE_CHECKING:  # a constant of some rules, a field of others

        @property
        def of(self) -> str: ...

    else:
        of = "abs"
    ranks: ClassVar[bool] = False
    grouped: ClassVar[bool] = False
    together: ClassVar[bool] = False
    fresh: ClassVar[bool] = False
    fixed: ClassVar[bool] = False
    selects: ClassVar[type[Cut] | type[Bits]] = Cut
    moving: ClassVar[torch.Tensor | None] = None  # of a rule made by with_keep or with_drop: what moved() returns

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        known = _DEFINED.setdefault(cls.__name__, {})
        if not _ours(cls) and any(_ours(other) for other in known.values()):
            raise TypeError(
                f"rule: a state_dict knows a rule by its name, and {cls.__name__} is one of {_PACKAGE}'s; expected "
                "another name"
            )
        known[cls.__module__, cls.__qualname__] = cls

    def check(self, shape: torch.Size) -> None:
        """Raises ValueError where a weight of ``shape`` cannot be masked by this rule."""

    def settled(self) -> "Rule":
        """The rule of evaluation, of ``layer.mask()`` and of what is kept for good."""
        return self

    def select(self, scores: torch.Tensor, ops: Ops) -> Selection:
        """The selection of one layer, under a rule that does not rank.

        scores: float32, any strides, detached; ops: the module of this package's operators.
        """
        raise TypeError(f"rule: {self} selects nothing by itself")

    def kept(self, numel: int) -> int:
        """The number of scores out of ``numel`` that are kept, before ties at the cut; of a rule that ranks."""
        raise TypeError(f"rule: {self} ranks nothing")

    def cut(self, data: torch.Tensor, numel: int) -> Cut:
        """The cut of a layer of ``numel`` scores where ``data`` is what ``ops.select`` found for it; of a rule that
        ranks."""
        raise TypeError(f"rule: {self} ranks nothing")

    def moved(self) -> torch.Tensor:
        """The fraction removed as a float64 scalar on the CPU, for a compiled forward; of a rule that ranks."""
        raise TypeError(f"rule: {self} ranks nothing")

    def cuts(self, scores: list[torch.Tensor], ops: Ops) -> list[Cut]:
        """One cut for each of the layers that are ranked together; of a rule that ranks them so."""
        raise TypeError(f"rule: {self} ranks no layers together")

    def share(self, scores: torch.Tensor) -> float | None:
        """The fraction of these scores that is kept, or expected to be; None where only a selection can tell."""
        return None

    def with_keep(self, keep: float) -> "Rule":
        """This rule with another fraction to keep. Raises ValueError for a rule without one."""
        raise ValueError(f"keep: this layer's rule, {self}, has none to set")

    def with_drop(self, drop: float) -> "Rule":
        """This rule with another fraction to remove. Raises ValueError for a rule without one."""
        raise ValueError(f"drop: this layer's rule, {self}, has none to set")


def keeps_best(rule: Rule | type[Rule]) -> bool:
    """Whether a rule keeps the best-ranked scores, of a layer or of groups: a fraction that it names, and of weights
    too that score themselves."""
    return rule.ranks or rule.grouped


def sets_keep(rule: Rule) -> bool:
    """Whether a rule has a fraction to set: whether ``with_keep`` makes another of it."""
    return type(rule).with_keep is not Rule.with_keep


def _ours(kind: type[Rule]) -> bool:
    return kind.__module__.startswith(f"{_PACKAGE}.")


def defined(name: str) -> type[Rule] | None:
    """The class of a user's rules that is called ``name``, where one is. Raises ValueError where several are."""
    found = [kind for kind in _DEFINED.get(name, {}).values() if not _ours(kind)]
    if len(found) > 1:
        places = " and ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in found)
        raise ValueError(f"rule: expected one class of rules called {name}, got {places}")
    return found[0] if found else None


def checked_of(of: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError for an ``of`` that is not allowed."""
    if of not in allowed:
        raise ValueError(f"of: expected one of {', '.join(map(repr, allowed))}, got {of!r}")
