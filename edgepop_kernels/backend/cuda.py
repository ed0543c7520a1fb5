"""CUDA C++ kernels of csrc/cuda/ on CUDA tensors: the selection of all layers in one launch, packed masks, and steps of
optimizers.

Other ops are Triton's.
"""

import functools
from contextlib import contextmanager
from typing import NamedTuple

import torch

from .. import capture, torch_private
from ..masks import packed_bytes
from . import native, triton
from .memory_order import Places, filling

# Candidates that a layer has room for: a 16th of its scores, at least this many. No larger a layer is collected whole.
_LEAST_CAPACITY = 4096

_captured: list = []  # tables and hints that CUDA graphs read: these outlive the cache and the layers

_cuda = getattr(native.compiled.kernels, "cuda", None)


def __getattr__(name):
    return getattr(triton, name)


def unavailable() -> str | None:
    if native.not_loaded() is not None:
        return native.not_loaded()
    if _cuda is None:
        return "the compiled module has no CUDA kernels: it was built without nvcc (`setup.py` says how)"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return triton.unavailable()


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it runs on CUDA tensors and got one on {device}"
    return triton.refuses(device, dtype)


class _Layer(NamedTuple):
    offset: int  # as Places has it
    count: int
    kept: int
    raw: int
    sizes: tuple[int, ...]  # as memory_order.filling has them
    index_strides: tuple[int, ...]


class _Plan(NamedTuple):
    layers: torch.Tensor  # int64 [layers + 1, fields of csrc/cuda/layer.h]
    chunks: int
    candidates: int


class _Update(NamedTuple):
    """An optimizer's Update, and what the kernel is told of it if it is of scores; its tensors aligned."""

    value: torch.Tensor
    copied: bool  # the value is a copy of the parameter
    grad: torch.Tensor
    moments: tuple[torch.Tensor, ...]
    coefficients: NamedTuple  # optim.coefficients.Coefficients
    kept: int
    of: str
    hint: torch.Tensor | None


def select(scores, kept, of, hint):
    filled = [filling(s) for s in scores]
    layers = [
        (s, s is not given, m, kind, dimensions)
        for given, (s, dimensions), m, kind in zip(scores, filled, kept, of, strict=True)
    ]
    hint = None if hint is None else hint.contiguous()
    with _stream(scores[0].device) as stream:
        cuts, selection, _buffers = _selection(layers, _cuda.select_chunk)
        _cuda.select(selection, 0 if hint is None else hint.data_ptr(), stream)
    return cuts


def select_planes(scores, kept, of, hint, wanted):
    from .triton.selection import planes  # imports triton

    cuts = select(scores, kept, of, hint)
    return cuts, planes(scores, cuts, of, wanted)


def mask_bits(scores, cut, of):
    if scores.numel() >= 2**31:
        raise ValueError(f"scores: expected at most 2**31 - 1 scores in a layer, got {scores.numel()}")
    bits = torch.empty(packed_bytes(scores.numel()), dtype=torch.uint8, device=scores.device)
    s, cut = scores if scores.dim() <= 4 else scores.reshape(-1), cut.contiguous()
    lead = 4 - s.dim()
    size, stride = (1,) * lead + tuple(s.shape), (0,) * lead + s.stride()
    with _stream(scores.device) as stream:
        _cuda.mask_bits(s.data_ptr(), size, stride, int(of != "abs"), cut.data_ptr(), bits.data_ptr(), stream)
    return bits


def step(updates, rankings):
    """Carries out each Update in place; the cuts of the first of them, which are scores, each by its Ranking. Without
    planes: kernels on GPUs read the scores."""
    aligned, copies = [], []
    for i, (value, grad, moments, coefficients) in enumerate(updates):
        kept, of, last, _ = rankings[i] if i < len(rankings) else (0, "abs", None, False)
        mine = [_aligned(t) for t in (value, grad, *moments)]
        copies += [(t, m) for t, m in zip((value, *moments), (mine[0], *mine[2:]), strict=True) if m is not t]
        hint = None if last is None else last.data
        copied = mine[0] is not value
        aligned.append(_Update(mine[0], copied, mine[1], tuple(mine[2:]), coefficients, kept, of, hint))
    cuts = [_step(batch) for batch in _batches(aligned)]
    for t, mine in copies:
        t.copy_(mine)
    cuts = (torch.cat(cuts) if len(cuts) > 1 else cuts[0])[: len(rankings)]
    if capture.capturing(updates[0][0]):
        _hand_on(cuts, rankings)
    return cuts, [None] * len(rankings)


def _hand_on(cuts, rankings):
    """Copies the cuts to where this step, of a CUDA graph, took its hints from: the next replay starts from them."""
    hints = [(hint.data, cut) for (_, _, hint, _), cut in zip(rankings, cuts.unbind(), strict=True) if hint is not None]
    if hints:
        torch_private.copy_all([hint for hint, _ in hints], [cut for _, cut in hints])
        _captured.append(hints)


def _batches(updates):
    """Splits into as many together as a launch takes."""
    batch, sets = [], set()
    for update in updates:
        sets.add(_set(update.coefficients))
        if len(batch) == _cuda.most_parameters or len(sets) > _cuda.most_sets:
            yield batch
            batch, sets = [], {_set(update.coefficients)}
        batch.append(update)
    yield batch


def _set(coefficients):
    """The part that parameters share of their coefficients: (kind, values, rates)."""
    return coefficients[:3]


def _step(updates):
    layers = []
    for u in updates:
        flat = (1, 1, 1, u.value.numel()), (0, 0, 0, 1)
        layers.append((u.value, u.copied, u.kept, u.of, filling(u.value)[1] if u.kept else flat))
    set_of = [_set(u.coefficients) for u in updates]
    sets = list(dict.fromkeys(set_of))
    parameters = [
        (
            u.grad.data_ptr(),
            [m.data_ptr() for m in u.moments] + [0] * (3 - len(u.moments)),
            0 if u.hint is None else u.hint.data_ptr(),
            sets.index(own),
        )
        for u, own in zip(updates, set_of, strict=True)
    ]
    device = updates[0].value.device
    with _stream(device) as stream:
        cuts, selection, _buffers = _selection(layers, _cuda.step_chunk)
        following, _derived = _following(updates, sets, device)
        _cuda.step(selection, parameters, [(kind, values) for kind, values, _ in sets], following, stream)
    return cuts


def _following(updates, sets, device):
    """(FollowingArg of csrc/module/cuda.cpp, room for coefficients that it points to, to be held until the launch)."""
    if not any(u.coefficients.follow for u in updates):
        return ([], [], 0), None
    sources = [(u.coefficients.count, u.coefficients.lr) for u in updates]
    derived = torch.empty(len(updates), len(sets[0][1]), dtype=torch.float32, device=device)  # a word for each field
    addresses = [[0 if t is None else t.data_ptr() for t in source] for source in sources]
    return (addresses, [rates for *_, rates in sets], derived.data_ptr()), derived


def _selection(layers, chunk):
    """(cuts, SelectionArg of csrc/module/cuda.cpp, what it points to besides) of tuples of (scores, whether they are a
    copy, kept, of, dimensions).

    The last to be held until the launch: freed after it, it is handed out again behind it on the stream.
    """
    device, count = layers[0][0].device, len(layers)
    places = Places.of([s for s, *_ in layers], [copied for _, copied, *_ in layers])
    rows = tuple(
        _Layer(offset, s.numel(), kept, int(of != "abs"), *dimensions)
        for offset, (s, _, kept, of, dimensions) in zip(places.offsets, layers, strict=True)
    )
    plan = _plan(rows, chunk, device)
    table = places.within(plan.layers)
    if capture.capturing(places.base):
        _captured.append(plan)
    cuts = torch.empty(count, 2, dtype=torch.int64, device=device)
    candidates = torch.empty(plan.candidates, dtype=torch.int64, device=device)
    scratch = torch.zeros(_cuda.scratch_words(count), dtype=torch.int32, device=device)
    addresses = (cuts.data_ptr(), candidates.data_ptr(), scratch.data_ptr())
    selection = (places.base.data_ptr(), table.data_ptr(), count, plan.chunks, *addresses)
    return cuts, selection, (table, candidates, scratch)


@functools.lru_cache(maxsize=1024)
def _plan(layers, chunk, device):
    """The table on the device; made when a network's scores are first seen, so that there is nothing to copy while a
    CUDA graph is captured."""
    if capture.capturing(torch.empty(0, device=device)):
        raise RuntimeError("select: run the step once before it is captured: its table is copied from the host")
    rows, first_chunk, first_candidate = [], 0, 0
    for i, layer in enumerate(layers):
        if layer.count >= 2**31:
            raise ValueError(f"scores[{i}]: expected at most 2**31 - 1 scores in a layer, got {layer.count}")
        capacity = max(min(layer.count, _LEAST_CAPACITY), layer.count // 16) if layer.kept else 0
        index_bits = max(layer.count - 1, 0).bit_length()
        rows.append(
            [*layer[:4], first_chunk, first_candidate, capacity, *layer.sizes[1:], *layer.index_strides, index_bits]
        )
        first_chunk += -(-layer.count // chunk)
        first_candidate += capacity
    end = [0] * len(rows[0])
    end[4] = first_chunk
    # Waited for: every stream reads what is cached, not only the one that copies it.
    table = torch.tensor([*rows, end], dtype=torch.int64).to(device)
    return _Plan(table, first_chunk, first_candidate)


def _aligned(t):
    """``t`` itself where vectors can be read from it, else a copy of the same strides."""
    return t if t.data_ptr() % 16 == 0 else t.clone()


@contextmanager
def _stream(device):
    """The address of the device's current stream, the device being the current one."""
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream
