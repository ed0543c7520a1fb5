"""Accuracy of every method on the embedded digits beside what plain PyTorch reaches with the same settings.

`make accuracy`: on every core a process of one thread takes the next training; a seed's number depends neither on how
many there are nor on which of them takes it. Exit code 1 where a mean is further from its target than is allowed, 130
where Ctrl-C ends it. The targets were measured with unfused code written for that purpose.
"""

import argparse
import functools
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Table

from edgepop_kernels.recipes import data, registry
from edgepop_kernels.recipes.bayesian_tickets import BayesianTickets
from edgepop_kernels.recipes.interrupt import Stop
from edgepop_kernels.recipes.trainer import Trainer


@dataclass(frozen=True)
class Row:
    """A recipe with settings of its own; target and the difference from it that is allowed, in percentage points."""

    name: str
    recipe: str
    target: float
    allowed: float
    settings: dict = field(default_factory=dict)


ROWS = (
    Row("dense", "dense-digits", 93.4, 1.0),
    Row("edge-popup, keep 0.5", "edge-popup-digits", 91.1, 1.0),
    Row("edge-popup, keep 0.1, scaled", "edge-popup-digits", 92.3, 1.2, {"keep": 0.1, "scale": "paper"}),
    Row("neural wirings, keep 0.1", "wirings-digits", 92.7, 1.2),
    Row("supermask, threshold", "supermask-digits", 87.5, 2.0),
    Row("supermask, Bernoulli", "supermask-bernoulli-digits", 87.7, 2.0),
)
TICKETS = BayesianTickets()
# They have no target of their own: keeping 20 % by low variance is to be so many points ahead.
TICKET_GAP = 5.0
LOW, HIGH = (f"tickets, keep 0.2 by {criterion}" for criterion in ("low variance", "high variance"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=positive, default=5, help="of each row, from 0 (default: 5)")
    parser.add_argument("--processes", type=positive, default=cores(), help="at once (default: one for each core)")
    asked = parser.parse_args(arguments)
    found = {}
    try:
        for name, seed, accuracy in measured(asked.seeds, asked.processes):
            found.setdefault(name, {})[seed] = accuracy
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    table, good = judged(found, asked.seeds)
    Console(width=110).print(table)
    return 0 if good else 1


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def measured(seeds: int, processes: int):
    """(row, seed, accuracy in percent) as each is found; says so, and how much of all is done."""
    runs = [functools.partial(trained, row, seed) for row in ROWS for seed in range(seeds)]
    runs += [functools.partial(tickets, TICKETS, seed) for seed in range(seeds)]
    processes = min(processes, len(runs))
    print(f"{len(runs)} runs, {processes} at once, each on 1 thread", flush=True)
    start = time.monotonic()
    spawned = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(processes, spawned, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(run): run.args[1] for run in runs}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                seed, accuracies = futures[future], future.result()
                minutes, seconds = divmod(round(time.monotonic() - start), 60)
                shown = "; ".join(f"{row} {accuracy:.1f} %" for row, accuracy in accuracies.items())
                print(f"{done:3} of {len(runs)}, {minutes}:{seconds:02}  seed {seed}: {shown}", flush=True)
                yield from ((row, seed, accuracy) for row, accuracy in accuracies.items())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@functools.cache
def digits():
    return data.load("digits", None)


def trained(row: Row, seed: int) -> dict[str, float]:
    """Test accuracy after the last epoch."""
    recipe = registry.find(row.recipe).recipe.override(seed=seed, **row.settings)
    trainer = Trainer(recipe, digits(), torch.device("cpu"))
    with Stop() as stop:
        while trainer.epoch < recipe.epochs and trainer.train_epoch(stop, lambda: None):
            pass
    if stop.requested:
        raise KeyboardInterrupt
    return {row.name: 100 * trainer.history[-1]["test_accuracy"]}


def tickets(recipe: BayesianTickets, seed: int) -> dict[str, float]:
    """Test accuracies after the last epoch: of the posterior, the whole network, and that masked by each criterion."""
    criteria = ["low_variance", "high_variance"]
    variants = recipe.override(seed=seed).tickets(digits(), torch.device("cpu"), criteria).variants
    return {f"tickets, {name.replace('_', ' ')}": 100 * outcome.test[-1] for name, outcome in variants.items()}


def judged(found: dict[str, dict[int, float]], seeds: int) -> tuple[Table, bool]:
    """The table of all rows, and whether every mean is where it should be."""
    means = {name: statistics.mean(by_seed.values()) for name, by_seed in found.items()}
    goals = {row.name: (f"{row.target}", f"{row.allowed}") for row in ROWS}
    goals[HIGH] = (f"{TICKET_GAP} below low", "or more")
    good = {row.name: abs(means[row.name] - row.target) <= row.allowed for row in ROWS}
    good[HIGH] = means[LOW] - means[HIGH] >= TICKET_GAP
    table = Table("method", "mean, %", f"std of {seeds} seeds", "target, %", "allowed difference", "")
    for name in [*(row.name for row in ROWS), *(name for name in found if name.startswith("tickets, "))]:
        deviation = f"{statistics.stdev(found[name].values()):.1f}" if seeds > 1 else ""
        verdict = {None: "", True: "ok", False: "outside"}[good.get(name)]
        table.add_row(name, f"{means[name]:.1f}", deviation, *goals.get(name, ("", "")), verdict)
    return table, all(good.values())


if __name__ == "__main__":
    sys.exit(main())
