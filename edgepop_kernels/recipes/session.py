"""The trainings of one comparison, one after the other: what the finished ones found, what later ones start from.

A recipe names each training and says how it is done. A session that knows its outcome from an earlier process gives
that instead: so a recipe reads as if it ran through, and continues where it was killed. ``Session`` remembers in
memory, ``comparison.Saved`` in a run folder.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from .errors import NotFinite, UserError

# Tensors by name, of one layer each or of a whole network.
Left = dict[str, Tensor | dict[str, Tensor]]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a training: accuracies, fractions after each epoch.

    train: over the epoch's own batches, as they were trained on; validation: of the images that are held out, empty
    where none are; layers: (name, weights kept, weights) of the masked ones; before: the test accuracy of the first
    weights, None where nobody asked for it. Where tasks are learned, of each so far, once this one was: inferred, the
    test accuracy with the task inferred; found, the share of test batches whose task that was.
    """

    train: list[float]
    test: list[float]
    validation: list[float] = field(default_factory=list)
    layers: list[tuple[str, int, int]] = field(default_factory=list)
    before: float | None = None
    inferred: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return sum(kept for _, kept, _ in self.layers)

    @property
    def weights(self) -> int:
        return sum(weights for _, _, weights in self.layers)


class Session:
    """``finished``: the outcomes by the names of their trainings, in the order of training."""

    def __init__(self):
        self.finished: dict[str, Outcome] = {}
        self.left: dict[str, Left] = {}
        self.lasting: set[str] = set()

    def training(self, name: str, train: Callable[[], tuple[Outcome, Left]], *, lasting: bool = False) -> Left:
        """Does a training, where it is not done yet, and returns what it left for later ones to start from.

        train: gives outcome and what is left; what it draws and starts from is read inside it, for it alone is left
        out where the outcome is known. What is left is there until the next training is finished, or with ``lasting``
        to the end; after that an empty dict is returned.
        """
        if name in self.finished:
            self.known(name)
        else:
            self.begin(name)
            try:
                outcome, left = train()
            except NotFinite as error:
                raise self.failed(name, error) from error
            self.left = {other: kept for other, kept in self.left.items() if other in self.lasting} | {name: left}
            self.lasting |= {name} if lasting else set()
            self.finished[name] = outcome
            self.end(name)
        return self.left.get(name, {})

    def known(self, name: str) -> None:
        """Called where the training ``name`` is done already."""

    def begin(self, name: str) -> None:
        """Called before a training."""

    def failed(self, name: str, error: NotFinite) -> UserError:
        """The error to raise where a loss of the training ``name`` was no number."""
        return UserError(f"{name}: {error}")

    def end(self, name: str) -> None:
        """Called after a training, whose outcome is the last of ``finished``."""

    def begun(self) -> dict | None:
        """The state in which an earlier process left the current training after some step, None where it begins."""
        return None

    def step(self, epoch: int, step: int, steps: int, state: Callable[[], dict]) -> None:
        """Called after each: ``step`` of ``steps`` steps of the epoch after ``epoch`` whole ones are done.

        state: gives what ``begun`` would have to return for the training to go on from here. Raises Interrupted.
        """
