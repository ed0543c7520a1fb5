"""Interleaved timing, and its hand-over to pytest-benchmark.

On a machine that others use too, two columns timed one after the other differ by the machine's mood. Here the columns
of a row take turns, in a shuffled order, so that mood and cache contents are shared; only ratios of medians within one
row mean anything. pytest-benchmark then receives each column's samples through a clock that replays them.
"""

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from edgepop_kernels.tuning.roofline import Work
from edgepop_kernels.tuning.timing import cold_seconds, scratch

MIN_ROUNDS, MAX_ROUNDS = 5, 40
SHORTEST_SAMPLE_S = 1e-4  # a call below this is repeated within its sample: perf_counter and the loop cost 0.2 us


@dataclass(frozen=True)
class Contest:
    """One row of the table: a check that must pass first, the calls to compare, and the work each of them does."""

    check: Callable[[], None]
    columns: dict[str, Callable[[], object]]
    flops: float = 0.0  # of one call, multiplications and additions, those with padding too
    kernels: list[tuple[Work, str]] = field(default_factory=list)  # what one call must do at least, in which precision


def _cpu_sample(call, repeat):
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def interleave(
    columns: dict[str, Callable], device: torch.device, budget_s: float, launches: bool = False, seed: int = 0
) -> dict[str, list[float]]:
    """Seconds of each sample of each column; a column gets about ``budget_s``, its rounds spread over all rounds.

    launches: whether a GPU's time includes the host's, where that is longer.
    On a machine that turns slow under way, rounds end early once every column has had MIN_ROUNDS.
    """
    if device.type == "cuda":
        emptied = scratch(device)

        def sample(call, repeat):
            return cold_seconds(call, emptied, launches)
    else:
        sample = _cpu_sample
    rounds, repeat = {}, {}
    for name, call in columns.items():
        call()  # compiles, allocates, and gives a warm start its hint
        once = max(min(sample(call, 1) for _ in range(2)), 1e-7)
        repeat[name] = max(1, round(SHORTEST_SAMPLE_S / once)) if device.type == "cpu" else 1
        rounds[name] = min(max(int(budget_s / (once * repeat[name])), MIN_ROUNDS), MAX_ROUNDS)

    samples = {name: [] for name in columns}
    shuffle = random.Random(seed).shuffle
    total = max(rounds.values())
    deadline = time.perf_counter() + 3 * budget_s * len(columns)
    gc.collect()
    gc.disable()
    try:
        for turn in range(total):
            due = [n for n, r in rounds.items() if (turn + 1) * r // total > turn * r // total]
            shuffle(due)
            if time.perf_counter() > deadline and min(map(len, samples.values())) >= MIN_ROUNDS:
                break
            for name in due:
                samples[name].append(sample(columns[name], repeat[name]))
    finally:
        gc.enable()
    return samples


_replayed = 0.0


def replayed_seconds() -> float:
    """The timer given to pytest-benchmark: it stands still but for what ``replay`` adds."""
    return _replayed


def replay(benchmark, samples: list[float]) -> None:
    """Enter ``samples`` as the rounds of this benchmark."""
    remaining = iter(samples)

    def one_round():
        global _replayed
        _replayed += next(remaining)

    benchmark.pedantic(one_round, rounds=len(samples))
