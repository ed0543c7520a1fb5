"""All that this package asks of torch beneath its public interface: here and nowhere else.

``tests/test_torch_private.py`` asks each of these for an answer that is known, so that a torch which changes one of
them fails there, by name.
"""

import contextlib
import gc
import logging
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.autograd import forward_ad
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

PLAIN = (torch.Tensor, torch.nn.Parameter)


def watched() -> bool:
    """Whether torch must see the calls of this moment: they are traced, a mode looks on, or a transform of torch.func
    has wrapped the tensors."""
    return (
        torch.compiler.is_dynamo_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def transformed() -> bool:
    """Whether a transform of torch.func (grad, vmap...) is at work."""
    return torch._C._are_functorch_transforms_active()


def plain(tensor: torch.Tensor) -> bool:
    """Whether the address of ``tensor`` is that of its values.

    Subclasses (DTensor) keep theirs elsewhere. A negation (``z.conj().imag``) and zeros that nobody has written hold
    other values than memory does: torch's dispatcher writes them out for a kernel.
    """
    dense = type(tensor) in PLAIN and tensor.layout is torch.strided
    return dense and not tensor.is_neg() and not tensor._is_zerotensor()


def tangents_go_forward() -> bool:
    """Whether tensors may carry tangents of forward-mode differentiation, which no_grad does not hold up."""
    return forward_ad._current_level >= 0


def applied(function: type[torch.autograd.Function], *inputs: object) -> torch.Tensor:
    """``function.apply``, where nobody watches.

    torch's own begins by unwrapping what a transform of torch.func left behind, a frame of Python for every input: 12
    of the 40 that a call of a layer may take.
    """
    return super(torch.autograd.Function, function).apply(*inputs)  # type: ignore[misc, no-any-return]  # C++'s own


def sharded(tensor: torch.Tensor) -> bool:
    """Whether this process has a part of ``tensor`` only: a DTensor, as fully_shard leaves parameters."""
    return type(tensor) not in PLAIN and hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor: gathered where it is sharded, which all processes of its mesh must ask for together."""
    return cast(Any, tensor.detach()).full_tensor() if sharded(tensor) else tensor


# Whether torch.profiler records: then calls go through torch's dispatcher, which gives it their names and shapes.
profiled: Callable[[], bool] = torch.autograd._profiler_enabled  # type: ignore[attr-defined]  # C++'s own

# How often a tensor was written, as autograd counts it: not through ``.data``, nor by other processes.
version = operator.attrgetter("_version")


def tensor_arguments(op: torch._ops.OpOverload) -> list[int]:
    """Which arguments of ``op`` are tensors, or may be."""
    kinds = ("Tensor", "Optional[Tensor]")
    return [i for i, argument in enumerate(op._schema.arguments) if str(argument.type) in kinds]


def copy_all(into: list[torch.Tensor], source: list[torch.Tensor]) -> None:
    """Copies each of ``source`` into its tensor of ``into``, on a GPU in one launch."""
    torch._foreach_copy_(into, source)


def waits_for_gradient(p: torch.Tensor) -> bool:
    """Whether a hook on ``p`` is to be called with its gradient."""
    return bool(p._backward_hooks or p._post_accumulate_grad_hooks)


def current_backward() -> int:
    """A number of the backward that runs in this thread; -1 for none."""
    return torch._C._current_graph_task_id()


def after_backward(call: Callable[[], None]) -> None:
    """Has ``call`` made at the end of the backward that runs in this thread, when all gradients are there."""
    torch.autograd.Variable._execution_engine.queue_callback(call)


def backward_reaches(node: torch.autograd.graph.Node) -> bool:
    """Whether the running backward executes ``node``. Raises RuntimeError for a leaf whose gradient
    ``torch.autograd.grad`` was asked for."""
    return torch._C._will_engine_execute_node(node)


def padding_on_each_side(conv: torch.nn.Conv2d) -> list[int]:
    """The padding of ``conv`` as F.pad takes it, last dimension first."""
    return conv._reversed_padding_repeated_twice


def output_padding(layer: Any, x: torch.Tensor, output_size: Sequence[int] | None) -> tuple[int, ...]:
    """The output_padding with which ``layer``, a transposed convolution, makes an output of ``output_size``; its own
    where that is None. Raises ValueError for a size that it cannot make."""
    if output_size is None:
        own: tuple[int, ...] = layer.output_padding
        return own
    sizes = (layer.stride, layer.padding, layer.kernel_size, len(layer.kernel_size), layer.dilation)
    return tuple(layer._output_padding(x, list(output_size), *sizes))


def remove_forward_pre_hook(module: torch.nn.Module, hook: Callable[..., Any]) -> None:
    """Removes ``hook`` from those called before each forward of ``module``, without a handle of it."""
    hooks = module._forward_pre_hooks
    for key in [key for key, registered in hooks.items() if registered is hook]:
        del hooks[key]


def holder_of(modules: Sequence[torch.nn.Module]) -> torch.nn.Module | None:
    """The DistributedDataParallel or fully_shard module that holds one of ``modules``, while one does.

    A module is not told that it is held: all objects of the process are looked at, tens of milliseconds, and only where
    processes have joined. One that nobody needs any more may wait for the garbage collector, and is none.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    kinds: tuple[type[torch.nn.Module], ...] = (torch.nn.parallel.DistributedDataParallel,)
    sharding = sys.modules.get("torch.distributed.fsdp")
    if sharding is not None:
        kinds += (sharding.FSDPModule,)
    sought = set(modules)

    def found() -> torch.nn.Module | None:
        held = (o for o in gc.get_objects() if issubclass(type(o), kinds))
        return next((o for o in held if not sought.isdisjoint(o.modules())), None)

    if found() is None:
        return None
    gc.collect()
    return found()


# torch's own, which fold a batch norm into a copy of a layer: its weight and bias are set anew.
_FOLDS = fuse_conv_bn_eval.__code__, fuse_linear_bn_eval.__code__


def folds_batch_norm() -> bool:
    """Whether torch's ``fuse_conv_bn_eval`` or ``fuse_linear_bn_eval`` is what sets the parameter whose registration
    asks: they give no other sign."""
    frame: FrameType | None = sys._getframe(2)  # past the asking register_parameter, and nn.Module.__setattr__ above it
    for _ in range(2):
        if frame is None or frame.f_code in _FOLDS:
            return frame is not None
        frame = frame.f_back
    return False


def folded_by() -> str | None:
    """The name of the function that reads the attribute whose getter asks, where it folds batch norms or branches into
    weights and is not torch's own: libraries call such functions fuse, or fuse_this and _fuse_that."""
    code = sys._getframe(2).f_code
    name = code.co_name.lstrip("_")
    folds = name == "fuse" or name.startswith("fuse_")
    return code.co_name if folds and code not in _FOLDS else None


def jit_traces() -> bool:
    """Whether torch.jit.trace records the calls of this moment; torch.onnx's older exporter builds on it."""
    return not torch.compiler.is_compiling() and torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # not in its __all__


def exports_onnx() -> bool:
    """Whether torch.onnx exports; asked of what is loaded, as asking torch.onnx loads packages that may be missing."""
    flags = sys.modules.get("torch.onnx._internal.exporter._flags")
    return flags is not None and flags._is_onnx_exporting


@contextlib.contextmanager
def quiet_onnx() -> Iterator[None]:
    """Within it torch's ONNX exporter does not tell of libraries that it would know operators of, were they here."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def tell_flop_counters(formulas: Mapping[torch._ops.OpOverloadPacket, Callable[..., int]]) -> None:
    """Gives the active ``FlopCounterMode`` the formulas of our ops.

    Not through torch's register_flop_formula: importing that module imports triton where there is one, which takes as
    long as torch itself.
    """
    counting = None if torch.compiler.is_compiling() else sys.modules.get("torch.utils.flop_counter")
    if counting is None:
        return
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, counting.FlopCounterMode):
            counter.flop_registry.update(formulas)
