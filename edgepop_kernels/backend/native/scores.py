"""Selections, draws, packed masks and steps of optimizers."""

import functools
import math
from collections.abc import Callable, Sequence

import torch

from ... import torch_private
from ...masks import packed_bytes
from . import compiled
from .compiled import OF


def select(scores, kept, of, hint):
    return select_planes(scores, kept, of, hint, [False] * len(scores))[0]


def select_planes(scores, kept, of, hint, wanted):
    """The cuts, and beside each the planes of its layer (``Cut``): the pass that finds a cut writes mask and signs too,
    where they are wanted and the scores lie in logical order."""
    cuts, planes = torch.empty(len(scores), 2, dtype=torch.int64), []
    hint = None if hint is None else hint.contiguous()
    hints = [0] * len(scores) if hint is None else range(hint.data_ptr(), hint.data_ptr() + 16 * len(scores), 16)
    for s in scores:
        if s.dim() > 4:  # held until the call is over
            scores = [_at_most_four(s) for s in scores]
            break
    into, rankings = cuts.data_ptr(), []
    for s, m, kind, start, wants in zip(scores, kept, of, hints, wanted, strict=True):
        bits, ranking = _ranking(s, m, kind, into, start, wants)
        planes.append(bits)
        rankings.append(ranking)
        into += 16
    compiled.kernels.select(rankings, torch.get_num_threads())
    return cuts, planes


_packed_bytes = functools.cache(packed_bytes)


def _ranking(scores, kept, of, cut, hint, wants):
    """The planes of a layer to be ranked, and what the module is told of it. Planes lie in logical order: there are
    none where the scores do not, nor where they are not wanted. cut, hint: addresses."""
    lead = 4 - scores.dim()
    size, stride = (1,) * lead + tuple(scores.shape), (0,) * lead + scores.stride()
    planes, mask, signs = None, 0, 0
    if wants and scores.is_contiguous():
        plane = _packed_bytes(scores.numel())
        planes = torch.empty(2 if of == "abs" else 1, plane, dtype=torch.uint8)
        mask = planes.data_ptr()
        if of == "abs":  # else the gradient has no sign of the scores in it
            signs = mask + plane
    return planes, (scores.data_ptr(), size, stride, OF[of], kept, cut, hint, mask, signs)


def fingerprint(scores: Sequence[torch.Tensor]) -> Callable[[], object] | None:
    """A function that makes something to compare of all the scores where they lie, which most writes of one change; to
    be called while they lie there. None where it cannot be had at once: on a GPU, of more dimensions than lie as four
    would, of what is no plain memory, and without the native module."""
    if compiled.kernels is None:
        return None
    looks = []
    for s in scores:
        if s.device.type != "cpu" or type(s) not in torch_private.PLAIN or s.is_neg() or s._is_zerotensor():
            return None
        where = s.data_ptr()
        if s.dim() > 4:
            s = _at_most_four(s)
            if s.data_ptr() != where:
                return None
        lead = 4 - s.dim()
        size, stride = (1,) * lead + tuple(s.shape), (0,) * lead + s.stride()
        looks.append(functools.partial(compiled.kernels.fingerprint, where, size, stride))
    return looks[0] if len(looks) == 1 else lambda: [look() for look in looks]


def step(updates, rankings):
    """Carries out each Update in place; the cuts and planes of the first of them, which are scores, each by its
    Ranking."""
    cuts = torch.empty(len(rankings), 2, dtype=torch.int64)
    parameters, layers, planes, into = [], [], [], cuts.data_ptr()
    for value, grad, moments, coefficients in updates:
        addresses = [0, 0, 0]
        for i, moment in enumerate(moments):
            addresses[i] = moment.data_ptr()
        parameters.append((value.data_ptr(), grad.data_ptr(), addresses, value.numel(), coefficients[:2]))
    for (value, *_), (kept, of, hint, wants) in zip(updates, rankings, strict=False):  # those that are scores first
        if value.dim() > 4:
            value = _at_most_four(value)  # a view: else there is no ranking
        bits, layer = _ranking(value, kept, of, into, 0 if hint is None else hint.data.data_ptr(), wants)
        planes.append(bits)
        layers.append(layer)
        into += 16
    compiled.kernels.step(parameters, layers, torch.get_num_threads())
    return cuts, planes


def draw(scores, seed):
    bits = torch.empty(packed_bytes(scores.numel()), dtype=torch.uint8)
    s = _at_most_four(scores)
    compiled.kernels.draw(s.data_ptr(), *_sequence(s), seed.data_ptr(), bits.data_ptr(), torch.get_num_threads())
    return bits


def mask_bits(scores, cut, of):
    bits = torch.empty(packed_bytes(scores.numel()), dtype=torch.uint8)
    s = _at_most_four(scores)
    cut, threads = cut.contiguous(), torch.get_num_threads()
    compiled.kernels.mask_bits(s.data_ptr(), *_sequence(s), OF[of], cut.data_ptr(), bits.data_ptr(), threads)
    return bits


def group_bits(scores, kept, group, dim, of):
    bits = torch.empty(packed_bytes(scores.numel()), dtype=torch.uint8)
    apart = max(math.prod(scores.shape[dim + 1 :]), 1)  # without elements there is no group, however far apart
    s = _at_most_four(scores)
    groups = group, kept, apart
    compiled.kernels.group_bits(s.data_ptr(), *_sequence(s), OF[of], groups, bits.data_ptr(), torch.get_num_threads())
    return bits


def block_sums(scores, block, of):
    counts, sizes = _blocks([n // size for n, size in zip(scores.shape, block, strict=True)], block)
    sums = torch.empty(counts[: scores.dim()], dtype=torch.float32)
    s = _at_most_four(scores)
    threads = torch.get_num_threads()
    compiled.kernels.block_sums(s.data_ptr(), *_sequence(s), OF[of], counts, sizes, sums.data_ptr(), threads)
    return sums


def block_bits(sums, cut, block):
    bits = torch.empty(packed_bytes(sums.numel() * math.prod(block)), dtype=torch.uint8)
    sums, cut = sums.contiguous(), cut.contiguous()
    blocks = _blocks(sums.shape, block)
    compiled.kernels.block_bits(sums.data_ptr(), cut.data_ptr(), *blocks, bits.data_ptr(), torch.get_num_threads())
    return bits


def _blocks(counts, sizes):
    """As five dimensions, the number of blocks in each and their size."""
    behind = (1,) * (5 - len(counts))
    return (*counts, *behind), (*sizes, *behind)


def _at_most_four(scores):
    """Scores of any dimensions as those of at most four: of a convolution of volumes a view, else a copy perhaps."""
    return scores if scores.dim() <= 4 else scores.flatten(2)


def _sequence(scores):
    """Sizes and strides of four dimensions; what each training step asks for has them where it asks, a call less."""
    lead = 4 - scores.dim()
    return (1,) * lead + tuple(scores.shape), (0,) * lead + scores.stride()
