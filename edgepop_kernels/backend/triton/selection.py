"""Launches the selection of all layers: tables of where the scores lie, then two kernels, and one for planes.

And the packed masks, of a Bernoulli draw, of a cut or of groups: one kernel each.
"""

import functools
import math
from typing import NamedTuple

import torch

from ... import capture
from ...masks import packed_bytes
from ...tuning import roofline
from ..memory_order import Places, filling
from .kernels.draw import draw_kernel
from .kernels.group_bits import group_bits_kernel
from .kernels.mask_bits import mask_bits_kernel
from .kernels.planes import ALIGNED, planes_kernel
from .kernels.select import STATE, select_compact_kernel, select_sample_kernel
from .kernels.select_scan import BINS, SHELF
from .launch import device_of, launch

_CHUNK = 16384  # scores a block reads
_TILE = 4096
_NARROW = 1024  # scores or candidates at a time where each takes more registers
_WARPS = 8
# Of a thread: two blocks on a multiprocessor, with 16 scores of each thread under way: 32 KB, where memory asks for 29
# (H200: 4.8 TB/s, about 800 ns, 132 multiprocessors). At 64 triton 3.6 spills.
_REGISTERS = 128
_SAMPLE = 16384  # scores of a layer that its bracket is taken from
_SAMPLE_OF_MISSED = 2048  # by one block, between two launches
_ROOM = 512  # candidates that are searched in registers
_WORDS = 16  # of packed bits that a block draws: 1024 weights
_LEAST_CAPACITY = 4096  # candidates of a layer: an eighth of it, at least this many
_MOST_SCORES = 2**31 - 2**16  # of a layer: positions are int32, up to a chunk past the end
_captured: set[NamedTuple] = set()  # tables that CUDA graphs read: these outlive the cache


class _Layer(NamedTuple):
    """Scores that fill their memory without gaps, as four dimensions from the outermost in memory inwards."""

    offset: int  # as Places has it
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
    places = Places.of([s for s, _ in filled], [s is not given for (s, _), given in zip(filled, scores, strict=True)])
    rows = tuple(
        _Layer(offset, s.numel(), m, int(kind != "abs"), *dimensions)
        for offset, (s, dimensions), m, kind in zip(places.offsets, filled, kept, of, strict=True)
    )
    plan = _plan(rows, device, _CHUNK, _ROOM, _LEAST_CAPACITY)
    layers = places.within(plan.layers)
    if capture.capturing(scores[0]):
        _captured.add(plan)
    count = len(scores)
    cuts = torch.empty(count, 2, dtype=torch.int64, device=device)
    brackets = torch.empty(count, 2, dtype=torch.int32, device=device)
    zeros = torch.zeros(count * (STATE.value + BINS.value), dtype=torch.int32, device=device)
    states, bins = zeros.split([count * STATE.value, count * BINS.value])
    ties = torch.empty(len(plan.chunks), dtype=torch.int32, device=device)
    shelves = torch.empty(len(plan.chunks) * (_CHUNK // SHELF.value), dtype=torch.int32, device=device)
    candidates = torch.empty(2, plan.candidates, dtype=torch.int32, device=device)
    sizes = {"CHUNK": _CHUNK, "TILE": _TILE, "NARROW": _NARROW, "WARPS": _WARPS}
    sizes |= {"SAMPLE": _SAMPLE_OF_MISSED, "ROOM": _ROOM}

    def compact(hints, warm):
        args = (places.base, layers, plan.chunks, hints, brackets, states, bins, ties, shelves, *candidates, cuts)
        launch(
            select_compact_kernel,
            (len(plan.chunks),),
            cuts,
            args,
            WARM=warm,
            **sizes,
            num_warps=_WARPS,
            maxnreg=_REGISTERS,
        )

    if hint is None:
        args = (places.base, layers, brackets)
        launch(select_sample_kernel, (2 * count,), cuts, args, SAMPLE=_SAMPLE, num_warps=16)
    else:
        compact(hint.contiguous(), warm=True)
    compact(None, warm=False)
    return cuts


def select_planes(scores, kept, of, hint, wanted):
    cuts = select(scores, kept, of, hint)
    return cuts, planes(scores, cuts, of, wanted)


class _Planes(NamedTuple):
    layers: torch.Tensor  # int64 [layers, FIELDS]
    chunks: torch.Tensor  # int32 [chunks, 2]: layer, which chunk of it


def planes(scores, cuts, of, wanted):
    """The planes of each layer (``Cut``) where they are wanted and the scores lie in logical order, if reading them
    once more pays (``roofline.packing_pays``); else None."""
    written = [None] * len(scores)
    alignment = 4 * ALIGNED.value
    found = [i for i, s in enumerate(scores) if wanted[i] and s.is_contiguous() and s.data_ptr() % alignment == 0]
    numel = sum(scores[i].numel() for i in found)
    if not roofline.packing_pays(numel, device_of(cuts.device), torch.is_grad_enabled()):
        return written
    base, rows, words = scores[found[0]], [], 0
    for i in found:
        offset, count = (scores[i].data_ptr() - base.data_ptr()) // 4, 1 + (of[i] == "abs")
        rows.append((i, offset, scores[i].numel(), int(of[i] != "abs"), words))
        words += count * packed_bytes(scores[i].numel()) // 4
    plan = _planes_plan(tuple(rows), cuts.device, _CHUNK)
    if capture.capturing(base):
        _captured.add(plan)
    memory = torch.zeros(words, dtype=torch.int32, device=cuts.device)
    args = (base, plan.layers, plan.chunks, cuts, memory)
    launch(planes_kernel, (len(plan.chunks),), cuts, args, CHUNK=_CHUNK, TILE=_TILE, num_warps=_WARPS)
    starts = [4 * first for *_, first in rows] + [4 * words]
    for i, start, end in zip(found, starts, starts[1:], strict=False):
        written[i] = memory.view(torch.uint8)[start:end].view(-1, packed_bytes(scores[i].numel()))
    return written


@functools.lru_cache(maxsize=1024)
def _planes_plan(rows, device, chunk):
    _check_made_before(device)
    chunks = [[n, j] for n, (_, _, numel, *_) in enumerate(rows) for j in range(-(-numel // chunk))]
    tables = torch.tensor(rows), torch.tensor(chunks, dtype=torch.int32).reshape(-1, 2)
    return _Planes(*(t.to(device) for t in tables))


def draw(scores, seed):
    return _packed(draw_kernel, scores, seed)


def mask_bits(scores, cut, of):
    return _packed(mask_bits_kernel, scores, cut.contiguous(), OF="raw" if of == "sigmoid" else of)


def group_bits(scores, kept, group, dim, of):
    apart = max(math.prod(scores.shape[dim + 1 :]), 1)  # without elements there is no group, however far apart
    return _packed(group_bits_kernel, scores, apart, KEPT=kept, GROUP=group, RAW=of != "abs")


def _packed(kernel, scores, argument, **meta):
    scores = scores.contiguous()  # packed bits are in logical order
    words = -(-scores.numel() // 64) + 1  # the last one stays zero
    bits = torch.empty(words * 8, dtype=torch.uint8, device=scores.device)
    operands = (scores, argument, bits.view(torch.int16), scores.numel(), words)
    launch(kernel, (-(-words // _WORDS),), scores, operands, WORDS=_WORDS, **meta)
    return bits


@functools.lru_cache(maxsize=1024)
def _plan(layers, device, chunk, room, least_capacity):
    """The tables on the device; made when a network's scores are first seen, so that there is nothing to copy while a
    CUDA graph is captured."""
    _check_made_before(device)
    rows, chunks, first = [], [], 0
    for i, layer in enumerate(layers):
        if layer.numel > _MOST_SCORES:
            raise ValueError(f"scores[{i}]: expected at most {_MOST_SCORES} scores in a layer, got {layer.numel}")
        capacity = max(min(layer.numel, least_capacity), layer.numel // 8)
        to_index = (*layer.sizes[1:], *layer.index_strides)
        rows.append([*layer[:4], first, capacity, *to_index, *_inverse(layer.sizes, layer.index_strides)])
        chunks += [[i, j] for j in range(max(1, -(-layer.numel // chunk)))]  # one writes an empty layer's cut
        first += capacity + room
    # Waited for: every stream reads what is cached, not only the one that copies it.
    table = torch.tensor(rows, dtype=torch.int64).to(device)
    return _Plan(table, torch.tensor(chunks, dtype=torch.int32).reshape(-1, 2).to(device), first)


def _check_made_before(device):
    if capture.capturing(torch.empty(0, device=device)):
        raise RuntimeError("select: run the step once before it is captured: its tables are copied from the host")


def _inverse(sizes, index_strides):
    """The sizes of the inner three dimensions and all strides that lead from a logical index to its position."""
    dimensions, stride = [], 1
    for size, index_stride in zip(reversed(sizes), reversed(index_strides), strict=True):
        dimensions.append((size == 1, index_stride, size, stride))
        stride *= size
    dimensions.sort(reverse=True)  # logical order; where there is one index only, it may be anywhere: outermost
    return *(d[2] for d in dimensions[1:]), *(d[3] for d in dimensions)
