"""The processes that train one network together, as ``torchrun`` starts them: each computes its share of every batch.

Every process holds the network and takes the same steps; rank 0 alone writes files and speaks. Alone, a process is the
world of size 1, and each method here is only what its name says.
"""

import contextlib
import os
import shlex
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .data import Share
from .errors import UserError

T = TypeVar("T")
_wrapped: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def leads() -> bool:
    """Whether this process speaks: rank 0, or alone; and where RANK is no number, for then it says that."""
    rank = os.environ.get("RANK", "0")
    return "WORLD_SIZE" not in os.environ or not rank.isdecimal() or int(rank) == 0


@dataclass(frozen=True)
class World:
    """rank of this process, among ``size``; local_rank, among the ``local_size`` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def command(self) -> str:
        """The command that starts this program in such a world."""
        alone = self.size == 1
        return "edgepop" if alone else f"torchrun --nproc-per-node {self.local_size} -m edgepop_kernels"

    def resumption(self, run: Path) -> str:
        """The command to go on with a run, for a sentence."""
        return f"continue with `{self.command} train --resume {shlex.quote(str(run))}`"

    def share(self, accumulate: int) -> Share:
        """Each process computes ``accumulate`` neighbouring parts of every batch, one after the other."""
        return Share(self.size * accumulate, self.rank * accumulate, accumulate)

    def lead(self, action: Callable[[], T]) -> T:
        """Does ``action`` on rank 0 alone, and returns what it returns there; a UserError of it is raised on every
        rank."""
        if self.size == 1:
            return action()
        outcome = [None, None]
        if self.rank == 0:
            with _kept(outcome):
                outcome[0] = action()
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def each(self, action: Callable[[], T]) -> T:
        """Does ``action`` on every rank, and returns what it returns here; a UserError of one is raised on all."""
        outcome = [None, None]
        with _kept(outcome):
            outcome[0] = action()
        self.agree(outcome[1])
        return outcome[0]

    def agree(self, error: UserError | None, stop: bool = False) -> bool:
        """Whether any rank is to stop; where one has an error, all raise it. Ranks that did not would wait for ever."""
        if self.size == 1:
            if error is not None:
                raise error
            return stop
        worst = max(self.gather(torch.tensor(2 if error is not None else int(stop))))
        if worst == 2:
            errors = [None] * self.size
            dist.all_gather_object(errors, error)
            raise next(filter(None, errors))
        return bool(worst)

    def gather(self, value: torch.Tensor) -> list[torch.Tensor]:
        """The tensors that the ranks hold under this name, alike in shape; in the order of ranks, on the CPU."""
        values = [value.cpu()]
        if self.size > 1:
            values = [torch.empty_like(values[0]) for _ in range(self.size)]
            dist.all_gather(values, value.cpu())
        return values

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network to call for a training step: its gradients are summed over all ranks before the optimizer's step.

        Batch norm normalises each part by itself, as torch's does; its running statistics are those of rank 0.
        """
        if self.size == 1:
            return model
        parallel = DistributedDataParallel(model)
        parallel.register_comm_hook(None, _sum)
        _wrapped.add(parallel)
        return parallel

    def held(self, parallel: nn.Module, hold: bool) -> contextlib.AbstractContextManager:
        """While entered with ``hold``, gradients of the wrapped network only add up here; the ranks sum them later."""
        return parallel.no_sync() if hold and self.size > 1 else contextlib.nullcontext()

    def spread_buffers(self, model: nn.Module) -> None:
        """Rank 0's buffers on every rank, as before each training step: all evaluate the network that is saved."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


@contextlib.contextmanager
def join() -> Iterator[World]:
    """The world that torchrun's environment variables describe, while entered; alone without them. Raises UserError."""
    if "WORLD_SIZE" not in os.environ:
        yield World()
        return
    world = _described()
    if world.size == 1 or (dist.is_available() and dist.is_initialized()):
        yield world  # alone, or joined already
        return
    if not dist.is_available():
        raise UserError(f"this torch is built without torch.distributed: {world.size} processes cannot train together")
    # Two libraries in one group: gloo for what the host decides, so that a step never waits for the GPU to say it.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield world
    finally:
        leave()


def leave() -> None:
    """Leaves the group of processes; networks that were wrapped in it cannot train together any more.

    They let go of it first, so that the group's threads end here. One that is still about to drop its last sum wants
    Python's lock: a reducer that is the last to hold the group would wait for it with the lock in its hand, and a
    network that holds the group while Python ends would have it ask for a lock that is gone, which aborts the process.
    """
    for parallel in _wrapped:
        parallel.reducer = parallel.logger = parallel.process_group = None
    dist.destroy_process_group()


def _described() -> World:
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is set but not {', '.join(missing)}: start several processes with torchrun --nproc-per-node N "
            "-m edgepop_kernels train, one without WORLD_SIZE"
        )
    numbers = {}
    for name in (*_VARIABLES[:4], "MASTER_PORT"):
        value = os.environ[name]
        if not value.isdecimal():
            raise UserError(f"{name}: expected a whole number, as torchrun sets it, got {value!r}")
        numbers[name] = int(value)
    for name, of in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if numbers[name] >= numbers[of]:
            raise UserError(f"{name}: expected less than {of}={numbers[of]}, as torchrun sets it, got {numbers[name]}")
    if not 0 < numbers["MASTER_PORT"] < 65536:
        raise UserError(f"MASTER_PORT: expected 1 to 65535, got {numbers['MASTER_PORT']}")
    return World(*(numbers[name] for name in _VARIABLES[:4]))


@contextlib.contextmanager
def _kept(outcome: list) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        outcome[1] = error


def _sum(_, bucket) -> torch.futures.Future[torch.Tensor]:
    """Adds gradients where torch averages: each part's loss is weighted by its share of the batch already."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
