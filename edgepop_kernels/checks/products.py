"""Checks of the operands of masked products."""

import torch

from ..rules import Rule
from .geometry import (
    Pair,
    Pairs,
    Single,
    TransposedPairs,
    Triple,
    Triples,
    groups_of,
    named_padding,
    pair,
    reach,
    single,
    transposed_size,
    triple,
)
from .values import dims, rule, shape_of, tensor
from .weights import FLOATING, no_trace, of_weights_shape, scores_of, signs_of


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    bias: torch.Tensor | None,
    signs: torch.Tensor | None,
) -> None:
    no_trace()
    tensor("weight", weight)
    dims("weight", weight, (2,), "(out_features, in_features)")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x: expected (..., {weight.shape[1]}) for weight {shape_of(weight)}, got {shape_of(x)}")
    _operands(x, weight, scores, rule_, bias, signs, weight.shape[0])


def transposed_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    bias: torch.Tensor | None,
    signs: torch.Tensor | None,
) -> None:
    no_trace()
    tensor("weight", weight)
    dims("weight", weight, (2,), "(in_features, out_features)")
    if x.dim() == 0 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"x: expected (..., {weight.shape[0]}) for weight {shape_of(weight)}, got {shape_of(x)}")
    _operands(x, weight, scores, rule_, bias, signs, weight.shape[1])


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    bias: torch.Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    signs: torch.Tensor | None,
) -> Pairs:
    """Checks, and returns the geometry, its numbers as pairs; padding stays "same" where it is that."""
    no_trace()
    tensor("weight", weight)
    dims("x", x, (3, 4), "(N, C, H, W) or (C, H, W)")
    dims("weight", weight, (4,), "(O, C / groups, kh, kw)")
    stride, dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
    *_, channels, height, width = x.shape
    out_channels, in_channels, kernel_h, kernel_w = weight.shape
    groups_of(groups, out_channels, "output")
    if channels != in_channels * groups:
        expected = f"{in_channels * groups} channels for weight {shape_of(weight)} and groups={groups}"
        raise ValueError(f"x: expected {expected}, got {channels}")
    if isinstance(padding, str):
        padding = "same" if named_padding(padding, stride) else (0, 0)
    else:
        padding = pair("padding", padding, 0)
    if not isinstance(padding, str):
        reach("H", height, kernel_h, padding[0], dilation[0])
        reach("W", width, kernel_w, padding[1], dilation[1])
    _operands(x, weight, scores, rule_, bias, signs, out_channels)
    return stride, padding, dilation, groups


def conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    stride: Single,
    padding: Single | str,
    dilation: Single,
    groups: int,
) -> Pairs:
    """Checks what is its own, and returns the geometry of a convolution of images one pixel high."""
    _lines(x, weight, scores, rule_, "(O, C / groups, k)")
    around = padding if isinstance(padding, str) else (0, single("padding", padding))
    return (1, single("stride", stride)), around, (1, single("dilation", dilation)), groups


def conv3d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    stride: Triple,
    padding: Triple | str,
    dilation: Triple,
    groups: int,
) -> Triples:
    """Checks what a convolution of images does not, and returns the geometry, its numbers as triples; padding stays
    "same" where it is that."""
    no_trace()
    tensor("x", x)
    tensor("weight", weight)
    rule(rule_)
    dims("x", x, (4, 5), "(N, C, D, H, W) or (C, D, H, W)")
    dims("weight", weight, (5,), "(O, C / groups, kd, kh, kw)")
    if isinstance(scores, torch.Tensor) and not rule_.fixed:
        of_weights_shape(weight, scores)
    stride, dilation = triple("stride", stride, 1), triple("dilation", dilation, 1)
    if isinstance(padding, str):
        padding = "same" if named_padding(padding, stride) else (0, 0, 0)
    else:
        padding = triple("padding", padding, 0)
    groups_of(groups, weight.shape[0], "output")
    channels = weight.shape[1] * groups
    if x.shape[-4] != channels:
        expected = f"{channels} channels for weight {shape_of(weight)} and groups={groups}"
        raise ValueError(f"x: expected {expected}, got {x.shape[-4]}")
    if not isinstance(padding, str):
        for axis, size, kernel, around, apart in zip(
            "DHW", x.shape[-3:], weight.shape[2:], padding, dilation, strict=True
        ):
            reach(axis, size, kernel, around, apart)
    return stride, padding, dilation, groups


def conv_transpose2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    bias: torch.Tensor | None,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    dilation: Pair,
    groups: int,
    signs: torch.Tensor | None,
) -> TransposedPairs:
    """Checks, and returns the geometry, its numbers as pairs."""
    no_trace()
    tensor("weight", weight)
    dims("x", x, (3, 4), "(N, C, H, W) or (C, H, W)")
    dims("weight", weight, (4,), "(C, O / groups, kh, kw)")
    stride, dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
    padding, output_padding = pair("padding", padding, 0), pair("output_padding", output_padding, 0)
    *_, channels, height, width = x.shape
    groups_of(groups, weight.shape[0], "input")
    if channels != weight.shape[0]:
        raise ValueError(f"x: expected {weight.shape[0]} channels for weight {shape_of(weight)}, got {channels}")
    for axis, size, out, extra, s, d in zip(
        ("H", "W"),
        (height, width),
        transposed_size((height, width), weight.shape[2:], stride, padding, output_padding, dilation),
        *(output_padding, stride, dilation),
        strict=True,
    ):
        if extra >= max(s, d):
            raise ValueError(f"output_padding: expected less than stride {s} or dilation {d}, got {extra}")
        if size < 1 or out < 1:
            raise ValueError(f"x: {axis} is {size}, and the output's would be {out}; expected at least 1 of both")
    _operands(x, weight, scores, rule_, bias, signs, weight.shape[1] * groups)
    return stride, padding, output_padding, dilation, groups


def conv_transpose1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    stride: Single,
    padding: Single,
    output_padding: Single,
    dilation: Single,
    groups: int,
) -> TransposedPairs:
    """Checks what is its own, and returns the geometry of a transposed convolution of images one pixel high."""
    _lines(x, weight, scores, rule_, "(C, O / groups, k)")
    around, extra = single("padding", padding), single("output_padding", output_padding)
    return (1, single("stride", stride)), (0, around), (0, extra), (1, single("dilation", dilation)), groups


def _lines(x: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor | None, rule_: Rule, form: str) -> None:
    """Checks operands of one dimension; form: of the weight."""
    no_trace()
    tensor("x", x)
    tensor("weight", weight)
    rule(rule_)
    dims("x", x, (2, 3), "(N, C, L) or (C, L)")
    dims("weight", weight, (3,), form)
    if isinstance(scores, torch.Tensor) and not rule_.fixed:
        of_weights_shape(weight, scores)


def _operands(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    bias: torch.Tensor | None,
    signs: torch.Tensor | None,
    outputs: int,
) -> None:
    tensor("x", x)
    rule(rule_)
    dtype, device = x.dtype, x.device
    if dtype not in FLOATING:
        raise TypeError(f"x: expected float32, bfloat16, float16 or float64, got {dtype}")
    if weight.dtype not in (torch.float32, dtype):
        raise TypeError(f"weight: expected float32 or x's dtype {dtype}, got {weight.dtype}")
    scores_of(weight, scores, rule_)
    if bias is not None:
        tensor("bias", bias)
        if tuple(bias.shape) != (outputs,):
            raise ValueError(f"bias: expected shape ({outputs},), got {shape_of(bias)}")
        if bias.dtype not in (torch.float32, dtype):
            raise TypeError(f"bias: expected float32 or x's dtype {dtype}, got {bias.dtype}")
    if signs is not None:
        signs_of(weight, scores, signs)
    for name, value in (("weight", weight), ("scores", scores), ("bias", bias), ("signs", signs)):
        if value is not None and value.device != device:
            raise ValueError(f"{name}: expected it on x's device {device}, got {value.device}")
