"""Checks of single values: tensors, rules, masks."""

import dataclasses

import torch

from .. import torch_private
from ..masks import packed_bytes
from ..rules import RULES, Rule

_RULES = ", ".join(kind.__name__ for kind in RULES)


def tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {value.layout}")
    if torch_private.sharded(value):
        raise TypeError(
            f"{name}: expected a tensor that is whole, got a {type(value).__name__}; masks have no tensor parallelism, "
            "and fully_shard, which gathers a layer's tensors for its forward, works"
        )


def rule(value: object, example: str = "TopK(0.5)", kinds: str = _RULES) -> None:
    if not isinstance(value, Rule):
        raise TypeError(f"rule: expected a rule such as {example}, one of {kinds}, got {shown(value)}")
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"rule: expected a frozen dataclass, which can be compared and saved, got {shown(value)}")
    if value.of not in (("bits",) if value.fixed else ("abs", "raw", "sigmoid")):
        raise ValueError(f"rule: expected its of to be 'abs', 'raw' or 'sigmoid', got {value.of!r}")


def mask_tensor(name: str, value: torch.Tensor, shape: torch.Size | None = None) -> None:
    tensor(name, value)
    if value.dtype != torch.bool:
        raise TypeError(f"{name}: expected a bool mask, got {value.dtype}")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name}: expected the weight's shape {tuple(shape)}, got {shape_of(value)}")


def packed_shape(shape: torch.Size) -> tuple[int]:
    """The shape of a packed mask of weights of ``shape``."""
    return (packed_bytes(shape.numel()),)


def packed_bits(bits: torch.Tensor, shape: torch.Size, name: str = "bits") -> None:
    tensor(name, bits)
    if bits.dtype != torch.uint8:
        raise TypeError(f"{name}: expected packed uint8, got {bits.dtype}")
    (expected,) = packed_shape(shape)
    if tuple(bits.shape) != (expected,) or not bits.is_contiguous():
        raise ValueError(
            f"{name}: expected {expected} contiguous bytes for {shape.numel()} weights, got shape {tuple(bits.shape)}"
        )


def score_tensor(name: str, value: torch.Tensor) -> None:
    tensor(name, value)
    if value.dtype != torch.float32:
        raise TypeError(
            f"{name}: scores are float32 on every path, got {value.dtype}; where fully_shard's MixedPrecisionPolicy "
            "casts them, shard masked layers without it, each by itself, and the rest with it"
        )


def dims(name: str, value: torch.Tensor, allowed: tuple[int, ...], form: str) -> None:
    if value.dim() not in allowed:
        raise ValueError(f"{name}: expected {form}, got shape {shape_of(value)}")


def shape_of(t: torch.Tensor) -> tuple[int, ...]:
    return tuple(t.shape)


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else type(value).__name__
