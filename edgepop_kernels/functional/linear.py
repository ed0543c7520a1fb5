"""Masked linear products."""

import torch

from .. import checks
from ..autograd import MaskedLinear, Spends, apply
from ..backend import prepared as _prepared
from ..cut import Selection
from ..rules import Rule
from .calls import autocast, by_plan, checked_cut, key_of, masking, prepare


def masked_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None = None,
    *,
    cut: Selection | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes ``F.linear(x, weight * mask, bias)`` with the mask of ``scores`` under ``rule`` applied inside the
    product.

    x        (..., in_features), float32, bfloat16 or float16, any strides; float64 on the reference backend
    weight   (out_features, in_features), float32 or x's dtype; rounded to x's dtype after masking
    scores   float32 of the weight's shape; None: the weight scores itself and dW reaches every edge (Discovering
             Neural Wirings); for Frozen the bool mask, or its packed bits
    bias     (out_features,) or None
    cut      the ``select`` of these very scores under this rule, to save the selection or to repeat a draw
    signs    of a weight whose elements are all +c or -c: ``pack_mask(weight < 0)``; weight is then c, expanded to the
             weight's shape, and does not train (``pack_weights`` does this for layers)
    returns  (..., out_features) in x's dtype; under autocast, in autocast's dtype

    Gradients are straight-through (Ramanujan et al. 2020): see ``autograd``. Raises TypeError, ValueError.

    >>> weight, scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0.1, -3.0, 2.0, -0.2]])
    >>> ek.masked_linear(torch.ones(1, 4), weight, scores, ek.TopK(0.5))
    tensor([[5.]])
    """
    return linear_product(x, weight, scores, rule, bias, None, checked_cut(cut, weight, rule), signs=signs)


def linear_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    rule: Rule,
    bias: torch.Tensor | None,
    geometry: None,
    cut: Selection | None,
    watched: bool | None = None,
    update: Spends | None = None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    """``masked_linear`` for layers, whose cut needs no check, and whose optimizer may step in backward. geometry: None,
    as a matrix has none."""
    x, weight, bias = autocast(x, weight, bias, signs)
    key = key_of(x, weight, scores, rule, bias, None, watched, signs)
    prepared = None if key is None else _prepared.get(key)  # a compiled call would be guarded by the others there
    if prepared is None:
        checks.linear(x, weight, scores, rule, bias, signs)
        prepared = prepare(key, MaskedLinear, x, weight, scores, rule, signs)
    scores, data, bits, of, planes = masking(weight, scores, rule, cut)
    y = by_plan(prepared, x, weight, scores, data, bits, bias, update, planes, signs)
    if y is not None:
        return y
    bits = bits if planes is None else planes[0]
    return apply(MaskedLinear, x, weight, scores, data, bits, of, bias, update, signs, planes)
