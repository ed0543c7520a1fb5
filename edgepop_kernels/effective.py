"""Masks and masked weights as tensors that gradients reach, for products which are not this package's own."""

from typing import Literal

import torch

from . import checks, functional, mixing, selecting
from .autograd import MaskedWeight, MixedWeight, StraightThrough, apply
from .cut import Selection
from .rules import Rule

WeightGrad = Literal["all", "kept", "none"]
ScoreGrad = Literal["weighted", "unweighted"]


def masked(scores: torch.Tensor, rule: Rule, *, cut: Selection | None = None) -> torch.Tensor:
    """The mask of ``scores`` under ``rule`` as float32 of the scores' shape, 1 where kept, with a straight-through
    gradient: dS = g * map'(S), for every score.

    For masks on what is no layer's weight: a batch norm's vector, activations. scores: float32, any shape and strides;
    for Frozen the bool mask, which gets no gradient. cut: the ``select`` of these very scores under this rule, to save
    the selection or to repeat a draw. Raises TypeError, ValueError.

    >>> scores = torch.tensor([0.1, -3.0, 2.0, -0.2], requires_grad=True)
    >>> mask = ek.masked(scores, ek.TopK(0.5))
    >>> mask.sum().backward()
    >>> mask.tolist(), scores.grad.tolist()
    ([0.0, 1.0, 1.0, 0.0], [1.0, -1.0, 1.0, -1.0])
    """
    checks.rule(rule)
    if rule.fixed:
        checks.mask_tensor("scores", scores)
        return scores.to(torch.float32)
    functional.checked_cut(cut, scores, rule)
    cut = selecting.select(scores, rule) if cut is None else cut
    return apply(StraightThrough, scores, selecting.selected_mask(scores, cut), rule.of)


def masked_weight(
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    *,
    cut: Selection | None = None,
    signs: torch.Tensor | None = None,
    weight_grad: WeightGrad | None = None,
    score_grad: ScoreGrad = "weighted",
) -> torch.Tensor:
    """The effective weight ``weight * mask`` as a tensor, through which the gradients of ``masked_linear`` flow.

    For code that slices a masked weight, bounds it, sums several, or multiplies in a way that no masked product does.
    It is written to memory, and its gradient is: where a masked product does, take that.

    weight       float32, bfloat16, float16 or float64, any shape and strides
    scores       float32 of the weight's shape; None: the weight scores itself (Discovering Neural Wirings), in float32;
                 for Frozen the bool mask, or its packed bits
    cut, signs   as in ``masked_linear``
    weight_grad  where the weight trains: "kept" (dW = dW_eff * M), "all" (dW = dW_eff) or "none"; if not given as
                 ``masked_linear`` has it, "all" where the weight scores itself, else "kept"
    score_grad   "weighted": dS = dW_eff * W * map'(S); "unweighted": dS = dW_eff * map'(S), as torchao's supermasks
    returns      the weight's dtype and shape

    Raises TypeError, ValueError, and RuntimeError where the gradients are differentiated again.

    >>> weight, scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0.1, -3.0, 2.0, -0.2]])
    >>> scores.requires_grad_()
    tensor([[ 0.1000, -3.0000,  2.0000, -0.2000]], requires_grad=True)
    >>> effective = ek.masked_weight(weight, scores, ek.TopK(0.5))
    >>> effective[:, 1:].sum().backward()
    >>> effective.tolist(), scores.grad.tolist()
    ([[0.0, 2.0, 3.0, 0.0]], [[0.0, -2.0, 3.0, -4.0]])
    """
    checks.masked_weight(weight, scores, rule, signs, weight_grad, score_grad)
    return weight_under(weight, scores, rule, functional.checked_cut(cut, weight, rule), signs, weight_grad, score_grad)


def weight_under(
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    cut: Selection | None,
    signs: torch.Tensor | None,
    weight_grad: WeightGrad | None,
    score_grad: ScoreGrad,
) -> torch.Tensor:
    """``masked_weight`` of arguments that need no check."""
    if rule.fixed:
        assert scores is not None  # the mask, as the checks have seen
        bits, scores = selecting.pack_mask(scores) if scores.dtype == torch.bool else scores, None
        return apply(MaskedWeight, weight, None, bits, rule.of, weight_grad or "kept", True, signs)
    ranked = weight if scores is None else scores
    bits = selecting.selected_bits(ranked, selecting.select(ranked, rule) if cut is None else cut)
    weight_grad = weight_grad or ("all" if scores is None else "kept")
    return apply(MaskedWeight, weight, scores, bits, rule.of, weight_grad, score_grad == "weighted", signs)


def mixed_weight(weight: torch.Tensor, bits: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """The weight under several masks at once, ``weight * sum(alphas[t] * M_t)``, as a tensor through which gradients
    reach the alphas: supermasks in superposition (Wortsman et al. 2020, section 3).

    weight   float32, bfloat16, float16 or float64, any shape and strides
    bits     uint8 [tasks, bytes]: each row a mask of the weight's shape, as ``pack_mask`` packs it
    alphas   [tasks], of a floating dtype
    returns  the weight's dtype and shape

    One product with it is all that a superposition costs, however many tasks there are; no mask is unpacked as a whole.
    Gradients: dalpha_t = <dW_eff * W, M_t>, and dW = dW_eff * sum(alphas[t] * M_t) where the weight trains. Raises
    TypeError, ValueError, and RuntimeError where the gradients are differentiated again.

    >>> weight = torch.tensor([[1.0, 2.0, 3.0]])
    >>> masks = torch.tensor([[[True, True, False]], [[False, True, True]]])
    >>> alphas = torch.tensor([0.75, 0.25], requires_grad=True)
    >>> mixed = ek.mixed_weight(weight, torch.stack([ek.pack_mask(m) for m in masks]), alphas)
    >>> mixed.sum().backward()
    >>> mixed.tolist(), alphas.grad.tolist()
    ([[0.75, 2.0, 0.75]], [3.0, 5.0])
    """
    checks.mixed_weight(weight, bits, alphas)
    return weight_of_codes(weight, mixing.codes_of(bits), alphas)


def weight_of_codes(weight: torch.Tensor, codes: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """``mixed_weight`` of masks as ``mixing.codes_of`` has them, of arguments that need no check."""
    return apply(MixedWeight, weight, codes, alphas)
