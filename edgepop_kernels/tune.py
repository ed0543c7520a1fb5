"""``edgepop tune``: finds the tiles of this machine's GPU and writes its table.

For every product that the workloads launch, tiles are tried from the present one on. A candidate must compile without
spills and compute what the reference computes; only then it is timed, with a cold L2. The table is written anew after
every product, so a run that is stopped keeps what it found.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from . import reference
from .backend import triton
from .rules import kept_count
from .testing.tolerances import RELATIVE_BOUND, relative_error
from .tuning import Problem, Tile
from .tuning.search import best_tile
from .tuning.table import read_table, table_file, write_table
from .tuning.timing import cold_seconds, scratch
from .tuning.workloads import WORKLOADS, Conv, Linear

_SAMPLES = 15
_KEEP = 0.5
_FAILED_PASS = "PassManager::run failed"  # all that triton says of a pass of its compiler that gave up
Call = tuple[str, tuple]  # an op's name and its arguments


def unavailable() -> str | None:
    """Why this machine cannot be tuned."""
    reason = triton.unavailable()
    if reason is None and not torch.cuda.is_available():
        reason = "tiles are timed on a GPU, and torch sees no CUDA device"
    return reason


def tune(
    output: Path | None = None,
    only: str = "",
    minutes: float = math.inf,
    *,
    workloads: list[Linear | Conv] = WORKLOADS,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | None = None,
    timer: Callable[[Callable], float] | None = None,
    report: Callable[[str], None] = print,
) -> dict[Problem, Tile]:
    """Tunes the products of ``workloads`` and returns the table, which is written to ``output``.

    output   default: this package's table of the device; entries that it has and that are not tuned again stay
    only     tunes the workloads in whose text this occurs, as in "Linear" or "size=56"
    minutes  no product is begun after so many
    timer    seconds of one call; default: the median of cold samples on the device

    Raises RuntimeError where triton is missing or cannot run.
    """
    missing = triton.unavailable()
    if missing is not None:
        raise RuntimeError(f"tune: {missing}")
    from .backend.triton import launch  # imports triton

    device = torch.device("cuda", torch.cuda.current_device()) if device is None else device
    timer = timer or _timer(device)
    output = output or table_file(launch.device_of(device).name)
    entries, tuned = read_table(output), set()
    write_table(output, entries)  # where that fails, it fails now
    end = time.monotonic() + 60 * minutes
    for workload in (w for w in workloads if only in str(w)):
        for call in calls(workload, dtype, device):
            for problem, start in asked(call).items():
                if problem in tuned or time.monotonic() > end:
                    continue
                tuned.add(problem)
                judge = Judge(call, problem, timer)
                tile, seconds = best_tile(start, judge)
                gain = judge.seconds[start] / seconds
                entries[problem] = tile
                write_table(output, entries)
                report(f"{workload} {call[0]}: {seconds * 1e6:.1f} us, {gain:.2f}x of before, {problem} {tile}")
    return entries


def calls(workload: Linear | Conv, dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    """The ops of a layer's training step, float32 weights, activations of ``dtype``."""

    def drawn(shape, kind=dtype):
        t = torch.randn(shape, device=device, dtype=kind)
        return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t

    if isinstance(workload, Linear):
        rows, inputs, outputs = workload
        x, dy = drawn((rows, inputs)), drawn((rows, outputs))
        weight, scores = (drawn((outputs, inputs), torch.float32) for _ in range(2))
        op, geometry, forward, backward = "masked_linear", (), (None,), ()
    else:
        batch, channels, size, outputs, kernel, stride, groups = workload
        padding = kernel // 2
        spatial = (size + 2 * padding - kernel) // stride + 1
        x, dy = drawn((batch, channels, size, size)), drawn((batch, outputs, spatial, spatial))
        shape = (outputs, channels // groups, kernel, kernel)
        weight, scores = (drawn(shape, torch.float32) for _ in range(2))
        op, geometry = "masked_conv2d", ((stride, stride), (padding, padding), (1, 1), groups)
        forward, backward = (None, *geometry, True), (x.shape, *geometry, True)
    cut = reference.select([scores], [kept_count(scores.numel(), _KEEP)], ["abs"], None)[0]
    mask = (weight, scores, cut, "abs")
    yield op, (x, *mask, *forward)
    yield f"{op}_dx", (dy, *mask, *backward)
    yield f"{op}_dw", (dy, x, *mask, True, "none", *geometry)


def asked(call: Call) -> dict[Problem, Tile]:
    """The products that a call launches, and the tiles they get."""
    from .backend.triton import launch

    op, args = call
    with launch.trial() as trial:
        getattr(triton, op)(*args)
    return trial.tiles


class Judge:
    """Seconds of a call whose ``problem`` runs with a tile; inf where it cannot, spills, or computes something else."""

    def __init__(self, call: Call, problem: Problem, timer: Callable[[Callable], float]):
        op, args = call
        self.seconds: dict[Tile, float] = {}
        self._problem, self._timer = problem, timer
        self._run = lambda: getattr(triton, op)(*args)
        self._expected = _tensors(getattr(reference, op)(*args))
        # tf32 rounds operands as float16 does.
        self._bound = RELATIVE_BOUND[torch.float16 if problem.precision == "tf32" else args[0].dtype]

    def __call__(self, tile: Tile) -> float:
        self.seconds[tile] = self._judged(tile)
        return self.seconds[tile]

    def _judged(self, tile):
        from triton.compiler.errors import CompilationError
        from triton.runtime.errors import OutOfResources, PTXASError

        from .backend.triton import launch

        with launch.trial({self._problem: tile}) as trial:
            try:
                results = _tensors(self._run())
            except (CompilationError, OutOfResources, PTXASError):
                return math.inf
            except RuntimeError as error:
                if _FAILED_PASS not in str(error):
                    raise
                return math.inf
            spilled = any(binary is not None and binary.n_spills for binary in trial.binaries)
            errors = [relative_error(r, e) for r, e in zip(results, self._expected, strict=True)]
            if spilled or not all(error <= self._bound for error in errors):
                return math.inf
            return self._timer(self._run)


def _tensors(result):
    return [t for t in (result if isinstance(result, tuple) else (result,)) if t.numel()]


def _timer(device):
    emptied = scratch(device)
    return lambda call: statistics.median(cold_seconds(call, emptied) for _ in range(_SAMPLES))
