"""The memory that a layer has of its selections: it need not select again, or starts where the last one ended."""

from collections.abc import Collection, Sequence

import torch

from .. import capture, torch_private
from ..backend.native import fingerprint
from ..cut import Cut, Selection
from ..rules import Rule


class Standing:
    """Scores as they stood when this was made.

    torch counts most writes; of those that it does not see (through ``.data``, by other processes, by its own fused
    optimizers) a few of the scores tell. On a GPU those could be looked at only by waiting for it: nothing ``holds``.
    """

    __slots__ = ("look", "seen", "stood")

    def __init__(self, scores: Sequence[torch.Tensor]) -> None:
        self.stood = []
        self.look = fingerprint(scores)
        if self.look is not None:
            self.seen = self.look()
            for s in scores:
                self.stood.append((s, torch_private.version(s), s.data_ptr(), s.shape, s.stride()))

    def holds(self, scores: Sequence[torch.Tensor]) -> bool:
        """Whether these are the very scores, unwritten. Not to be asked where torch watches."""
        if len(scores) != len(self.stood):
            return False
        for s, (stood, version, address, size, stride) in zip(scores, self.stood, strict=True):
            if s is not stood or torch_private.version(s) != version or s.data_ptr() != address:
                return False
            if s.shape != size or s.stride() != stride or s.is_neg():  # through .data, at the same address
                return False
        return self.look is not None and self.look() == self.seen


class Cuts:
    """The cuts of one layer. A copy of the layer starts with none: its scores count their writes anew.

    shared    this forward's selection, where the network makes those of all its layers together
    last      the cut of the latest selection: a warm start for the next
    captured  cuts whose memory CUDA graphs read and write
    known     a cut and all that it hangs on: the scores as they stood, and the rule
    """

    def __init__(self) -> None:
        self.shared: Selection | None = None
        self.last: Cut | None = None
        self.captured: tuple[Cut, ...] = ()
        self.known: tuple[Cut, torch.Tensor, Standing, Rule] | None = None

    def learn(self, cut: Cut, scores: torch.Tensor, rule: Rule) -> None:
        """Takes the cut under ``rule`` of ``scores`` as they stand, from who wrote or ranked them.

        It serves until they change; where that cannot be told, it is a warm start, exact either way. So it is in a CUDA
        graph under capture, whose replays write scores that nothing counts.
        """
        self.last, self.known = cut, None
        if not capture.capturing(scores):
            self.known = cut, scores, Standing([scores]), rule

    def of(self, scores: torch.Tensor, rule: Rule) -> Cut | None:
        """The cut of ``scores`` under ``rule``, where it is known and holds. Not to be asked where torch watches."""
        if self.known is None:
            return None
        cut, known_scores, standing, known_rule = self.known
        if scores is not known_scores:
            return None
        # Mostly the very rule, and dataclasses compare slowly.
        if (rule is known_rule or rule == known_rule) and standing.holds((scores,)):
            return cut
        self.known = None
        return None

    def start_from(self, selection: Selection, scores: torch.Tensor, rule: Rule, *, stays: bool) -> None:
        """Takes the selection that a forward made; stays: whether the scores are expected to be as they are in the next
        (in evaluation), so that it pays to ask."""
        if not isinstance(selection, Cut):
            self.last = None
        elif capture.capturing(scores):
            self._hand_on(selection, rule)
        elif stays and not rule.together:
            self.learn(selection, scores, rule)
        else:
            self.last = selection

    def _hand_on(self, cut: Cut, rule: Rule) -> None:
        # Where this selection, of a CUDA graph, took its hint from: memory that the layer holds from then on. What a
        # replay selects is the start of the next replay.
        hint = self.hint(rule)
        if hint is not None:
            hint.data.copy_(cut.data)
            self.captured += (hint,)

    def hint(self, rule: Rule) -> Cut | None:
        """The last cut, where it can start the next selection under ``rule``."""
        last = self.last
        return last if last is not None and rule.ranks and last.of == rule.of else None

    def forget(self) -> None:
        """Drops what earlier selections say."""
        self.known = self.last = None

    def __deepcopy__(self, memo: object) -> "Cuts":
        return Cuts()

    def __reduce__(self) -> tuple[type["Cuts"], tuple[()]]:
        return Cuts, ()


class CutsTogether:
    """The cuts of layers that are ranked together, by their rule: each holds while the scores of all of them stand. A
    copy starts with none."""

    def __init__(self) -> None:
        self.known: dict[Rule, tuple[list[Cut], Standing]] = {}

    def learn(self, cuts: list[Cut], scores: list[torch.Tensor], rule: Rule, rules: Collection[Rule]) -> None:
        """Takes the cuts under ``rule`` of ``scores`` as they stand. rules: all there are; others are dropped."""
        self.known = {other: known for other, known in self.known.items() if other in rules and other != rule}
        if not any(map(capture.capturing, scores)):
            self.known[rule] = cuts, Standing(scores)

    def of(self, scores: list[torch.Tensor], rule: Rule) -> list[Cut] | None:
        """The cuts of ``scores`` under ``rule``, where they are known and hold. Not to be asked where torch watches."""
        cuts, standing = self.known.get(rule, ([], None))
        return cuts if standing is not None and standing.holds(scores) else None

    def __deepcopy__(self, memo: object) -> "CutsTogether":
        return CutsTogether()

    def __reduce__(self) -> tuple[type["CutsTogether"], tuple[()]]:
        return CutsTogether, ()
