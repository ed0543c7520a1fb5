"""Networks as ONNX: materialized, and what onnxruntime answers compared with what torch does."""

import importlib.util
import json
import os
import warnings
from typing import Any

import torch
from torch import nn

from .. import torch_private
from ..conversion import materialize
from ..files import replace
from .onnx_bits import pack_initializers
from .outline import check_plain_data, join, named_layers, path, unwrapped

# The largest relative error that onnxruntime may have in float32: its sums have another order, nothing else differs.
_ERROR = 1e-5
_CHECKED = (1, 3)  # batches
_FLOATS = (torch.float32, torch.float64, torch.float16)


def save_onnx(
    model: nn.Module,
    file: str | os.PathLike[str],
    example: torch.Tensor | tuple[torch.Tensor, ...],
    *,
    packed: bool = False,
    **meta: Any,
) -> float | None:
    """Saves ``materialize(model)`` in evaluation as one file of ONNX. Returns the relative error of onnxruntime's
    answers to random inputs, the largest of the outputs; None where it is not installed and nothing was compared.

    example  an input, or a tuple of all of them, whose first dimension is the batch: of any size in the file
    packed   True: the weights of masked layers are in the file as a bit each for the mask, and a sign bit where they
             are +c or -c, else the kept ones alone; operators of ONNX make floats of them, which a runtime computes
             once. False: as they are, zeros where they are not kept
    meta     what else to say, plain data, each in the file's metadata as JSON

    The model stays as it is. Nothing is written unless onnxruntime, where there is one, agrees within 1e-5 (in float16
    4e-3): else a RuntimeError. Raises TypeError, ValueError; ImportError where onnx or onnxscript, which torch exports
    through, is not installed: pip install 'edgepop_kernels[onnx]'; OSError.

    >>> model = ek.convert(nn.Sequential(nn.Linear(64, 10)), keep=0.3)
    >>> error = ek.save_onnx(model, "net.onnx", torch.randn(2, 64), accuracy=0.91)
    >>> error is None or error < 1e-5
    True
    """
    place, inner = path(file), unwrapped(model)
    inputs = _inputs(example)
    check_plain_data(meta)
    onnx = _library("onnx")
    _library("onnxscript")
    plain = materialize(inner, copy=True).eval()
    program = _exported(plain, inputs, optimize=not packed)
    if packed:
        pack_initializers(onnx, program, _weights(program, plain, list(named_layers(inner))))
    onnx.helper.set_model_props(program, {key: json.dumps(value) for key, value in meta.items()})
    content: bytes = program.SerializeToString()
    error = None
    if installed("onnxruntime"):
        error = _compared(importlib.import_module("onnxruntime"), content, plain, inputs)
    replace(place, content)
    return error


def _inputs(example: object) -> tuple[torch.Tensor, ...]:
    """All inputs, of two rows at least: torch takes a batch of one for a constant. Raises TypeError, ValueError."""
    inputs = example if isinstance(example, tuple) else (example,)
    for x in inputs:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"example: expected a tensor or a tuple of tensors, got {type(x).__name__}")
        if x.dim() == 0 or x.numel() == 0:
            raise ValueError(f"example: expected inputs with a batch as their first dimension, got {tuple(x.shape)}")
        if x.is_complex() or (x.is_floating_point() and x.dtype not in _FLOATS):
            raise TypeError(f"example: expected float32, float64, float16 or integers, got {x.dtype}")
    tensors = [x.detach() for x in inputs if isinstance(x, torch.Tensor)]
    return tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in tensors)


def _exported(plain: nn.Module, inputs: tuple[torch.Tensor, ...], optimize: bool) -> Any:
    """The network as a protobuf of ONNX."""
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), torch_private.quiet_onnx():
        warnings.simplefilter("ignore")  # about torch's own insides
        program = torch.onnx.export(
            plain,
            inputs,
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            optimize=optimize,
            verbose=False,
        )
    assert program is not None  # as of the exporter that dynamo=True names
    model = program.model_proto
    # Of every node the lines of Python that it is from, with this machine's paths: more than the network of small ones.
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    return model


def _weights(program: Any, plain: nn.Module, layers: list[str]) -> dict[str, torch.Tensor]:
    """The weights of ``layers``, one that has several names by the one that the exporter took."""
    taken = {tensor.name for tensor in program.graph.initializer}
    names: dict[Any, str] = {}
    for layer in layers:
        name, module = join(layer, "weight"), plain.get_submodule(layer)
        if module not in names or name in taken:
            names[module] = name
    return {name: module.weight for module, name in names.items()}


@torch.no_grad()
def _compared(runtime: Any, content: bytes, plain: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """The largest relative error of an output, over batches of several sizes. Raises RuntimeError where it is too
    large."""
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in _CHECKED:
        random = [_random(x, batch, generator) for x in inputs]
        answers = session.run(None, {n: x.numpy() for n, x in zip(names, random, strict=True)})
        expected = _outputs(plain(*(x.to(given.device) for x, given in zip(random, inputs, strict=True))))
        for answer, wanted in zip(answers, expected, strict=True):
            apart = (torch.from_numpy(answer).double() - wanted.cpu().double()).norm() / wanted.double().norm().cpu()
            limit = max(_ERROR, 4 * torch.finfo(wanted.dtype).eps) if wanted.is_floating_point() else 0.0
            error = apart.nan_to_num(0 if bool((wanted == 0).all()) else float("inf")).item()
            if error > limit:
                raise RuntimeError(
                    f"onnxruntime's answers to {batch} random inputs are {error:.1e} from torch's, expected at most "
                    f"{limit:.0e}; nothing was written"
                )
            worst = max(worst, error)
    return worst


def _random(x: torch.Tensor, batch: int, generator: torch.Generator) -> torch.Tensor:
    """An input like ``x`` on the CPU: normal numbers, or integers that are among those of ``x``."""
    shape = (batch, *x.shape[1:])
    if x.is_floating_point():
        return torch.randn(shape, generator=generator).to(x.dtype)
    return x.flatten().cpu()[torch.randint(x.numel(), shape, generator=generator)]


def _outputs(y: object) -> list[torch.Tensor]:
    """The outputs of a network in the order in which ONNX has them. Raises TypeError."""
    found: list[Any] = list(y) if isinstance(y, tuple | list) else list(y.values()) if isinstance(y, dict) else [y]
    for one in found:
        if not isinstance(one, torch.Tensor):
            raise TypeError(f"model: expected tensors as its outputs, got {type(one).__name__}")
    return found


def installed(name: str) -> bool:
    """Whether there is a module ``name``, of which nothing is loaded."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # None is in sys.modules in its place
        return False


def _library(name: str) -> Any:
    if not installed(name):
        raise ImportError(f"ONNX needs {name}, which is not installed: pip install 'edgepop_kernels[onnx]'")
    return importlib.import_module(name)
