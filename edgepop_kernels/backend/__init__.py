"""The choice of the implementation that runs an op. It is made here and nowhere else.

A backend is a module with one function per op of ``ops.py``, and two answers: why it cannot run on this machine at
all, and why it refuses one call (None: it does not). An explicit choice raises that answer; "auto" goes on to the
next backend, and where only the reference is left logs why, once. The reference accepts every call on every device.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from .. import reference
from . import cuda, native, staged, triton

logger = logging.getLogger("edgepop_kernels")


@dataclass(frozen=True)
class Backend:
    name: str
    ops: ModuleType
    unavailable: Callable[[], str | None]
    refuses: Callable[[torch.device, torch.dtype], str | None]


_BACKENDS = {
    "native": Backend("native", native, native.unavailable, native.refuses),
    "triton": Backend("triton", triton, triton.unavailable, triton.refuses),
    "cuda": Backend("cuda", cuda, cuda.unavailable, cuda.refuses),
    "staged": Backend("staged", staged, staged.unavailable, staged.refuses),
    "reference": Backend("reference", reference, lambda: None, lambda device, dtype: None),
}
# On CUDA tensors "cuda" is "triton" but for its selection and packed masks. Which of the two selects faster is not yet
# measured on a GPU (`make gpu` does); until then the one that needs no nvcc goes first.
_ON_GPU = ("triton", "cuda")
# "auto" takes the first of these, in this order, that accepts the call: see _candidates.
_AUTO = tuple(_BACKENDS[name] for name in ("native", *_ON_GPU, "reference"))
_chosen = "auto"


def backends() -> dict[str, str | None]:
    """Lists every backend of this version: None where it is available here, else the reason why it is not."""
    return {name: backend.unavailable() for name, backend in _BACKENDS.items()}


# What calls have in common (functional.py), planned for the chosen backend: emptied with the choice.
prepared: dict[tuple[Any, ...] | None, Any] = {}


class use_backend:  # used as a function and as a context manager, like torch.set_grad_enabled
    """Chooses the backend of all following calls, in every thread; as a context manager, until the block ends.

    name: "auto" (the default: the fastest that accepts the call), or a key of ``backends()``. A named backend that is
    not available raises RuntimeError here; one that refuses a call raises NotImplementedError there. "auto" raises
    RuntimeError, here and in every call, where EDGEPOP_ISA names an instruction set that cannot be had: the slow
    reference, to which it would come, is not what that variable asks for.

    >>> with ek.use_backend("reference"):
    ...     y = ek.masked_linear(torch.ones(1, 2), torch.ones(1, 2), None, ek.TopK(0.5))
    >>> y
    tensor([[1.]])
    """

    def __init__(self, name: str) -> None:
        global _chosen
        if name not in ("auto", *_BACKENDS):
            raise ValueError(f"backend: expected one of {', '.join(['auto', *_BACKENDS])}, got {name!r}")
        (first, *_) = _candidates(name)
        if name != "auto" and first.unavailable() is not None:
            raise RuntimeError(f"backend {name!r} is not available: {first.unavailable()}")
        self._previous, _chosen = _chosen, name
        prepared.clear()

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(self, *exception: object) -> None:
        global _chosen
        _chosen = self._previous
        prepared.clear()


def _candidates(chosen: str) -> tuple[Backend, ...]:
    """The backends that may run a call: the first that does not refuse it. Raises RuntimeError as use_backend says."""
    if chosen != "auto":
        return (_BACKENDS[chosen],)
    reason = native.misset()
    if reason is not None:
        raise RuntimeError(reason)
    return _AUTO


def implementation(op: str, tensor: torch.Tensor) -> Callable[..., Any]:
    """The function that runs ``op`` for a call whose activations (or scores) are ``tensor``."""
    run: Callable[..., Any] = getattr(_backend(_chosen, op, tensor.device, tensor.dtype).ops, op)
    return run


@functools.cache  # asked twice a layer and step, and what it says does not change while the process lives
def _backend(chosen: str, op: str, device: torch.device, dtype: torch.dtype) -> Backend:
    if chosen != "auto":
        backend = _BACKENDS[chosen]
        reason = backend.refuses(device, dtype)
        if reason is not None:
            raise NotImplementedError(f"{op}: backend {chosen!r} was asked for, but {reason}")
        return backend
    reasons: list[str] = []
    for backend in _candidates(chosen):
        reason = backend.unavailable() or backend.refuses(device, dtype)
        if reason is None:
            if backend.ops is reference:
                logger.warning("%s runs on the reference. %s", op, "; ".join(reasons))
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise AssertionError("the reference refuses nothing")


def planned(op: str, x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
    """The plan of ``op``, a masked product, for operands like these, of the backend that runs it; None where that has
    none."""
    plan = getattr(_backend(_chosen, op, x.device, x.dtype).ops, op.replace("masked", "plan"), None)
    return None if plan is None else plan(x, *arguments, **options)


def beside(op: str, other: str, tensor: torch.Tensor) -> Callable[..., Any] | None:
    """The function ``other`` of the backend that runs ``op`` for such a call; None where that has none."""
    return getattr(_backend(_chosen, op, tensor.device, tensor.dtype).ops, other, None)


def optimizer_step(parameter: torch.Tensor) -> Callable[..., torch.Tensor] | None:
    """The ``step`` that updates ``parameter``; None where the chosen backend has none, and torch's own does it."""
    return _optimizer_step(_chosen, parameter.device, parameter.dtype)


@functools.cache
def _optimizer_step(chosen: str, device: torch.device, dtype: torch.dtype) -> Callable[..., torch.Tensor] | None:
    for backend in _candidates(chosen):
        if hasattr(backend.ops, "step") and not (backend.unavailable() or backend.refuses(device, dtype)):
            step: Callable[..., torch.Tensor] = backend.ops.step
            return step
    return None
