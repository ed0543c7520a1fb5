"""Step time of the fused path and of the reference path, measured side by side on a copy of the network."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

import edgepop_kernels as ek

from .data import Part
from .trainer import Trainer, make_network, make_optimizer, train_step

WARMUP_ROUNDS = 3
LEAST_ROUNDS = 5
MOST_ROUNDS = 50
SECONDS = 3.0  # no new round after this long: a slow reference must not hold up the summary


def step_times(trainer: Trainer, backends: list[str]) -> dict[str, float]:
    """Median seconds of a whole training step (forward, backward, optimizer) of this process, with each backend.

    One step of every backend per round, so that a slow spell of the machine meets all of them. The steps run on copies,
    one for each backend: the trained network is not touched, and no backend's selection serves another.
    """
    recipe = trainer.recipe
    steps = {name: partial(train_step, recipe, *_copy(trainer)) for name in backends}
    batches = _forever(trainer)
    seconds = {name: [] for name in backends}
    started = time.perf_counter()
    for round_number in range(WARMUP_ROUNDS + MOST_ROUNDS):
        parts = next(batches)
        for name in backends:
            with ek.use_backend(name):
                spent = _timed(trainer.device, partial(steps[name], parts))
            if round_number >= WARMUP_ROUNDS:
                seconds[name].append(spent)
        if time.perf_counter() - started > SECONDS and round_number + 1 >= WARMUP_ROUNDS + LEAST_ROUNDS:
            break
    return {name: statistics.median(spent) for name, spent in seconds.items()}


def _copy(trainer):
    """The network as it was trained, in training, and a new optimizer of it."""
    model = make_network(trainer.recipe, trainer.data, trainer.device)
    model.load_state_dict(trainer.model.state_dict())
    model.train()
    return model, make_optimizer(trainer.recipe, model)


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
