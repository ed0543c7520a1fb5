"""Which weights of a trained network to keep, and what to set them to: Zhou et al. 2019, arXiv 1905.01067.

With w_i the weight at initialisation and w_f the trained one. A criterion gives scores, the best highest, that
``edgepop_kernels.mask(scores, TopK(keep, of="raw"))`` turns into a mask; "mask-1" actions say what a kept weight is
reset to, "mask-0" actions what becomes of a pruned one. Ties go to the lower index here, there they are random.
"""

import math

import torch
from torch import Tensor

import edgepop_kernels as ek

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


def scores(
    criterion: str, initial: Tensor, final: Tensor, *, gradient: Tensor | None = None, sign: str = "any"
) -> Tensor:
    """Scores of a layer's weights, float32 of their shape, by a criterion of ``CRITERIA``.

    initial, final: float32 of one shape; gradient: of the loss at ``initial``, for "snip" and "grad". sign: "same" puts
    weights whose sign changed behind all others, "different" those whose sign stayed. "large_init_large_final" ranks by
    the worse of the two ranks: its top n are the intersection of two equally large top sets. Raises ValueError.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: expected one of {', '.join(map(repr, CRITERIA))}, got {criterion!r}")
    if sign not in SIGNS:
        raise ValueError(f"sign: expected one of {', '.join(map(repr, SIGNS))}, got {sign!r}")
    _check_shape("final", final, "initial", initial)
    if criterion in ("snip", "grad") and gradient is None:
        raise ValueError(
            f"gradient: criterion {criterion!r} needs the loss's gradient at the initial weights, got None"
        )
    if gradient is not None:
        _check_shape("gradient", gradient, "initial", initial)
    found = CRITERIA[criterion](initial, final, gradient).to(torch.float32)
    return found.masked_fill(~sign_mask(sign, initial, final), -math.inf)


def sign_mask(sign: str, initial: Tensor, final: Tensor) -> Tensor:
    """Bool: the weights whose sign training kept ("same") or changed ("different"); "any": all."""
    same = initial.sign() == final.sign()
    return {"any": torch.ones_like(same), "same": same, "different": ~same}[sign]


def prune(score: Tensor, keep: float, mask: Tensor | None = None) -> Tensor:
    """The mask of the next round: the best ``keep`` of what ``mask`` (default: everything) still keeps. Bool.

    mask: bool of the scores' shape. Raises ValueError and TypeError.
    """
    if mask is None:
        return ek.mask(score, ek.TopK(keep, of="raw"))
    _check_mask(mask, "score", score)
    survivors = score[mask]
    pruned = mask.clone()
    pruned[mask] = ek.mask(survivors, ek.TopK(keep, of="raw"))
    return pruned


def treat_kept(action: str, initial: Tensor, mask: Tensor, rescale: bool = False) -> Tensor:
    """The layer's weights before retraining, where kept, by a mask-1 action; pruned ones are 0.

    rewind: w_i. random_reinit: all of w_i, shuffled; random_reshuffle: the kept w_i, shuffled among themselves.
    signed_*: the same, then given w_i's signs. signed_constant: sign(w_i) std(w_i); random_signed_constant: with random
    signs. rescale: times numel / kept (dynamic weight rescaling). mask: bool of w_i's shape. Raises ValueError and
    TypeError.
    """
    if action not in MASK_1:
        raise ValueError(f"action: expected one of {', '.join(map(repr, MASK_1))}, got {action!r}")
    _check_mask(mask, "initial", initial)
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


def treat_pruned(action: str, initial: Tensor, final: Tensor, mask: Tensor) -> Tensor:
    """The layer's weights before retraining, kept ones rewound to w_i, pruned ones by a mask-0 action.

    zero: 0. freeze_init: w_i. freeze_init_zero_mask: 0 where training shrank the weight, else w_i.
    freeze_init_zero_all: the same, and kept weights that training shrank start at 0 too. Two controls of
    freeze_init_zero_mask: freeze_init_zero_reshuffle zeroes as many pruned weights, drawn at random;
    freeze_init_zero_rev those that training grew. Pruned weights that are not 0 count in the forward and must stand
    still: train a plain layer whose weight's gradient is multiplied by the mask. All tensors have one shape, the mask
    is bool. Raises ValueError and TypeError.
    """
    if action not in MASK_0:
        raise ValueError(f"action: expected one of {', '.join(map(repr, MASK_0))}, got {action!r}")
    _check_shape("final", final, "initial", initial)
    _check_mask(mask, "initial", initial)
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


def _check_shape(name, value, other_name, other):
    if value.shape != other.shape:
        raise ValueError(f"{name}: expected {other_name}'s shape {tuple(other.shape)}, got {tuple(value.shape)}")


def _check_mask(mask, other_name, other):
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected a bool mask, got {mask.dtype}")
    _check_shape("mask", mask, other_name, other)


def _ranks(value):
    """Rank of each entry, 0 the lowest, as float32 (exact below 2**24 entries)."""
    ranks = torch.empty_like(value.flatten())
    ranks[value.flatten().argsort(stable=True)] = torch.arange(value.numel(), device=value.device, dtype=ranks.dtype)
    return ranks.view_as(value)


def _shuffled(flat):
    return flat[torch.randperm(flat.numel(), device=flat.device)]
