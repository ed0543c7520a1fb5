"""Launches the selection of all layers: tables of where the scores lie, then two or three kernels per attempt.

And the packed masks, of a Bernoulli draw or of a cut: one kernel each.
"""

import functools
from typing import NamedTuple

import torch

from ... import capture
from ..memory_order import filling
from .kernels.draw import draw_kernel
from .kernels.mask_bits import mask_bits_kernel
from .kernels.select import BINS, select_compact_kernel, select_finish_kernel, select_histogram_kernel
from .launch import launch

_CHUNK = 32768  # scores a block reads
_TILE = 4096
_WORDS = 16  # of packed bits that a block draws: 1024 weights
_LEAST_CAPACITY = 4096  # candidates of a layer: an eighth of it, at least this many
_captured: set["_Plan"] = set()  # tables that CUDA graphs read: these outlive the cache


class _Layer(NamedTuple):
    """Scores that fill their memory without gaps, as four dimensions from the outermost in memory inwards."""

    offset: int  # in elements, from the first layer's scores
    numel: int
    kept: int
    raw: int
    sizes: tuple[int, ...]
    index_strides: tuple[int, ...]  # of the logical index


class _Plan(NamedTuple):
    layers: torch.Tensor  # int64 [layers, FIELDS]
    chunks: torch.Tensor  # int32 [chunks, 2]: layer, which chunk of it
    candidates: int


def select(scores, kept, of, hint):
    device = scores[0].device
    filled = [filling(s) for s in scores]
    first = filled[0][0]
    plan = _plan(
        tuple(
            _Layer((s.data_ptr() - first.data_ptr()) // 4, s.numel(), m, int(kind != "abs"), *dimensions)
            for (s, dimensions), m, kind in zip(filled, kept, of, strict=True)
        ),
        device,
    )
    if capture.capturing(first):
        _captured.add(plan)
    count = len(scores)
    cuts = torch.empty(count, 2, dtype=torch.int64, device=device)
    zeros = torch.zeros(count * (5 + BINS.value), dtype=torch.int32, device=device)
    done, *counters, histograms = zeros.split([count] * 5 + [count * BINS.value])
    candidates = torch.empty(2, plan.candidates, dtype=torch.int32, device=device)
    if hint is not None:
        _attempt(first, plan, done, histograms, hint.contiguous(), counters[:2], candidates, cuts, last=False)
    _attempt(first, plan, done, histograms, None, counters[2:], candidates, cuts, last=True)
    return cuts


def draw(scores, seed):
    return _packed(draw_kernel, scores, seed)


def mask_bits(scores, cut, of):
    return _packed(mask_bits_kernel, scores, cut.contiguous(), OF="raw" if of == "sigmoid" else of)


def _packed(kernel, scores, argument, **meta):
    scores = scores.contiguous()  # packed bits are in logical order
    words = -(-scores.numel() // 64) + 1  # the last one stays zero
    bits = torch.empty(words * 8, dtype=torch.uint8, device=scores.device)
    operands = (scores, argument, bits.view(torch.int16), scores.numel(), words)
    launch(kernel, (-(-words // _WORDS),), scores, operands, WORDS=_WORDS, **meta)
    return bits


def _attempt(scores, plan, done, histograms, hints, counters, candidates, cuts, last):
    """Settles the layers that are not done and whose bracket, around the hint or else from a histogram, holds."""
    warm = hints is not None
    grid, shape = (len(plan.chunks),), {"CHUNK": _CHUNK, "TILE": _TILE, "num_warps": 8}
    if not warm:
        launch(select_histogram_kernel, grid, cuts, (scores, plan.layers, plan.chunks, done, histograms), **shape)
    state = (done, histograms, hints, *counters, *candidates)
    launch(select_compact_kernel, grid, cuts, (scores, plan.layers, plan.chunks, *state), WARM=warm, **shape)
    finish = {"WARM": warm, "LAST": last, "TILE": _TILE, "num_warps": 16}
    launch(select_finish_kernel, (len(plan.layers),), cuts, (scores, plan.layers, *state, cuts), **finish)


@functools.lru_cache(maxsize=1024)
def _plan(layers, device):
    """The tables on the device; made when a network's scores are first seen, so that there is nothing to copy while a
    CUDA graph is captured."""
    if capture.capturing(torch.empty(0, device=device)):
        raise RuntimeError("select: run the step once before it is captured: its tables are copied from the host")
    rows, chunks, first = [], [], 0
    for i, layer in enumerate(layers):
        capacity = max(min(layer.numel, _LEAST_CAPACITY), layer.numel // 8)
        rows.append([*layer[:4], first, capacity, *layer.sizes[1:], *layer.index_strides])
        chunks += [[i, j] for j in range(-(-layer.numel // _CHUNK))]
        first += capacity
    table = torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
    return _Plan(table, torch.tensor(chunks, dtype=torch.int32).reshape(-1, 2).to(device, non_blocking=True), first)
