"""The masked product of views of tensors and the weight gradient. Only strides are read: nothing is copied."""

from dataclasses import dataclass

import torch

from ...tuning import Problem
from .grads import ParameterGrads
from .kernels.masked_product import masked_product_kernel, sum_splits_kernel
from .kernels.weight_grad import weight_grad_kernel
from .launch import Signs, kind, launch, operands, tile, warpgroups

LEAST_K = 16  # of a product; a convolution with fewer channels folds its taps into them
INT32 = 2**31  # offsets within an image, and within a row of the weight, stay below
_BLOCK = 1024  # elements of a program that adds splits
_MOST_PIXELS = 7 * 2**28  # of a batch: positions are int32, up to an eighth (``rounded_up``) and a tile past the end


@dataclass(frozen=True)
class Axis:
    """One spatial axis: at tap i of ``taps``, output pixel o reads input pixel o * step + offset + i * pitch."""

    taps: int
    step: int
    offset: int
    pitch: int


POINT = Axis(1, 1, 0, 0)


@dataclass(frozen=True)
class Filters:
    """Operand A: rows m, channels k, taps, as strides of W and S and of the logical index of a weight.

    A forward product has rows o and channels c; the gradient to the input has them exchanged, and the taps of one
    stride phase.
    """

    weight: torch.Tensor  # a view (m, k, taps_h, taps_w) of one group
    weight_group: int  # stride between groups
    scores: torch.Tensor  # likewise, or the packed mask
    score_group: int
    index: tuple[int, ...]  # m, k, tap row, tap column, group, first
    bits: tuple[int, ...]  # likewise, where the packed mask and the signs have a weight's bit: 1 along k or m
    cut: torch.Tensor | None
    of: str
    same: bool  # the weight scores itself
    signs: Signs | None = None  # of a weight that is not in memory


def masked_product(src, filters, bias, out, rows: Axis, columns: Axis, groups: int, switch: str) -> None:
    """out (n, groups * m, h, w) = filters applied to src (n, groups * k, H, W) at the pixels of the two axes."""
    m, k, taps_h, taps_w = filters.weight.shape
    pixels = pixels_of(out, src)
    for strides in (filters.weight.stride(), filters.index, filters.bits):
        _check_offsets("weight", "one row", (k, taps_h, taps_w), strides[1:4])
    fold = k < LEAST_K and taps_h * taps_w > 1
    packed, signs = filters.of == "bits", filters.signs
    scattered = fold or not (
        _in_vectors(src, 1) and _in_vectors(filters.weight, 0, 1) and (packed or _in_vectors(filters.scores, 0, 1))
    )
    problem = Problem("product", kind(src.dtype, switch), m, pixels, taps_h * taps_w * k, groups, scattered)
    t = tile(problem, src.device)
    block_k = t.k if fold else min(t.k, max(LEAST_K, _power_of_two(k)))
    steps = -(-taps_h * taps_w * k // block_k) if fold else taps_h * taps_w * -(-k // block_k)
    per_split = -(-steps // t.splits)
    splits = -(-steps // per_split) if steps else 1
    target = out
    if splits > 1:
        n, c, h, w = out.shape
        target = torch.empty(splits, n, h, w, c, dtype=torch.float32, device=out.device).permute(0, 1, 4, 2, 3)
    out_strides = target.stride() if splits > 1 else (0, *out.stride())
    args = (
        src,
        (*src.stride(), k * src.stride(1)),
        tuple(src.shape[2:]),
        *((filters.weight, (*filters.weight.stride(), filters.weight_group), None) if signs is None else signs.args),
        filters.scores,
        None if packed else (*filters.scores.stride(), filters.score_group),
        filters.index,
        filters.bits,
        filters.cut,
        None if splits > 1 else bias,
        target,
        (*out_strides[1:], m * out_strides[2], out_strides[0]),
        tuple(out.shape[2:]),
        pixels,
        geometry(rows, columns),
    )
    launch(
        masked_product_kernel,
        (-(-m // t.m) * -(-pixels // t.n), groups, splits),
        src,
        args,
        MC=m,
        KC=k,
        TAPS_H=taps_h,
        TAPS_W=taps_w,
        OF=filters.of,
        SAME=filters.same,
        **_runs(filters, fold, t.m, block_k),
        LOADED=warpgroups(src.device),
        BIAS=bias is not None and splits == 1,
        FOLD=fold,
        STEPS=per_split,
        BLOCK_M=t.m,
        BLOCK_N=t.n,
        BLOCK_K=block_k,
        BAND=t.band,
        num_warps=t.warps,
        num_stages=t.stages,
        **operands(src.dtype, switch),
    )
    if splits > 1:
        args = (target, bias, out, out.stride(), tuple(out.shape[1:]), out.numel())
        grid = (-(-out.numel() // _BLOCK),)
        launch(sum_splits_kernel, grid, src, args, SPLITS=splits, BIAS=bias is not None, BLOCK=_BLOCK)


def _runs(filters, fold, block_m, block_k):
    """How a tile reads packed bits, of which its rows or its columns are runs."""
    along_m, along_k, taps_h, taps_w, group, first = filters.bits
    by_k = along_k == 1
    run = min(32, block_k if by_k else block_m)
    apart = [along_m if by_k else along_k, group, first] + ([] if by_k and fold else [taps_h, taps_w])
    return {"RUN_M": 1 if by_k else run, "RUN_K": run if by_k else 1, "WITHIN": all(s % run == 0 for s in apart)}


def weight_grad(dy, x, grads: ParameterGrads, rows: Axis, columns: Axis, groups: int, switch: str):
    """(dS, dW) of filters (o, c, kh, kw) from dy (n, o, h, w) and x (n, groups * c, H, W)."""
    o, c, kh, kw = grads.shape
    m, taps = o // groups, kh * kw
    pixels = pixels_of(dy, x)
    if pixels == 0:
        return grads.of_nothing()
    _check_offsets("weight", "one row", (c, kh, kw), (taps, kw, 1))
    fold = c < LEAST_K and taps > 1
    scattered = fold or not all(_in_vectors(t, 1) for t in (dy, x, *grads.epilogue))
    t = tile(Problem("grad", kind(x.dtype, switch), m, c * taps, pixels, groups, scattered), x.device)
    block_n = t.n if fold else min(t.n, max(LEAST_K, _power_of_two(c)))
    run = min(32, block_n)
    tiles_n = -(-c * taps // block_n) if fold else taps * -(-c // block_n)
    per_split = rounded_up(-(-pixels // (t.k * t.splits)))
    splits = -(-pixels // (t.k * per_split))
    partials = grads.partials(splits) if splits > 1 else None
    images = (dy, dy.stride(), tuple(dy.shape[2:]), x, x.stride(), tuple(x.shape[2:]), pixels, geometry(rows, columns))
    launch(
        weight_grad_kernel,
        (-(-m // t.m) * tiles_n, groups, splits),
        x,
        (*images, partials, grads.shape.numel(), *grads.args),
        MC=m,
        KC=c,
        KW=kw,
        TAPS=taps,
        FOLD=fold,
        RUN=run,
        WITHIN=c % run == 0,
        STEPS=per_split,
        BLOCK_M=t.m,
        BLOCK_N=block_n,
        BLOCK_K=t.k,
        BAND=t.band,
        num_warps=t.warps,
        num_stages=t.stages,
        **grads.meta,
        **operands(x.dtype, switch),
    )
    return grads.result() if partials is None else grads.of_sum(partials)


def pixels_of(out: torch.Tensor, src: torch.Tensor) -> int:
    """Pixels (linear layers: rows) that a kernel computes, or sums over; ValueError where its int32 would overflow."""
    pixels = out.shape[0] * out.shape[2] * out.shape[3]
    if pixels > _MOST_PIXELS:
        raise ValueError(f"x: expected at most {_MOST_PIXELS} rows or output pixels in a batch, got {pixels}")
    for image in (src, out[:, :1]):  # the channels of an output are counted in 64 bits
        _check_offsets("x", "one image", image.shape[1:], image.stride()[1:])
    return pixels


def _check_offsets(name, within, shape, strides):
    farthest = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if farthest >= INT32:
        raise ValueError(f"{name}: expected offsets within {within} below 2**31, got {farthest}")


def geometry(rows: Axis, columns: Axis) -> tuple[int, ...]:
    return rows.step, columns.step, rows.offset, columns.offset, rows.pitch, columns.pitch


def rounded_up(steps: int) -> int:
    """Rounds up to four significant bits: a kernel is compiled for its number of steps, and batches come in many
    sizes."""
    shift = max(steps.bit_length() - 4, 0)
    return -(-steps >> shift) << shift


def _in_vectors(t: torch.Tensor, *axes: int) -> bool:
    """Whether a tile of ``t`` is made of 16-byte runs along one of ``axes``, as far as triton sees, which knows of a
    stride whether it is 1, and of strides and addresses whether they are multiples of 16."""
    if t.data_ptr() % 16:
        return False
    strides = [s for n, s in zip(t.shape, t.stride(), strict=True) if n > 1 and s % 16]
    return strides in ([], [1]) and any(t.stride(axis) == 1 for axis in axes)


def _power_of_two(channels):
    return 1 << (channels - 1).bit_length()
