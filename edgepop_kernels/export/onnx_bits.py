"""The weights of masked layers as bits in an ONNX file, with the operators that make floats of them.

A runtime computes once, when it loads the file, what hangs on constants alone.
"""

from collections.abc import Mapping
from typing import Any

import torch

from .. import selecting
from ..nn.packed import one_magnitude

_OPSET = 18  # the first with BitwiseAnd
# Constants that all weights use.
_SHARED = {
    "edgepop_kernels.powers": 1 << torch.arange(8, dtype=torch.uint8),
    "edgepop_kernels.minus_one": torch.tensor([-1]),
    "edgepop_kernels.zero": torch.tensor([0]),
    "edgepop_kernels.one": torch.tensor([1]),
}


def pack_initializers(onnx: Any, program: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Puts bits in the place of ``weights``, by name, in ``program``, a protobuf of ONNX, in place: of each weight
    which elements are not zero, and of those signs and a number where they are +c or -c, else their values.

    Raises RuntimeError where a weight is not in the program as it is here, or where the program's opset has no
    operators on bits.
    """
    graph, opset = program.graph, next(o.version for o in program.opset_import if o.domain in ("", "ai.onnx"))
    if opset < _OPSET:
        raise RuntimeError(f"packed: expected opset {_OPSET} of ONNX or newer, torch exported {opset}")
    held = {tensor.name: tensor for tensor in graph.initializer}
    made = _Graph(onnx)
    for name, weight in weights.items():
        weight = weight.detach().cpu().contiguous()
        if name not in held or list(held[name].dims) != list(weight.shape) or _bytes(held[name]) != _raw(weight):
            raise RuntimeError(f"packed: torch exported {name} in another form; leave packed=True out")
        graph.initializer.remove(held[name])
        _packed(made, name, weight)
    graph.initializer.extend(made.tensors)
    nodes = [*made.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


class _Graph:
    """Nodes and constants to be put in front of a graph."""

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.nodes, self.tensors = onnx, list[Any](), list[Any]()

    def constant(self, name: str, value: torch.Tensor) -> str:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(value.numpy().dtype)
        self.tensors.append(self.onnx.helper.make_tensor(name, kind, list(value.shape), _raw(value), raw=True))
        return name

    def shared(self, name: str) -> str:
        name = f"edgepop_kernels.{name}"
        return name if any(t.name == name for t in self.tensors) else self.constant(name, _SHARED[name])

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [output], name=f"{output}.node", **attributes))
        return output


def _packed(made: _Graph, name: str, weight: torch.Tensor) -> None:
    """The nodes whose last output is ``weight``, under its name."""
    mask = weight != 0
    kept = weight[mask]
    zero = made.constant(f"{name}.zero", torch.zeros((), dtype=weight.dtype))
    flat = _bools(made, f"{name}.mask", mask)
    one = one_magnitude(kept) if kept.numel() else torch.zeros((), dtype=weight.dtype)
    if one is not None:
        plus, minus = made.constant(f"{name}.plus", one), made.constant(f"{name}.minus", -one)
        values = made.node("Where", [_bools(made, f"{name}.signs", weight < 0), minus, plus], f"{name}.values")
    else:
        # How many are kept up to a weight, it included, is the place of its value, counted from 1.
        ones = made.node("Cast", [flat], f"{name}.ones", to=made.onnx.TensorProto.INT64)
        counts = made.node("CumSum", [ones, made.shared("zero")], f"{name}.counts")
        ranks = made.node("Sub", [counts, made.shared("one")], f"{name}.ranks")
        places = made.node("Max", [ranks, made.shared("zero")], f"{name}.places")
        values = made.node("Gather", [made.constant(f"{name}.kept", kept), places], f"{name}.values")
    shape = made.constant(f"{name}.shape", torch.tensor(weight.shape))
    made.node("Reshape", [made.node("Where", [flat, values, zero], f"{name}.flat"), shape], name)


def _bools(made: _Graph, name: str, mask: torch.Tensor) -> str:
    """A mask as a flat tensor of bools, from a bit each."""
    bits = selecting.pack_mask(mask)[: -(-mask.numel() // 8)]
    column = made.constant(f"{name}.bits", bits[:, None])
    eight = made.node("BitwiseAnd", [column, made.shared("powers")], f"{name}.eight")
    bools = made.node("Cast", [eight], f"{name}.bools", to=made.onnx.TensorProto.BOOL)
    line = made.node("Reshape", [bools, made.shared("minus_one")], f"{name}.line")
    end = made.constant(f"{name}.numel", torch.tensor([mask.numel()]))
    return made.node("Slice", [line, made.shared("zero"), end], f"{name}.whole")


def _raw(tensor: torch.Tensor) -> bytes:
    content: bytes = tensor.contiguous().numpy().tobytes()  # ONNX is little-endian, as what this package runs on
    return content


def _bytes(initializer: Any) -> bytes:
    content: bytes = initializer.raw_data
    return content
