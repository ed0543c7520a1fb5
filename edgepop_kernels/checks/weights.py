"""Checks of weights with their scores, and of what makes masked weights."""

import torch

from .. import torch_private
from ..rules import Rule, keeps_best
from .values import mask_tensor, packed_bits, packed_shape, rule, score_tensor, shape_of, shown, tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def masked_weight(
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule_: Rule,
    signs: torch.Tensor | None,
    weight_grad: str | None,
    score_grad: str,
) -> None:
    no_trace()
    tensor("weight", weight)
    if weight.dtype not in FLOATING:
        raise TypeError(f"weight: expected float32, bfloat16, float16 or float64, got {weight.dtype}")
    rule(rule_)
    rule_.check(weight.shape)
    scores_of(weight, scores, rule_)
    if signs is not None:
        signs_of(weight, scores, signs)
    if weight_grad not in (None, "all", "kept", "none"):
        raise ValueError(f"weight_grad: expected 'all', 'kept', 'none' or None, got {shown(weight_grad)}")
    if score_grad not in ("weighted", "unweighted"):
        raise ValueError(f"score_grad: expected 'weighted' or 'unweighted', got {shown(score_grad)}")
    for name, value in (("scores", scores), ("signs", signs)):
        if value is not None and value.device != weight.device:
            raise ValueError(f"{name}: expected it on weight's device {weight.device}, got {value.device}")


def mixed_weight(weight: torch.Tensor, bits: torch.Tensor, alphas: torch.Tensor) -> None:
    no_trace()
    tensor("weight", weight)
    if weight.dtype not in FLOATING:
        raise TypeError(f"weight: expected float32, bfloat16, float16 or float64, got {weight.dtype}")
    tensor("bits", bits)
    (size,) = packed_shape(weight.shape)
    if bits.dtype != torch.uint8:
        raise TypeError(f"bits: expected packed uint8, got {bits.dtype}")
    if bits.dim() != 2 or bits.shape[1] != size or len(bits) == 0:
        raise ValueError(
            f"bits: expected [tasks, {size}], a packed mask of {weight.numel()} weights in each row, got shape "
            f"{shape_of(bits)}"
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
        raise ValueError(f"{name}: expected one for each of {tasks} tasks, [{tasks}], got shape {shape_of(alphas)}")


def no_trace() -> None:
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


def signs_of(weight: torch.Tensor, scores: torch.Tensor | None, signs: torch.Tensor) -> None:
    packed_bits(signs, weight.shape, "signs")
    if weight.requires_grad or scores is None:
        raise ValueError("signs: expected them beside a weight that does not train, and scores or a mask of their own")
    if any(step != 0 for size, step in zip(weight.shape, weight.stride(), strict=True) if size > 1):
        raise ValueError(
            "signs: expected the weight beside them to be one number, expanded to its shape, got strides "
            f"{weight.stride()}"
        )


def scores_of(weight: torch.Tensor, scores: torch.Tensor | None, rule_: Rule) -> None:
    if rule_.fixed:
        if scores is None:
            raise ValueError("scores: Frozen() takes the mask in the scores' place, a bool tensor or packed bits")
        tensor("scores", scores)
        if scores.dtype == torch.uint8:
            packed_bits(scores, weight.shape)
            return
        mask_tensor("scores", scores)
    elif scores is None:
        if not keeps_best(rule_):
            raise ValueError(f"scores: None (the weight scores itself) needs a rule that ranks, got {shown(rule_)}")
        if weight.dtype != torch.float32:
            raise TypeError(f"weight: scoring itself it must be float32, got {weight.dtype}")
        return
    else:
        score_tensor("scores", scores)
    of_weights_shape(weight, scores)


def of_weights_shape(weight: torch.Tensor, scores: torch.Tensor) -> None:
    if scores.shape != weight.shape:
        raise ValueError(
            f"scores: expected the weight's shape {shape_of(weight)}, got {shape_of(scores)}; where a layer's weight "
            "was replaced after its conversion (resize_token_embeddings), convert after that"
        )
