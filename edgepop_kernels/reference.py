"""The reference: what every kernel of this package must compute, in plain PyTorch, on any device.

Each function named like an op of ``ops.py`` takes that op's arguments. Clear before fast: keys are int64 tensors,
selection is one stable sort, the effective weight is built in memory. Half-precision inputs are rounded where a
kernel rounds them (x, W*M, the result) and computed in float32; float64 is computed in float64.
"""

import torch
import torch.nn.functional as F

INFINITY_BITS = 0x7F800000  # magnitudes above it are NaN
NOTHING = (1 << 32, -1)  # the cut that keeps nothing


def ordered_key(scores: torch.Tensor, of: str) -> torch.Tensor:
    """Integers ordered as the scores are selected: int64 in [0, 2**32), NaN lowest, -0.0 and 0.0 equal.

    scores: float32, any shape. ``of``: "abs" orders |s|; "raw" and "sigmoid" order s.
    """
    bits = scores.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    magnitude = bits & 0x7FFFFFFF
    if of == "abs":
        key = magnitude + 1
    else:
        negative = bits >= 0x80000000
        key = torch.where(negative & (magnitude > 0), 0xFFFFFFFF - bits, magnitude + 0x80000000)
    return key.masked_fill(magnitude > INFINITY_BITS, 0)


def select(scores: list[torch.Tensor], kept: list[int], of: list[str], hint: torch.Tensor | None) -> torch.Tensor:
    """Cut of every layer: int64 [layers, 2] of (key of the last kept score, its flat index in logical order)."""
    cuts = torch.empty(len(scores), 2, dtype=torch.int64, device=scores[0].device)
    for layer, (s, m, kind) in enumerate(zip(scores, kept, of, strict=True)):
        if m == 0:
            cuts[layer, 0], cuts[layer, 1] = NOTHING
            continue
        key = ordered_key(s, kind).flatten()
        descending, order = torch.sort(key, descending=True, stable=True)  # stable: ties by ascending index
        cuts[layer, 0], cuts[layer, 1] = descending[m - 1], order[m - 1]
    return cuts


def mask(scores: torch.Tensor, cut: torch.Tensor, of: str) -> torch.Tensor:
    """Bool mask of the scores' shape: key above the cut's, or equal to it at a flat index not above the cut's."""
    key = ordered_key(scores, of)
    index = torch.arange(scores.numel(), device=scores.device).view(scores.shape)
    return (key > cut[0]) | ((key == cut[0]) & (index <= cut[1]))


def pack_mask(mask: torch.Tensor) -> torch.Tensor:
    """Packs a bool mask into uint8: flat index i (logical order) is bit i % 8 of byte i // 8.

    The result has ``ceil(numel / 64) * 8 + 8`` bytes, the rest zero, so that kernels may read whole words.
    """
    flat = mask.flatten()
    size = -(-flat.numel() // 64) * 8 + 8
    bits = torch.zeros(size * 8, dtype=torch.uint8, device=mask.device)
    bits[: flat.numel()] = flat
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (bits.view(size, 8) * weights).sum(1, dtype=torch.uint8)


def unpack_mask(bits: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The bool mask of the given shape that ``pack_mask`` packed."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, None] >> shifts) & 1).bool().flatten()[: shape.numel()].view(shape)


def _kept(weight, scores, cut, of):
    return unpack_mask(scores, weight.shape) if of == "bits" else mask(scores, cut, of)


def _compute_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _effective_weight(weight, scores, cut, of, dtype):
    """W*M as the product sees it: rounded to the activations' dtype, held in the dtype of the computation."""
    kept = _kept(weight, scores, cut, of)
    return weight.masked_fill(~kept, 0).to(dtype).to(_compute_dtype(dtype))


def _map_derivative(scores, of):
    """map'(S) of the straight-through gradient, or None where it is 1 everywhere."""
    if of == "abs":
        return scores.sign()
    if of == "sigmoid":
        p = scores.sigmoid()
        return p * (1 - p)
    return None


def _parameter_grads(dw_eff, weight, scores, cut, of, score_grad, weight_grad):
    """(dS, dW) from the dense gradient of the effective weight; an empty tensor stands for one not asked for."""
    ds = dw = weight.new_empty(0)
    if score_grad:
        ds = dw_eff * weight
        derivative = _map_derivative(scores, of)
        ds = torch.empty_like(scores).copy_(ds if derivative is None else ds * derivative)
    if weight_grad == "kept":
        dw_eff = dw_eff.masked_fill(~_kept(weight, scores, cut, of), 0)
    if weight_grad != "none":
        dw = torch.empty_like(weight).copy_(dw_eff)
    return ds, dw


def masked_linear(x, weight, scores, cut, of, bias):
    compute = _compute_dtype(x.dtype)
    bias = None if bias is None else bias.to(compute)
    return F.linear(x.to(compute), _effective_weight(weight, scores, cut, of, x.dtype), bias).to(x.dtype)


def masked_linear_dx(dy, weight, scores, cut, of):
    compute = _compute_dtype(dy.dtype)
    return (dy.to(compute) @ _effective_weight(weight, scores, cut, of, dy.dtype)).to(dy.dtype)


def masked_linear_dw(dy, x, weight, scores, cut, of, score_grad, weight_grad):
    compute = _compute_dtype(x.dtype)
    dw_eff = dy.to(compute).reshape(-1, dy.shape[-1]).t() @ x.to(compute).reshape(-1, x.shape[-1])
    return _parameter_grads(dw_eff, weight, scores, cut, of, score_grad, weight_grad)


def _formatted(result, channels_last):
    return result.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def masked_conv2d(x, weight, scores, cut, of, bias, stride, padding, dilation, groups, channels_last):
    compute = _compute_dtype(x.dtype)
    bias = None if bias is None else bias.to(compute)
    effective = _effective_weight(weight, scores, cut, of, x.dtype)
    y = F.conv2d(x.to(compute), effective, bias, stride, padding, dilation, groups)
    return _formatted(y.to(x.dtype), channels_last)


def masked_conv2d_dx(dy, weight, scores, cut, of, x_size, stride, padding, dilation, groups, channels_last):
    effective = _effective_weight(weight, scores, cut, of, dy.dtype)
    dx = torch.nn.grad.conv2d_input(
        x_size, effective, dy.to(effective.dtype), stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return _formatted(dx.to(dy.dtype), channels_last)


def masked_conv2d_dw(dy, x, weight, scores, cut, of, score_grad, weight_grad, stride, padding, dilation, groups):
    compute = _compute_dtype(x.dtype)
    dw_eff = torch.nn.grad.conv2d_weight(
        x.to(compute), weight.shape, dy.to(compute), stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return _parameter_grads(dw_eff, weight, scores, cut, of, score_grad, weight_grad)
