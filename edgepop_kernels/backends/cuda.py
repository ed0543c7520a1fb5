"""CUDA C++ kernels of csrc/cuda/ on CUDA tensors: the selection of all layers in one launch. Other ops are Triton's."""

import functools
from contextlib import contextmanager
from typing import NamedTuple

import torch

from .. import capture
from . import native, triton
from .memory_order import filling

# Candidates that a layer has room for: a 16th of its scores, at least this many. No larger a layer is collected whole.
_LEAST_CAPACITY = 4096

_captured: set["_Plan"] = set()  # tables that CUDA graphs read: these outlive the cache

_cuda = getattr(native._native, "cuda", None)


def __getattr__(name):
    return getattr(triton, name)


def unavailable() -> str | None:
    if native.unavailable() is not None:
        return native.unavailable()
    if _cuda is None:
        return "the compiled module has no CUDA kernels: no nvcc was found when it was built (`setup.py` says how)"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return triton.unavailable()


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it runs on CUDA tensors and got one on {device}"
    return triton.refuses(device, dtype)


class _Layer(NamedTuple):
    offset: int  # in elements, from the first layer's scores
    count: int
    kept: int
    raw: int
    sizes: tuple[int, ...]  # as memory_order.filling has them
    index_strides: tuple[int, ...]


class _Plan(NamedTuple):
    layers: torch.Tensor  # int64 [layers + 1, fields of csrc/cuda/layer.h]
    chunks: int
    candidates: int


def select(scores, kept, of, hint):
    device, count = scores[0].device, len(scores)
    filled = [filling(s) for s in scores]
    first = filled[0][0]
    layers = tuple(
        _Layer((s.data_ptr() - first.data_ptr()) // 4, s.numel(), m, int(kind != "abs"), *dimensions)
        for (s, dimensions), m, kind in zip(filled, kept, of, strict=True)
    )
    plan = _plan(layers, device)
    if capture.capturing(first):
        _captured.add(plan)
    hint = None if hint is None else hint.contiguous()
    cuts = torch.empty(count, 2, dtype=torch.int64, device=device)
    candidates = torch.empty(plan.candidates, dtype=torch.int64, device=device)
    scratch = torch.zeros(_cuda.select_scratch(count), dtype=torch.int32, device=device)
    with _stream(device) as stream:
        _cuda.select(
            first.data_ptr(),
            plan.layers.data_ptr(),
            count,
            plan.chunks,
            0 if hint is None else hint.data_ptr(),
            cuts.data_ptr(),
            candidates.data_ptr(),
            scratch.data_ptr(),
            stream,
        )
    return cuts


@functools.lru_cache(maxsize=1024)
def _plan(layers, device):
    """The table on the device; made when a network's scores are first seen, so that there is nothing to copy while a
    CUDA graph is captured."""
    if capture.capturing(torch.empty(0, device=device)):
        raise RuntimeError("select: run the step once before it is captured: its table is copied from the host")
    rows, first_chunk, first_candidate = [], 0, 0
    for i, layer in enumerate(layers):
        if layer.count >= 2**31:
            raise ValueError(f"scores[{i}]: expected at most 2**31 - 1 scores in a layer, got {layer.count}")
        capacity = max(min(layer.count, _LEAST_CAPACITY), layer.count // 16)
        index_bits = max(layer.count - 1, 0).bit_length()
        rows.append(
            [*layer[:4], first_chunk, first_candidate, capacity, *layer.sizes[1:], *layer.index_strides, index_bits]
        )
        first_chunk += -(-layer.count // _cuda.select_chunk) if layer.kept else 0
        first_candidate += capacity
    end = [0] * len(rows[0])
    end[4] = first_chunk
    table = torch.tensor([*rows, end], dtype=torch.int64).to(device, non_blocking=True)
    return _Plan(table, first_chunk, first_candidate)


@contextmanager
def _stream(device):
    """The address of the device's current stream, the device being the current one."""
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream
