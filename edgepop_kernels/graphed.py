"""A whole training step as one CUDA graph: for networks whose kernels are shorter than their launches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from .nn import MaskedLayer

Result = TypeVar("Result")
_WARMUPS = 3  # torch's own number: enough for lazy states, kernels' compilation and cuDNN's choices


class GraphedStep(Generic[Result]):
    """A step as one CUDA graph, as ``graphed_step`` returns it: called like the step itself."""

    def __init__(
        self,
        step: Callable[..., Result],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        examples: Sequence[torch.Tensor],
    ) -> None:
        self._step, self._model, self._optimizer = step, model, optimizer
        self._inputs = [example.detach().clone() for example in examples]
        self._stream: torch.cuda.Stream | None = None
        self._constants: tuple[Any, ...] | None = None
        self._graph: Any = None  # torch.cuda.CUDAGraph, once it is captured
        self._result: Any = None

    def __call__(self, *inputs: torch.Tensor) -> Result:
        check_inputs(inputs, self._inputs)
        with torch.cuda.device(self._inputs[0].device):  # streams, capture and replay are of the current device
            for mine, given in zip(self._inputs, inputs, strict=True):
                mine.copy_(given)
            constants = read_by_python(self._model, self._optimizer)
            if constants != self._constants:
                self._capture()
                self._constants = constants
            self._graph.replay()
        result: Result = self._result
        # Writes that torch has not seen: who remembers versions, cuts of an eager step among them, is to notice.
        torch.autograd.graph.increment_version([p for g in self._optimizer.param_groups for p in g["params"]])
        return result

    def _capture(self) -> None:
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream), undone(self._model, self._optimizer):
                for _ in range(_WARMUPS):
                    self._step(*self._inputs)
        finally:
            torch.cuda.current_stream().wait_stream(self._stream)
        pool = None if self._graph is None else self._graph.pool()
        graph = torch.cuda.CUDAGraph()
        # The stream that torch captures on by itself is of the device on which it first did.
        with torch.cuda.graph(graph, pool=pool, stream=self._stream):
            self._result = self._step(*self._inputs)
        self._graph = graph


def graphed_step(
    step: Callable[..., Result], model: nn.Module, optimizer: torch.optim.Optimizer, *examples: torch.Tensor
) -> GraphedStep[Result]:
    """Makes one CUDA graph of a training step: the first call captures it, every call replays it.

    step      ``step(*inputs)``: zeroes the gradients, forward, loss, backward, ``optimizer.step()``; returns tensors,
              or None. It must read no value back (``.item()``, printing) and take the same way on every call
    model     on CUDA, its masked layers included; its weights, its buffers and the optimizer's state are left as they
              were found, a state that the first step makes (momentum) at zero
    examples  CUDA tensors of the inputs' shapes and dtypes; their values do not matter
    returns   a callable: ``graphed(*inputs)`` copies the inputs in, replays, and returns the step's own result, memory
              that the next call overwrites

    Selection in a replay starts from the cuts of the replay before. Nothing is allocated and the host waits for
    nothing. What a graph cannot follow is captured anew when it has changed: the numbers of the optimizer's groups
    (learning rate), the layers' rules, training and evaluation mode. An optimizer whose step counts must be told so
    (``ScoreAdam(capturable=True)``). Where the learning rate changes at every step, give it as a tensor on the GPU
    (``ScoreSGD(lr=torch.tensor(0.1, device="cuda"))``; torch's own SGD follows it with ``fused=True``).

    Raises ValueError where something is not on CUDA, or not all on one device; from the call, TypeError and ValueError
    for inputs unlike the examples.
    """
    if not examples:
        raise ValueError("examples: expected a CUDA tensor for each input of the step, got none")
    named = [(f"examples[{i}]", example) for i, example in enumerate(examples)]
    named += [(f"model: parameter {name}", parameter) for name, parameter in model.named_parameters()]
    for name, tensor in named:
        _check_on_cuda(name, tensor)
        if tensor.device != examples[0].device:
            raise ValueError(f"{name}: expected it on {examples[0].device}, as examples[0] is, got {tensor.device}")
    return GraphedStep(step, model, optimizer, examples)


def _check_on_cuda(name: str, tensor: object) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a CUDA tensor, got {type(tensor).__name__}")
    if not tensor.is_cuda:
        raise ValueError(f"{name}: a CUDA graph is captured from CUDA tensors, got one on {tensor.device}")


def check_inputs(given: tuple[object, ...], examples: list[torch.Tensor]) -> None:
    """Raises TypeError or ValueError for inputs that a graph captured with ``examples`` cannot take."""
    if len(given) != len(examples):
        raise TypeError(f"inputs: the step was captured with {len(examples)} tensors, got {len(given)}")
    for i, (tensor, example) in enumerate(zip(given, examples, strict=True)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"inputs[{i}]: expected a tensor, got {type(tensor).__name__}")
        if (tensor.shape, tensor.dtype) != (example.shape, example.dtype):
            raise ValueError(
                f"inputs[{i}]: the step was captured with {tuple(example.shape)} {example.dtype}, "
                f"got {tuple(tensor.shape)} {tensor.dtype}"
            )


def read_by_python(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """The values that a captured step holds as constants."""
    groups = [[_constant(v) for k, v in group.items() if k != "params"] for group in optimizer.param_groups]
    modules = [(m.training, m.rule if isinstance(m, MaskedLayer) else None) for m in model.modules()]
    return groups, modules


def _constant(value: object) -> object:
    """A setting as the host reads it; None where it is on the device, and read anew by every replay."""
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.device.type == "cpu" else None
    return value


@contextmanager
def undone(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Steps inside leave parameters, buffers, random numbers and the optimizer's state as they were, in the same
    memory; state that they made stays, at zero."""
    kept = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    kept += [(t, t.detach().clone()) for t in _state_tensors(optimizer)]
    known = {id(t) for t, _ in kept}
    generators = torch.cuda.get_rng_state_all()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
            for tensor in _state_tensors(optimizer):
                if id(tensor) not in known:
                    tensor.zero_()
        torch.cuda.set_rng_state_all(generators)


def _state_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
