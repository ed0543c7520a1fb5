"""Step times of a trained network and of what it is compared with, measured side by side on copies."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

import edgepop_kernels as ek

from .data import Part
from .masks import masked_layers
from .trainer import Trainer, make_network, make_optimizer, train_step
from .unfused import authors_name, unfused

SECONDS = 10.0  # for everything: a measurement must not hold up what comes after the training
WARMUP_ROUNDS = 3  # or a quarter of the time, but one at least
MOST_ROUNDS = 50
BUSY = 0.2  # the machine is called so where the middle half of a column's times is wider than this share of the median

Quartiles = tuple[float, float, float]  # a quarter of the values lie below the first; the second is the median


@dataclass(frozen=True)
class StepTimes:
    """Seconds of whole training steps by column, one for each round; the first column is the run's own."""

    seconds: dict[str, list[float]]

    @property
    def own(self) -> str:
        return next(iter(self.seconds))

    @property
    def rounds(self) -> int:
        return len(self.seconds[self.own])

    def quartiles(self) -> dict[str, Quartiles]:
        return {name: _quartiles(spent) for name, spent in self.seconds.items()}

    def ratios(self) -> dict[str, Quartiles]:
        """The other columns' times in multiples of the run's own, compared within each round."""
        own = self.seconds[self.own]
        return {
            name: _quartiles([theirs / ours for theirs, ours in zip(spent, own, strict=True)])
            for name, spent in self.seconds.items()
            if name != self.own
        }

    @property
    def busy(self) -> bool:
        return any(high - low > BUSY * median for low, median, high in self.quartiles().values())

    def to_dict(self) -> dict:
        return {
            "own": self.own,
            "rounds": self.rounds,
            "seconds_quartiles": self.quartiles(),
            "times_own_quartiles": self.ratios(),
            "busy_machine": self.busy,
        }


def measure(trainer: Trainer) -> StepTimes | None:
    """Times of forward, backward and optimizer of this process in up to SECONDS; None where they were too few for a
    round after the first, which warms up.

    Columns: the run's backend; the reference; where the masks are those of GetSubnet or ChooseEdges, the authors' way
    with torch's own optimizer. One step of each per round, so that a slow spell of the machine meets all of them. The
    steps run on copies: the trained network is not touched, and no column's selection serves another. Rounds and steps
    are not begun where, going by the last ones, they would end too late.
    """
    started = time.perf_counter()
    columns = _columns(trainer)
    batches = _forever(trainer)
    rounds, last = [], {}
    for number in range(WARMUP_ROUNDS + MOST_ROUNDS):
        warms_up = number == 0 or (number < WARMUP_ROUNDS and time.perf_counter() - started < SECONDS / 4)
        parts, spent = next(batches), {}
        for name, step in columns.items():
            # A column that has not had its turn is expected to take as long as the longest that has.
            longest = max(last.values(), default=0.0)
            to_come = sum(last.get(other, longest) for other in columns if other not in spent)
            if time.perf_counter() - started + to_come > SECONDS:
                return _found(rounds)
            spent[name] = last[name] = _timed(trainer.device, lambda step=step, parts=parts: step(parts))
        if not warms_up:
            rounds.append(spent)
    return _found(rounds)


def _found(rounds: list[dict[str, float]]) -> StepTimes | None:
    return StepTimes({name: [spent[name] for spent in rounds] for name in rounds[0]}) if rounds else None


def _columns(trainer: Trainer) -> dict[str, Callable[[list[Part]], torch.Tensor]]:
    """The functions that take one step on a batch, by name of the column."""
    recipe = trainer.recipe
    if not masked_layers(trainer.model):
        return {"dense": _step(trainer, _copy(trainer), recipe.backend)}
    columns = {name: _step(trainer, _copy(trainer), name) for name in dict.fromkeys([recipe.backend, "reference"])}
    authors = authors_name(trainer.model)
    if authors is not None:
        columns[authors] = _step(trainer, unfused(_copy(trainer)), recipe.backend, recipe.optimizer.split("-")[-1])
    return columns


def _step(trainer, model, backend, optimizer=None):
    recipe = trainer.recipe if optimizer is None else trainer.recipe.override(optimizer=optimizer)
    steps = make_optimizer(recipe, model)

    def step(parts: list[Part]) -> torch.Tensor:
        with ek.use_backend(backend):
            return train_step(recipe, model, steps, parts)

    return step


def _copy(trainer: Trainer) -> nn.Module:
    """The network as it was trained, in training."""
    model = make_network(trainer.recipe, trainer.data, trainer.device)
    model.load_state_dict(trainer.model.state_dict())
    return model.train()


def _forever(trainer: Trainer) -> Iterator[list[Part]]:
    epoch = 0
    while True:
        yield from trainer.batches.parts(epoch, share=trainer.share)
        epoch += 1


def _timed(device: torch.device, step: Callable[[], object]) -> float:
    _synchronize(device)
    started = time.perf_counter()
    step()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _quartiles(values: list[float]) -> Quartiles:
    # Of one value statistics.quantiles makes none before Python 3.13.
    return tuple(statistics.quantiles(values, n=4, method="inclusive")) if len(values) > 1 else tuple(values * 3)
