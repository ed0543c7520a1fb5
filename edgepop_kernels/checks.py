"""Checks of what the user functions accept. Each check names the argument, what it got, and what is allowed."""

import dataclasses
from collections.abc import Sequence

import torch

from . import torch_private
from .cut import Bits, Cut, Selection
from .masks import packed_bytes
from .rules import RULES, Rule

_RULES = ", ".join(kind.__name__ for kind in RULES)
_ACTIVATIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_Pair = int | tuple[int, int]
_Single = int | tuple[int]
# Stride, padding, dilation and groups, as they are handed in, and with their numbers as pairs.
Geometry = tuple[_Pair, _Pair | str, _Pair, int]
Pairs = tuple[tuple[int, int], tuple[int, int] | str, tuple[int, int], int]


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
        raise TypeError(f"rule: expected a rule such as {example}, one of {kinds}, got {_shown(value)}")
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"rule: expected a frozen dataclass, which can be compared and saved, got {_shown(value)}")
    if value.of not in (("bits",) if value.fixed else ("abs", "raw", "sigmoid")):
        raise ValueError(f"rule: expected its of to be 'abs', 'raw' or 'sigmoid', got {value.of!r}")


def mask_tensor(name: str, value: torch.Tensor, shape: torch.Size | None = None) -> None:
    tensor(name, value)
    if value.dtype != torch.bool:
        raise TypeError(f"{name}: expected a bool mask, got {value.dtype}")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name}: expected the weight's shape {tuple(shape)}, got {_shape(value)}")


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


def selection(scores: torch.Tensor, rule_: Rule, hint: Cut | None) -> None:
    score_tensor("scores", scores)
    rule(rule_)
    if rule_.fixed:
        raise ValueError("rule: Frozen() is a fixed mask, there is nothing to select; expected another")
    rule_.check(scores.shape)
    if hint is not None:
        _selection("hint", hint, scores.device, rule_)


def selected(value: object, scores: torch.Tensor, rule_: Rule) -> None:
    """Checks what a rule's ``select`` returned, which a user may have written."""
    _selection(f"rule: {type(rule_).__name__}.select", value, scores.device, rule_)
    if isinstance(value, Bits):
        packed_bits(value.bits, scores.shape)


def selections(scores: Sequence[torch.Tensor], rules: Sequence[Rule], hints: Sequence[Cut | None] | None) -> None:
    for name, value in (("scores", scores), ("rules", rules), ("hints", hints)):
        if value is not None and not isinstance(value, (list, tuple)):
            raise TypeError(f"{name}: expected a list, one entry per layer, got {type(value).__name__}")
        if value is not None and len(value) != len(scores):
            raise ValueError(f"{name}: expected {len(scores)} entries, one per layer, got {len(value)}")
    for s, r, h in zip(scores, rules, hints or [None] * len(scores), strict=True):
        selection(s, r, h)
        if s.device != scores[0].device:
            raise ValueError(f"scores: expected all layers on one device, got {scores[0].device} and {s.device}")


def _selection(name: str, value: object, device: torch.device, rule: Rule) -> None:
    expected = rule.selects
    if not isinstance(value, expected):
        raise TypeError(f"{name}: expected a {expected.__name__}, as select returns it, got {type(value).__name__}")
    if value.of != rule.of:
        raise ValueError(f"{name}: it was selected with of={value.of!r}, the rule ranks of={rule.of!r}")
    data = value.bits if isinstance(value, Bits) else value.data
    if isinstance(value, Cut) and (data.dtype != torch.int64 or data.shape != (2,) or not data.is_contiguous()):
        found = f"{data.dtype} of shape {_shape(data)} and strides {data.stride()}"
        raise ValueError(f"{name}: expected two contiguous int64, as select returns them, got {found}")
    if data.device != device:
        raise ValueError(f"{name}: expected it on the scores' device {device}, got {data.device}")


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    bias: torch.Tensor | None,
    signs: torch.Tensor | None,
) -> None:
    _no_trace()
    tensor("weight", weight)
    _dims("weight", weight, (2,), "(out_features, in_features)")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x: expected (..., {weight.shape[1]}) for weight {_shape(weight)}, got {_shape(x)}")
    _operands(x, weight, scores, rule_, bias, signs)


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    bias: torch.Tensor | None,
    stride: _Pair,
    padding: _Pair | str,
    dilation: _Pair,
    groups: int,
    signs: torch.Tensor | None,
) -> Pairs:
    """Checks, and returns the geometry, its numbers as pairs; padding stays "same" where it is that."""
    _no_trace()
    tensor("weight", weight)
    _dims("x", x, (3, 4), "(N, C, H, W) or (C, H, W)")
    _dims("weight", weight, (4,), "(O, C / groups, kh, kw)")
    stride, dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    *_, channels, height, width = x.shape
    out_channels, in_channels, kernel_h, kernel_w = weight.shape
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"groups: expected an int, got {_shown(groups)}")
    if groups < 1 or out_channels % groups:
        raise ValueError(f"groups: expected a positive divisor of {out_channels} output channels, got {groups}")
    if channels != in_channels * groups:
        expected = f"{in_channels * groups} channels for weight {_shape(weight)} and groups={groups}"
        raise ValueError(f"x: expected {expected}, got {channels}")
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding: expected 'same', 'valid' or numbers, got {padding!r}")
        if padding == "same" and stride != (1, 1):
            raise ValueError(f"padding: 'same' needs stride 1, got stride {stride}")
        if padding == "valid":
            padding = (0, 0)
    else:
        padding = _pair("padding", padding, 0)
    if not isinstance(padding, str):
        _reach("H", height, kernel_h, padding[0], dilation[0])
        _reach("W", width, kernel_w, padding[1], dilation[1])
    _operands(x, weight, scores, rule_, bias, signs)
    return stride, padding, dilation, groups


def conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    stride: _Single,
    padding: _Single | str,
    dilation: _Single,
    groups: int,
) -> Pairs:
    """Checks what is its own, and returns the geometry of a convolution of images one pixel high."""
    _no_trace()
    tensor("x", x)
    tensor("weight", weight)
    rule(rule_)
    _dims("x", x, (2, 3), "(N, C, L) or (C, L)")
    _dims("weight", weight, (3,), "(O, C / groups, k)")
    if isinstance(scores, torch.Tensor) and not rule_.fixed:
        _of_weights_shape(weight, scores)
    around = padding if isinstance(padding, str) else (0, _single("padding", padding))
    return (1, _single("stride", stride)), around, (1, _single("dilation", dilation)), groups


def masked_weight(
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    signs: torch.Tensor | None,
    weight_grad: str | None,
    score_grad: str,
) -> None:
    _no_trace()
    tensor("weight", weight)
    if weight.dtype not in _ACTIVATIONS:
        raise TypeError(f"weight: expected float32, bfloat16, float16 or float64, got {weight.dtype}")
    rule(rule_)
    rule_.check(weight.shape)
    _scores(weight, scores, rule_)
    if signs is not None:
        _signs(weight, scores, signs)
    if weight_grad not in (None, "all", "kept", "none"):
        raise ValueError(f"weight_grad: expected 'all', 'kept', 'none' or None, got {_shown(weight_grad)}")
    if score_grad not in ("weighted", "unweighted"):
        raise ValueError(f"score_grad: expected 'weighted' or 'unweighted', got {_shown(score_grad)}")
    for name, value in (("scores", scores), ("signs", signs)):
        if value is not None and value.device != weight.device:
            raise ValueError(f"{name}: expected it on weight's device {weight.device}, got {value.device}")


def mixed_weight(weight: torch.Tensor, bits: torch.Tensor, alphas: torch.Tensor) -> None:
    _no_trace()
    tensor("weight", weight)
    if weight.dtype not in _ACTIVATIONS:
        raise TypeError(f"weight: expected float32, bfloat16, float16 or float64, got {weight.dtype}")
    tensor("bits", bits)
    (size,) = packed_shape(weight.shape)
    if bits.dtype != torch.uint8:
        raise TypeError(f"bits: expected packed uint8, got {bits.dtype}")
    if bits.dim() != 2 or bits.shape[1] != size or len(bits) == 0:
        raise ValueError(
            f"bits: expected [tasks, {size}], a packed mask of {weight.numel()} weights in each row, got shape "
            f"{_shape(bits)}"
        )
    mixture("alphas", alphas, len(bits))
    for name, value in (("bits", bits), ("alphas", alphas)):
        if value.device != weight.device:
            raise ValueError(f"{name}: expected it on weight's device {weight.device}, got {value.device}")


def mixture(name: str, alphas: torch.Tensor, tasks: int) -> None:
    """Shares of ``tasks`` masks."""
    tensor(name, alphas)
    if not alphas.is_floating_point():
        raise TypeError(f"{name}: expected floating values, got {alphas.dtype}")
    if alphas.shape != (tasks,):
        raise ValueError(f"{name}: expected one for each of {tasks} tasks, [{tasks}], got shape {_shape(alphas)}")


def _single(name: str, value: _Single) -> int:
    if isinstance(value, (tuple, list)) and len(value) == 1:
        return value[0]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {_shown(value)}")
    return value


def _no_trace() -> None:
    """Refuses where the graph that is made would not compute what this package does."""
    if torch_private.jit_traces():
        raise RuntimeError(
            "torch.jit.trace cannot follow masked layers: call edgepop_kernels.materialize(model) first, which makes "
            "them torch's own"
        )
    if torch_private.exports_onnx():
        raise RuntimeError(
            "torch.onnx has no operators for masked layers: call edgepop_kernels.materialize(model) first, which makes "
            "them torch's own"
        )


def _reach(axis: str, size: int, kernel: int, padding: int, dilation: int) -> None:
    reach = dilation * (kernel - 1) + 1
    if size + 2 * padding < reach:
        raise ValueError(
            f"x: {axis} is {size} and padding {padding}, smaller than the kernel's reach {reach} "
            f"(kernel {kernel}, dilation {dilation})"
        )


def _operands(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    bias: torch.Tensor | None,
    signs: torch.Tensor | None,
) -> None:
    tensor("x", x)
    rule(rule_)
    rule_.check(weight.shape)
    dtype, device = x.dtype, x.device
    if dtype not in _ACTIVATIONS:
        raise TypeError(f"x: expected float32, bfloat16, float16 or float64, got {dtype}")
    if weight.dtype not in (torch.float32, dtype):
        raise TypeError(f"weight: expected float32 or x's dtype {dtype}, got {weight.dtype}")
    _scores(weight, scores, rule_)
    if bias is not None:
        tensor("bias", bias)
        if tuple(bias.shape) != (weight.shape[0],):
            raise ValueError(f"bias: expected shape ({weight.shape[0]},), got {_shape(bias)}")
        if bias.dtype not in (torch.float32, dtype):
            raise TypeError(f"bias: expected float32 or x's dtype {dtype}, got {bias.dtype}")
    if signs is not None:
        _signs(weight, scores, signs)
    for name, value in (("weight", weight), ("scores", scores), ("bias", bias), ("signs", signs)):
        if value is not None and value.device != device:
            raise ValueError(f"{name}: expected it on x's device {device}, got {value.device}")


def _signs(weight: torch.Tensor, scores: torch.Tensor | None, signs: torch.Tensor) -> None:
    packed_bits(signs, weight.shape, "signs")
    if weight.requires_grad or scores is None:
        raise ValueError("signs: expected them beside a weight that does not train, and scores or a mask of their own")
    if any(step != 0 for size, step in zip(weight.shape, weight.stride(), strict=True) if size > 1):
        raise ValueError(
            "signs: expected the weight beside them to be one number, expanded to its shape, got strides "
            f"{weight.stride()}"
        )


def cut(value: Selection, weight: torch.Tensor, rule_: Rule) -> None:
    if rule_.fixed:
        raise ValueError("cut: a frozen mask has none; expected None")
    _selection("cut", value, weight.device, rule_)
    if isinstance(value, Bits):
        packed_bits(value.bits, weight.shape)


def _scores(weight: torch.Tensor, scores: torch.Tensor | None, rule_: Rule) -> None:
    if rule_.fixed:
        if scores is None:
            raise ValueError("scores: Frozen() takes the mask in the scores' place, a bool tensor or packed bits")
        tensor("scores", scores)
        if scores.dtype == torch.uint8:
            packed_bits(scores, weight.shape)
            return
        mask_tensor("scores", scores)
    elif scores is None:
        if not rule_.ranks:
            raise ValueError(f"scores: None (the weight scores itself) needs a rule that ranks, got {_shown(rule_)}")
        if weight.dtype != torch.float32:
            raise TypeError(f"weight: scoring itself it must be float32, got {weight.dtype}")
        return
    else:
        score_tensor("scores", scores)
    _of_weights_shape(weight, scores)


def _of_weights_shape(weight: torch.Tensor, scores: torch.Tensor) -> None:
    if scores.shape != weight.shape:
        raise ValueError(
            f"scores: expected the weight's shape {_shape(weight)}, got {_shape(scores)}; where a layer's weight was "
            "replaced after its conversion (resize_token_embeddings), convert after that"
        )


def _dims(name: str, value: torch.Tensor, allowed: tuple[int, ...], form: str) -> None:
    if value.dim() not in allowed:
        raise ValueError(f"{name}: expected {form}, got shape {_shape(value)}")


def _pair(name: str, value: _Pair, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if type(pair) is tuple and len(pair) == 2 and type(pair[0]) is type(pair[1]) is int and min(pair) >= least:
        return pair  # what a layer hands in, each step
    if (
        not isinstance(pair, (tuple, list, torch.Size))
        or len(pair) not in (1, 2)
        or any(isinstance(v, bool) or not isinstance(v, int) for v in pair)
    ):
        raise TypeError(f"{name}: expected an int or a pair of ints, got {_shown(value)}")
    pair = (pair[0], pair[-1])
    if min(pair) < least:
        raise ValueError(f"{name}: expected at least {least}, got {_shown(value)}")
    return pair


def _shape(t: torch.Tensor) -> tuple[int, ...]:
    return tuple(t.shape)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else type(value).__name__
