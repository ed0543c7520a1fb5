"""Criteria for which weights of a trained network to keep, and what to set them to: Zhou et al. 2019, arXiv 1905.01067.

With w_i the weight at initialisation and w_f the trained one. A criterion gives scores, the best highest, that
``edgepop_kernels.mask(scores, TopK(keep, of="raw"))`` turns into a mask; "mask-1" actions say what a kept weight is
reset to, "mask-0" actions what becomes of a pruned one. Ties go to the lower index here, there they are random.

>>> import torch
>>> from edgepop_kernels.methods.criteria import prune, scores, treat_kept
>>> initial, final = torch.randn(4, 6), torch.randn(4, 6)  # a layer's weight before and after its training
>>> mask = prune(scores("large_final", initial, final), keep=0.25)
>>> int(mask.sum())
6
>>> start = treat_kept("rewind", initial, mask)  # what the layer trains from next, under this mask
>>> bool((start == initial * mask).all())
True
"""

import math

import torch
from torch import Tensor

import edgepop_kernels as ek

from . import arguments

# Scores of (w_i, w_f, gradient at w_i); the last two are those of Lee et al. 2019 and its plain form.
CRITERIA = {
    "large_final": lambda wi, wf, g: wf.abs(),
    "small_final": lambda wi, wf, g: -wf.abs(),
    "large_init": lambda wi, wf, g: wi.abs(),
    "small_init": lambda wi, wf, g: -wi.abs(),
    "large_init_large_final": lambda wi, wf, g: torch.minimum(_ranks(wi.abs()), _ranks(wf.abs())),
    "small_init_small_final": lambda wi, wf, g: torch.minimum(_ranks(-wi.abs()), _ranks(-wf.abs())),
    "magnitude_increase": lambda wi, wf, g: wf.abs() - wi.abs(),
    "movement": lambda wi, wf, g: (wf - wi).abs(),
    "random": lambda wi, wf, g: torch.rand_like(wf),
    "snip": lambda wi, wf, g: (g * wi).abs(),
    "grad": lambda wi, wf, g: g.abs(),
}
SIGNS = ("any", "same", "different")
MASK_1 = ("rewind", "random_reinit", "random_reshuffle", "signed_reinit", "signed_reshuffle", "signed_constant")
MASK_1 += ("random_signed_constant",)
MASK_0 = ("zero", "freeze_init", "freeze_init_zero_mask", "freeze_init_zero_all", "freeze_init_zero_reshuffle")
MASK_0 += ("freeze_init_zero_rev",)


@torch.no_grad()
def scores(
    criterion: str, initial: Tensor, final: Tensor, *, gradient: Tensor | None = None, sign: str = "any"
) -> Tensor:
    """Scores of a layer's weights, float32 of their shape, by a criterion of ``CRITERIA``.

    initial, final: the weights, floating point of one shape; gradient: of the loss at ``initial``, for "snip" and
    "grad". sign: "same" puts weights whose sign changed behind all others, "different" those whose sign stayed.
    "large_init_large_final" ranks by the worse of the two ranks: its top n are the intersection of two equally large
    top sets. Infinities and NaN, as a training that diverged leaves them, are refused. Raises ValueError and TypeError.

    >>> initial, final = torch.tensor([0.5, -1.0, 0.2]), torch.tensor([0.9, -0.25, -0.6])
    >>> scores("large_final", initial, final)
    tensor([0.9000, 0.2500, 0.6000])
    >>> scores("large_final", initial, final, sign="same")
    tensor([0.9000, 0.2500,   -inf])
    """
    arguments.one_of("criterion", criterion, CRITERIA)
    arguments.one_of("sign", sign, SIGNS)
    _check_weights(initial=initial, final=final)
    if criterion in ("snip", "grad") and gradient is None:
        raise ValueError(
            f"gradient: criterion {criterion!r} needs the loss's gradient at the initial weights, got None"
        )
    if gradient is not None:
        _check_weights(initial=initial, gradient=gradient)
    # Differences and ranks of half precision numbers are no such numbers.
    wi, wf, g = (
        t if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in (initial, final, gradient)
    )
    return CRITERIA[criterion](wi, wf, g).to(torch.float32).masked_fill(~_sign_mask(sign, wi, wf), -math.inf)


@torch.no_grad()
def sign_mask(sign: str, initial: Tensor, final: Tensor) -> Tensor:
    """The weights, as a bool mask, whose sign training kept ("same") or changed ("different"); "any": all.

    initial, final: floating point of one shape. Raises ValueError and TypeError.

    >>> sign_mask("different", torch.tensor([0.5, -1.0]), torch.tensor([0.9, 0.25]))
    tensor([False,  True])
    """
    arguments.one_of("sign", sign, SIGNS)
    _check_weights(initial=initial, final=final)
    return _sign_mask(sign, initial, final)


def prune(score: Tensor, keep: float, mask: Tensor | None = None) -> Tensor:
    """The mask of the next round: the best ``keep`` of what ``mask`` (default: everything) still keeps. Bool.

    score: float32. mask: bool of its shape. Raises ValueError and TypeError.

    >>> first = prune(torch.tensor([4.0, 3.0, 2.0, 1.0]), keep=0.5)
    >>> first
    tensor([ True,  True, False, False])
    >>> prune(torch.tensor([1.0, 2.0, 3.0, 4.0]), keep=0.5, mask=first)
    tensor([False,  True, False, False])
    """
    rule = ek.TopK(keep, of="raw")
    arguments.real("score", score)
    if score.dtype != torch.float32:
        raise TypeError(f"score: expected float32, as scores() returns it, got {score.dtype}")
    if mask is None:
        return ek.mask(score, rule)
    arguments.mask(mask, "score", score)
    pruned = mask.clone()
    pruned[mask] = ek.mask(score[mask], rule)
    return pruned


@torch.no_grad()
def treat_kept(action: str, initial: Tensor, mask: Tensor, rescale: bool = False) -> Tensor:
    """The layer's weights before retraining, where kept, by a mask-1 action; pruned ones are 0.

    rewind: w_i. random_reinit: all of w_i, shuffled; random_reshuffle: the kept w_i, shuffled among themselves.
    signed_*: the same, then given w_i's signs. signed_constant: sign(w_i) std(w_i); random_signed_constant: with random
    signs. rescale: times numel / kept (dynamic weight rescaling). mask: bool of w_i's shape. Raises ValueError and
    TypeError.

    >>> initial, mask = torch.tensor([0.5, -1.0, 0.25, -2.0]), torch.tensor([True, True, False, False])
    >>> treat_kept("rewind", initial, mask)
    tensor([ 0.5000, -1.0000,  0.0000,  0.0000])
    >>> treat_kept("rewind", initial, mask, rescale=True)
    tensor([ 1., -2.,  0.,  0.])
    """
    arguments.one_of("action", action, MASK_1)
    _check_weights(initial=initial)
    arguments.mask(mask, "initial", initial)
    value = initial.clone()
    if action.endswith("_reinit"):
        value = _shuffled(initial.flatten()).view_as(initial)
    elif action.endswith("_reshuffle"):
        value[mask] = _shuffled(initial[mask])
    elif action.endswith("_constant"):
        value = torch.full_like(initial, initial.std(correction=0).item())
    if action == "random_signed_constant":
        value = value * (torch.randint_like(value, 2) * 2 - 1)
    elif action.startswith("signed_"):
        value = value.abs() * initial.sign()
    if rescale:
        value = value * (mask.numel() / mask.sum())
    return value.masked_fill(~mask, 0)


@torch.no_grad()
def treat_pruned(action: str, initial: Tensor, final: Tensor, mask: Tensor) -> Tensor:
    """The layer's weights before retraining, kept ones rewound to w_i, pruned ones by a mask-0 action.

    zero: 0. freeze_init: w_i. freeze_init_zero_mask: 0 where training shrank the weight, else w_i.
    freeze_init_zero_all: the same, and kept weights that training shrank start at 0 too. Two controls of
    freeze_init_zero_mask: freeze_init_zero_reshuffle zeroes as many pruned weights, drawn at random;
    freeze_init_zero_rev those that training grew. Pruned weights that are not 0 count in the forward and must stand
    still: train a plain layer whose weight's gradient is multiplied by the mask. All tensors have one shape, the mask
    is bool. Raises ValueError and TypeError.

    >>> initial, final = torch.tensor([0.5, -1.0, 0.25]), torch.tensor([0.75, -0.5, 0.75])
    >>> treat_pruned("freeze_init_zero_mask", initial, final, mask=torch.tensor([True, False, False]))
    tensor([0.5000, 0.0000, 0.2500])
    """
    arguments.one_of("action", action, MASK_0)
    _check_weights(initial=initial, final=final)
    arguments.mask(mask, "initial", initial)
    if action == "zero":
        return initial.masked_fill(~mask, 0)
    shrank = final.abs() < initial.abs()
    if action == "freeze_init_zero_reshuffle":
        zeroed = torch.zeros_like(mask)
        zeroed[~mask] = _shuffled(shrank[~mask])
    else:
        zeroed = {
            "freeze_init": mask & False,
            "freeze_init_zero_mask": shrank & ~mask,
            "freeze_init_zero_all": shrank,
            "freeze_init_zero_rev": (final.abs() > initial.abs()) & ~mask,
        }[action]
    return initial.masked_fill(zeroed, 0)


def _wide(value):
    """At least float32: half precision has no room for ranks, and rounds differences."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _sign_mask(sign, initial, final):
    same = initial.sign() == final.sign()
    return {"any": torch.ones_like(same), "same": same, "different": ~same}[sign]


def _check_weights(**named):
    """Finite, and all like the first of them."""
    (first_name, first), *_ = named.items()
    for name, value in named.items():
        arguments.real(name, value)
        arguments.like(name, value, first_name, first)
        arguments.finite(name, value)


def _ranks(value):
    """Rank of each entry, 0 the lowest, as float32 (exact below 2**24 entries)."""
    ranks = torch.empty_like(value.flatten())
    ranks[value.flatten().argsort(stable=True)] = torch.arange(value.numel(), device=value.device, dtype=ranks.dtype)
    return ranks.view_as(value)


def _shuffled(flat):
    return flat[torch.randperm(flat.numel(), device=flat.device)]
