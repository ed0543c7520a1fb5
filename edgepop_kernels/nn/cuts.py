"""The memory that a layer has of its selections: it need not select again, or starts where the last one ended."""

from collections.abc import Collection

import torch

from .. import capture, torch_private
from ..backend.native import fingerprint
from ..cut import Cut, Selection
from ..rules import Rule


class Cuts:
    """The cuts of one layer. A copy of the layer starts with none: its scores count their writes anew.

    shared    this forward's selection, where the network makes those of all its layers together
    last      the cut of the latest selection: a warm start for the next
    captured  cuts whose memory CUDA graphs read and write
    known     a cut and all that it hangs on: the scores, their version, address and fingerprint, and the rule
    """

    def __init__(self) -> None:
        self.shared: Selection | None = None
        self.last: Cut | None = None
        self.captured: tuple[Cut, ...] = ()
        self.known: tuple[Cut, torch.Tensor, int, int, int, Rule] | None = None

    def learn(self, cut: Cut, scores: torch.Tensor, rule: Rule) -> None:
        """Takes the cut under ``rule`` of ``scores`` as they stand, from who wrote or ranked them.

        It serves until they change. torch counts most writes; of those that it does not see (through ``.data``, by
        other processes, by its own fused optimizers) a few of the scores tell. On a GPU those could be looked at only
        by waiting for it: there the cut is a warm start, exact either way. So it is in a CUDA graph under capture,
        whose replays write scores that nothing counts.
        """
        self.last, self.known = cut, None
        if capture.capturing(scores):
            return
        seen = fingerprint(scores)
        if seen is not None:
            self.known = cut, scores, torch_private.version(scores), scores.data_ptr(), seen, rule

    def of(self, scores: torch.Tensor, rule: Rule) -> Cut | None:
        """The cut of ``scores`` under ``rule``, where it is known and holds. Not to be asked where torch watches."""
        if self.known is None:
            return None
        cut, known_scores, version, address, seen, known_rule = self.known
        if scores is not known_scores:
            return None
        same_rule = rule is known_rule or rule == known_rule  # mostly the very one, and dataclasses compare slowly
        stands = same_rule and torch_private.version(scores) == version and scores.data_ptr() == address
        if stands and fingerprint(scores) == seen:
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
    """The cuts of layers that are ranked together, by their rule: each holds while the scores of all of them stand."""

    def __init__(self) -> None:
        self.known: dict[Rule, list[Cuts]] = {}

    def learn(self, cuts: list[Cut], scores: list[torch.Tensor], rule: Rule, rules: Collection[Rule]) -> None:
        """Takes the cuts under ``rule`` of ``scores`` as they stand. rules: all there are; others are dropped."""
        self.known = {other: known for other, known in self.known.items() if other in rules}
        self.known[rule] = [Cuts() for _ in cuts]
        for known, cut, ranked in zip(self.known[rule], cuts, scores, strict=True):
            known.learn(cut, ranked, rule)

    def of(self, scores: list[torch.Tensor], rule: Rule) -> list[Cut] | None:
        """The cuts of ``scores`` under ``rule``, where they are known and hold. Not to be asked where torch watches."""
        known = self.known.get(rule, [])
        if len(known) != len(scores):
            return None
        cuts = []
        for one, ranked in zip(known, scores, strict=True):
            cut = one.of(ranked, rule)
            if cut is None:
                return None
            cuts.append(cut)
        return cuts
