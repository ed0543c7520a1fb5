"""From views of tensors to the masked product and the weight gradient. Only strides are read: nothing is copied."""

from dataclasses import dataclass

import torch

from .kernels.masked_product import masked_product_kernel, sum_splits_kernel
from .kernels.weight_grad import sum_grads_kernel, weight_grad_kernel
from .launch import launch, precision, tile

_LEAST_K = 16  # of a product; a convolution with fewer channels folds its taps into them
_BLOCK = 1024  # elements of a program that adds splits


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
    cut: torch.Tensor | None
    of: str
    same: bool  # the weight scores itself


def masked_product(src, filters, bias, out, rows: Axis, columns: Axis, groups: int, switch: str) -> None:
    """out (n, groups * m, h, w) = filters applied to src (n, groups * k, H, W) at the pixels of the two axes."""
    m, k, taps_h, taps_w = filters.weight.shape
    pixels = out.shape[0] * out.shape[2] * out.shape[3]
    fold = k < _LEAST_K and taps_h * taps_w > 1
    t = tile("product", src.dtype, switch, m, pixels, taps_h * taps_w * k, groups, src.device)
    block_k = t.k if fold else min(t.k, max(_LEAST_K, 1 << (k - 1).bit_length()))
    steps = -(-taps_h * taps_w * k // block_k) if fold else taps_h * taps_w * -(-k // block_k)
    per_split = -(-steps // t.splits)
    splits = -(-steps // per_split) if steps else 1
    target = out
    if splits > 1:
        n, c, h, w = out.shape
        target = torch.empty(splits, n, h, w, c, dtype=torch.float32, device=out.device).permute(0, 1, 4, 2, 3)
    out_strides = target.stride() if splits > 1 else (0, *out.stride())
    packed = filters.of == "bits"
    args = (
        src,
        (*src.stride(), k * src.stride(1)),
        tuple(src.shape[2:]),
        filters.weight,
        (*filters.weight.stride(), filters.weight_group),
        filters.scores,
        None if packed else (*filters.scores.stride(), filters.score_group),
        filters.index,
        filters.cut,
        None if splits > 1 else bias,
        target,
        (*out_strides[1:], m * out_strides[2], out_strides[0]),
        tuple(out.shape[2:]),
        pixels,
        (rows.step, columns.step, rows.offset, columns.offset, rows.pitch, columns.pitch),
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
        BIAS=bias is not None and splits == 1,
        FOLD=fold,
        STEPS=per_split,
        BLOCK_M=t.m,
        BLOCK_N=t.n,
        BLOCK_K=block_k,
        BAND=t.band,
        num_warps=t.warps,
        num_stages=t.stages,
        **precision(src.dtype, switch),
    )
    if splits > 1:
        args = (target, bias, out, out.stride(), tuple(out.shape[1:]), out.numel())
        grid = (-(-out.numel() // _BLOCK),)
        launch(sum_splits_kernel, grid, src, args, SPLITS=splits, BIAS=bias is not None, BLOCK=_BLOCK)


def weight_grad(dy, x, mask, score_grad, weight_grad, rows: Axis, columns: Axis, groups: int, switch: str):
    """(dS, dW) of filters (o, c, kh, kw) from dy (n, o, h, w) and x (n, groups * c, H, W); empty if not asked for."""
    weight, scores, cut, of = mask
    o, c, kh, kw = weight.shape
    m = o // groups
    ds = torch.empty_like(scores) if score_grad else None
    dw = torch.empty_like(weight) if weight_grad != "none" else None
    absent = weight.new_empty(0)
    pixels = dy.shape[0] * dy.shape[2] * dy.shape[3]
    if pixels == 0:
        return absent if ds is None else ds.zero_(), absent if dw is None else dw.zero_()
    fold = c < _LEAST_K and kh * kw > 1
    t = tile("grad", x.dtype, switch, m, c * kh * kw, pixels, groups, x.device)
    block_n = t.n if fold else min(t.n, max(_LEAST_K, 1 << (c - 1).bit_length()))
    tiles_n = -(-c * kh * kw // block_n) if fold else kh * kw * -(-c // block_n)
    per_split = _rounded_up(-(-pixels // (t.k * t.splits)))
    splits = -(-pixels // (t.k * per_split))
    partials = torch.empty(splits, *weight.shape, dtype=torch.float32, device=x.device) if splits > 1 else None
    epilogue = (
        weight,
        weight.stride(),
        scores,
        None if of == "bits" else scores.stride(),
        (c * kh * kw, kh * kw, kw, 1),
        cut,
        ds,
        None if ds is None else ds.stride(),
        dw,
        None if dw is None else dw.stride(),
    )
    consts = {"OF": of, "SCORE_GRAD": score_grad, "WEIGHT_GRAD": weight_grad}
    geometry = (rows.step, columns.step, rows.offset, columns.offset, rows.pitch, columns.pitch)
    images = (dy, dy.stride(), tuple(dy.shape[2:]), x, x.stride(), tuple(x.shape[2:]), pixels, geometry)
    launch(
        weight_grad_kernel,
        (-(-m // t.m) * tiles_n, groups, splits),
        x,
        (*images, partials, weight.numel(), *epilogue),
        MC=m,
        KC=c,
        KW=kw,
        TAPS=kh * kw,
        FOLD=fold,
        STEPS=per_split,
        BLOCK_M=t.m,
        BLOCK_N=block_n,
        BLOCK_K=t.k,
        BAND=t.band,
        num_warps=t.warps,
        num_stages=t.stages,
        **consts,
        **precision(x.dtype, switch),
    )
    if splits > 1:
        args = (partials, (c, kh, kw), weight.numel(), *epilogue)
        grid = (-(-weight.numel() // _BLOCK),)
        launch(sum_grads_kernel, grid, x, args, SPLITS=splits, BLOCK=_BLOCK, **consts)
    return absent if ds is None else ds, absent if dw is None else dw


def _rounded_up(steps):
    """To four significant bits: a kernel is compiled for its number of steps, and batches come in many sizes."""
    shift = max(steps.bit_length() - 4, 0)
    return -(-steps >> shift) << shift
