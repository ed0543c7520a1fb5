"""Timing on a GPU whose L2 holds nothing of the operands, as in a network whose layers come one after the other."""

from collections.abc import Callable

import torch

_EMPTIED = 2**28  # bytes: more than the L2 of any GPU
_AHEAD = 2_000_000  # cycles, about 1 ms: the host's time to launch a layer's forward and backward


def scratch(device: torch.device) -> torch.Tensor:
    """The memory that ``cold_seconds`` overwrites."""
    return torch.empty(_EMPTIED, dtype=torch.uint8, device=device)


def cold_seconds(call: Callable, emptied: torch.Tensor, launches: bool = False) -> float:
    """One sample of ``call``: from its first kernel to its last.

    The device, that of ``emptied``, sleeps until the host has launched them all; with ``launches`` it does not, and
    where the host is slower than the kernels it is the host that is timed.
    """
    with torch.cuda.device(emptied.device):  # whose stream sleeps, and records
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        emptied.zero_()
        if not launches:
            torch.cuda._sleep(_AHEAD)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
