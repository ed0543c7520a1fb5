"""The reference: what every kernel of this package must compute, in plain PyTorch, on any device.

Each function named like an op of ``ops.py`` takes that op's arguments. Clear before fast: keys are int64 tensors,
selection is one stable sort, the effective weight is built in memory. Half-precision inputs are rounded where a
kernel rounds them (x, W*M, the result) and computed in float32; float64 is computed in float64.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.nn import grad

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


def mask_bits(scores: torch.Tensor, cut: torch.Tensor, of: str) -> torch.Tensor:
    """The mask of ``cut``, packed as ``pack_mask`` packs."""
    return pack_mask(mask(scores, cut, of))


def group_bits(scores: torch.Tensor, kept: int, group: int, dim: int, of: str) -> torch.Tensor:
    """The mask of the ``kept`` best of every ``group`` scores in a row along ``dim``, packed as ``pack_mask`` packs;
    of equal ones the earlier. The scores along ``dim`` are whole groups."""
    key = ordered_key(scores, of).unflatten(dim, (-1, group))
    order = key.sort(dim=dim + 1, descending=True, stable=True).indices  # ties by ascending index
    best = order.argsort(dim=dim + 1) < kept  # the place of each score in its group
    return pack_mask(best.flatten(dim, dim + 1))


def block_sums(scores: torch.Tensor, block: Sequence[int], of: str) -> torch.Tensor:
    """The sum of |s|, or of s, over every block of ``block`` scores in each dimension: float32, a number a block.

    One dimension after the other, from the first, in halves: of n numbers the last n - h are added to the first n - h,
    h the largest power of two below n, until one is left. In this order everywhere, so that blocks tie everywhere.
    """
    sums = scores.abs() if of == "abs" else scores.clone()
    for dim, size in enumerate(block):
        sums = sums.unflatten(dim, (sums.shape[dim] // size, size))
        while (n := sums.shape[dim + 1]) > 1:
            half = 1 << (n - 1).bit_length() - 1
            added = sums.narrow(dim + 1, 0, n - half) + sums.narrow(dim + 1, half, n - half)
            sums = torch.cat([added, sums.narrow(dim + 1, n - half, 2 * half - n)], dim + 1)
        sums = sums.squeeze(dim + 1)
    return sums.contiguous()


def block_bits(sums: torch.Tensor, cut: torch.Tensor, block: Sequence[int]) -> torch.Tensor:
    """The mask of blocks whose sums a cut keeps, of every weight in them, packed as ``pack_mask`` packs."""
    kept = mask(sums, cut, "raw")
    for dim, size in enumerate(block):
        kept = kept.repeat_interleave(size, dim)
    return pack_mask(kept)


PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
# 2**-f for f in [0, 1), as 1 - f * (c1 - f * (c2 - ...)): off by less than 2**-29. In units of 2**-31.
EXP2_COEFFICIENTS = (1488522040, 515878639, 119168801, 20577648, 2743352, 236086)
LOG2_E = 3098164009  # in units of 2**-31
WORD = 0xFFFFFFFF


def philox(counter: list[torch.Tensor], key: list[torch.Tensor]) -> list[torch.Tensor]:
    """Philox4x32-10 (Salmon et al. 2011): 4 counter words and 2 key words to 4 random words, int64 in [0, 2**32)."""
    for _ in range(10):
        # int64 products wrap; their bits are the unsigned product's.
        first, second = (c * m for c, m in zip((counter[0], counter[2]), PHILOX_MULTIPLIERS, strict=True))
        counter = [
            (second >> 32 & WORD) ^ counter[1] ^ key[0],
            second & WORD,
            (first >> 32 & WORD) ^ counter[3] ^ key[1],
            first & WORD,
        ]
        key = [k + w & WORD for k, w in zip(key, PHILOX_WEYL, strict=True)]
    return counter


def uniform24(numel: int, seed: torch.Tensor) -> torch.Tensor:
    """The random integers of a draw, in [0, 2**24): int64 [numel] by flat logical index.

    Blocks of Philox are dealt out 16 at a time, a vector's worth: flat index i is word i // 16 % 4 of block
    i // 64 * 16 + i % 16. seed: int64 scalar tensor, the key.
    """
    block = torch.arange(-(-numel // 64) * 16, device=seed.device)
    zero = torch.zeros_like(block)
    words = philox([block & WORD, block >> 32, zero, zero], [seed & WORD, seed >> 32 & WORD])
    return torch.stack([w.view(-1, 16) for w in words], 1).flatten()[:numel] >> 8


def exp_minus(magnitude: torch.Tensor) -> torch.Tensor:
    """exp(-|s|) in units of 2**-31, int64, computed in integers: off by less than 2**-25.

    magnitude: |s|, float32; 22 and above give 0.
    """
    fixed = (magnitude.clamp(max=22) * 2**26).long()
    exponent = fixed * LOG2_E >> 32  # |s| / ln 2 in units of 2**-25; fixed * LOG2_E < 2**63
    fraction = (exponent & 0x1FFFFFF) << 7
    power = torch.full_like(fixed, EXP2_COEFFICIENTS[-1])
    for c in (*EXP2_COEFFICIENTS[-2::-1], 1 << 31):
        power = c - (power * fraction >> 32)
    return power >> (exponent >> 25)


def draw(scores: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """A mask drawn from Bernoulli(sigmoid(s)), packed as ``pack_mask`` packs: kept iff u < sigmoid(s).

    u = (r + 1/2) / 2**24 with r of ``uniform24``; so a score keeps with a probability within 2**-24 of its sigmoid,
    and NaN never. Integers only after one exact product: every backend draws the same mask. seed: int64 scalar tensor.
    """
    s = scores.detach().flatten()
    u = 2 * uniform24(s.numel(), seed) + 1
    odds = exp_minus(s.abs().nan_to_num(0))  # of the less likely side, to one
    # u / (2**25 - u) < exp(s), with the exponential of the negative magnitude on its side.
    kept = torch.where(s >= 0, u * odds < (2**25 - u) << 31, u << 31 < (2**25 - u) * odds)
    return pack_mask((kept & ~s.isnan()).view(scores.shape))


def _kept(weight: torch.Tensor, scores: torch.Tensor, cut: torch.Tensor | None, of: str) -> torch.Tensor:
    if of == "bits":
        return unpack_mask(scores, weight.shape)
    assert cut is not None  # by the ops' contract: None beside bits alone
    return mask(scores, cut, of)


def signed(weight: torch.Tensor, signs: torch.Tensor | None) -> torch.Tensor:
    """The weight that ``signs`` stand for beside the one number that ``weight`` is (``ops.py``); ``weight`` where there
    are none."""
    return weight if signs is None else torch.where(unpack_mask(signs, weight.shape), -weight, weight)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _effective_weight(
    weight: torch.Tensor,
    scores: torch.Tensor,
    cut: torch.Tensor | None,
    of: str,
    dtype: torch.dtype,
    signs: torch.Tensor | None,
) -> torch.Tensor:
    """W*M as the product sees it: rounded to the activations' dtype, held in the dtype of the computation."""
    kept = _kept(weight, scores, cut, of)
    return signed(weight, signs).masked_fill(~kept, 0).to(dtype).to(_compute_dtype(dtype))


def map_derivative(scores: torch.Tensor, of: str) -> torch.Tensor | None:
    """map'(S) of the straight-through gradient, or None where it is 1 everywhere."""
    if of == "abs":
        return scores.sign()
    if of == "sigmoid":
        p = scores.sigmoid()
        return p * (1 - p)
    return None


def parameter_grads(
    dw_eff: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    cut: torch.Tensor | None,
    of: str,
    score_grad: bool,
    weight_grad: str,
    signs: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dS, dW) from the dense gradient of the effective weight; an empty tensor stands for one not asked for."""
    ds = dw = weight.new_empty(0)
    if score_grad:
        ds = dw_eff * signed(weight, signs)
        derivative = map_derivative(scores, of)
        ds = torch.empty_like(scores).copy_(ds if derivative is None else ds * derivative)
    if weight_grad == "kept":
        dw_eff = dw_eff.masked_fill(~_kept(weight, scores, cut, of), 0)
    if weight_grad != "none":
        dw = torch.empty_like(weight).copy_(dw_eff)
    return ds, dw


def masked_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    cut: torch.Tensor | None,
    of: str,
    bias: torch.Tensor | None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    compute = _compute_dtype(x.dtype)
    bias = None if bias is None else bias.to(compute)
    return F.linear(x.to(compute), _effective_weight(weight, scores, cut, of, x.dtype, signs), bias).to(x.dtype)


def masked_linear_dx(
    dy: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    cut: torch.Tensor | None,
    of: str,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    compute = _compute_dtype(dy.dtype)
    return (dy.to(compute) @ _effective_weight(weight, scores, cut, of, dy.dtype, signs)).to(dy.dtype)


def masked_linear_dw(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    cut: torch.Tensor | None,
    of: str,
    score_grad: bool,
    weight_grad: str,
    signs: torch.Tensor | None = None,
    score_signs: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    compute = _compute_dtype(x.dtype)
    dw_eff = dy.to(compute).reshape(-1, dy.shape[-1]).t() @ x.to(compute).reshape(-1, x.shape[-1])
    return parameter_grads(dw_eff, weight, scores, cut, of, score_grad, weight_grad, signs)


def _formatted(result: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return result.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def masked_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    cut: torch.Tensor | None,
    of: str,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    compute = _compute_dtype(x.dtype)
    bias = None if bias is None else bias.to(compute)
    effective = _effective_weight(weight, scores, cut, of, x.dtype, signs)
    y = F.conv2d(x.to(compute), effective, bias, stride, padding, dilation, groups)
    return _formatted(y.to(x.dtype), channels_last)


def masked_conv2d_dx(
    dy: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    cut: torch.Tensor | None,
    of: str,
    x_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    effective = _effective_weight(weight, scores, cut, of, dy.dtype, signs)
    dx = grad.conv2d_input(
        x_size, effective, dy.to(effective.dtype), stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return _formatted(dx.to(dy.dtype), channels_last)


def masked_conv2d_dw(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    cut: torch.Tensor | None,
    of: str,
    score_grad: bool,
    weight_grad: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    signs: torch.Tensor | None = None,
    score_signs: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    compute = _compute_dtype(x.dtype)
    dw_eff = grad.conv2d_weight(
        x.to(compute), weight.shape, dy.to(compute), stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return parameter_grads(dw_eff, weight, scores, cut, of, score_grad, weight_grad, signs)
