"""A weight under several packed masks at once: W * sum(alpha_t * M_t), and the gradient to the alphas.

A byte of packed bits is a row of a table of 256 rows of 8 numbers. So the sum of masks is what torch calls an embedding
bag, its rows weighted by the alphas; no mask is ever unpacked as a whole. On an x86 CPU, one thread, a million weights
and 25 tasks took 30 ms so and 240 ms from masks of float32. Sums are of one order, whatever the number of threads.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

_AT_ONCE = 1 << 18  # bytes of masks that are looked up in one call, 4 of index each
_MULTIPLIED = 1 << 14  # the same where their rows are written out, 32 bytes each: they stay in the cache
_RUN = 64  # bytes of a mask whose products are summed in one sequence


def superposed(weight: torch.Tensor, bits: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """``weight * sum(alphas[t] * M_t)`` in the weight's dtype, computed in float32 at least.

    bits: uint8 [tasks, bytes], of each mask what ``pack_mask`` makes of it. alphas: [tasks], of a floating dtype.
    """
    compute, tasks = _dtype(weight), len(bits)
    total = torch.empty(-(-weight.numel() // 8), 8, dtype=compute, device=weight.device)
    table, shares = _table(compute, weight.device), alphas.detach().to(compute)
    for begin, end in _parts(len(total), max(1, _AT_ONCE // max(tasks, 1))):
        index = bits[:, begin:end].t().to(torch.int32)
        rows = F.embedding_bag(
            index.contiguous(), table, mode="sum", per_sample_weights=shares.expand(index.shape).contiguous()
        )
        total[begin:end] = rows
    return (weight * total.view(-1)[: weight.numel()].view(weight.shape)).to(weight.dtype)


def shares_of(product: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """The sum of ``product`` over each mask, [tasks] in float32 at least: of dW_eff * W the gradient to the alphas."""
    compute, tasks, count = _dtype(product), len(bits), -(-product.numel() // (8 * _RUN))
    runs = F.pad(product.to(compute).reshape(-1), (0, count * 8 * _RUN - product.numel())).view(count, 8 * _RUN)
    sums, table = torch.zeros(tasks, dtype=torch.float64, device=bits.device), _table(compute, bits.device)
    for begin, end in _parts(count, max(1, _MULTIPLIED // (max(tasks, 1) * _RUN))):
        index = bits[:, begin * _RUN : end * _RUN].to(torch.int32)
        # The word behind a mask is all zeros, and may end before its last run does.
        index = F.pad(index, (0, (end - begin) * _RUN - index.shape[1]))
        rows = table.index_select(0, index.reshape(-1)).view(tasks, end - begin, 8 * _RUN)
        sums += rows.mul_(runs[begin:end]).sum(2).to(torch.float64).sum(1)
    return sums.to(compute)


def _parts(count: int, size: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, count, size):
        yield begin, min(begin + size, count)


def _dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Row b is the 8 bits of the byte b, the lowest first."""
    byte = torch.arange(256, device=device)
    return ((byte[:, None] >> torch.arange(8, device=device)) & 1).to(dtype)
