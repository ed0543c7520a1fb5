"""A weight under several masks at once: W * sum(alpha_t * M_t), and the gradient to the alphas.

Packed masks are turned into codes, which hold the same bits the other way round: of each weight a byte for 8 tasks. So
the sum of 8 masks is a look-up in 256 sums of alphas, and the gradient to 8 alphas comes of 256 sums of what weights of
one code have. No mask is unpacked as a whole. On a Xeon with AMX, one thread, 8 tasks of a million weights took 2.2 ms
forward and 2.4 backward, and the codes, once, 3.7 ms. Rows of 8 numbers, looked up by the bytes of each mask, took 29
and 43 ms of 25 tasks, four rows of codes. All sums are of one order, whatever the number of threads.

Here it is in torch's operations, for any device and dtype; backends may have kernels by the names of ``superposed`` and
``shares_of`` (native: 1.9M weights and 25 tasks in 1.0 and 2.2 ms, which take 5.7 and 7.9 ms here; EPYC of Zen 5, two
threads).
"""

from collections.abc import Iterator

import torch

_PART = 1 << 16  # weights that are looked up at once: index and result stay in the second-level cache


def codes_of(bits: torch.Tensor) -> torch.Tensor:
    """Packed masks, uint8 [tasks, bytes] as ``pack_mask`` makes them, as codes: uint8 [ceil(tasks / 8), 8 * bytes],
    bit t % 8 of the byte i in row t // 8 being what task t has of weight i."""
    tasks, size = bits.shape
    codes = torch.empty(-(-tasks // 8), 8 * size, dtype=torch.uint8, device=bits.device)
    for row, begin in enumerate(range(0, tasks, 8)):
        eight = bits.new_zeros(8, size)
        eight[: tasks - begin] = bits[begin : begin + 8]
        for first, last in _parts(size):
            # 8 x 8 bits transposed in one word: halves of 1, 2 and 4 bits change places (Warren, "Hacker's Delight").
            word = eight[:, first:last].t().contiguous().view(torch.int64)[:, 0]
            for shift, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
                change = (word ^ (word >> shift)) & mask
                word = word ^ change ^ (change << shift)
            codes[row, 8 * first : 8 * last] = word.contiguous().view(torch.uint8)
    return codes


def tables_of(alphas: torch.Tensor, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """Of each 8 alphas the sums by the bits of a byte: [rows, 256] of ``dtype``."""
    eights = alphas.new_zeros(rows * 8, dtype=dtype)
    eights[: len(alphas)] = alphas.detach()
    return (eights.view(rows, 1, 8) * _bits(dtype, alphas.device)).sum(2)


def superposed(weight: torch.Tensor, codes: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """``weight * sum(alphas[t] * M_t)`` in the weight's dtype, computed in float32 at least. alphas: [tasks], of a
    floating dtype."""
    flat = weight.reshape(-1)
    mixed = torch.empty_like(flat)
    tables = tables_of(alphas, len(codes), torch.promote_types(weight.dtype, torch.float32))
    for first, last in _parts(flat.numel()):
        total = tables[0].index_select(0, codes[0, first:last].to(torch.int32))
        for row in range(1, len(codes)):
            total += tables[row].index_select(0, codes[row, first:last].to(torch.int32))
        mixed[first:last] = total.mul_(flat[first:last])
    return mixed.view(weight.shape)


def shares_of(a: torch.Tensor, b: torch.Tensor, codes: torch.Tensor, tasks: int) -> torch.Tensor:
    """The sums of ``a * b`` over each mask, [tasks] in float64: of dW_eff and W the gradient to the alphas."""
    a, b, device = a.reshape(-1), b.reshape(-1), codes.device
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    bits = _bits(torch.float64, device)
    sums = torch.zeros(len(codes), 256, dtype=torch.float64, device=device)
    shares = torch.zeros(len(codes), 8, dtype=torch.float64, device=device)
    for first, last in _parts(a.numel()):
        part = (a[first:last].to(wide) * b[first:last].to(wide)).to(torch.float64)
        for row in range(len(codes)):
            code = codes[row, first:last].to(torch.int32)
            if device.type == "cpu":
                sums[row].index_add_(0, code, part)
            else:  # where that would be atomics, of no fixed order
                shares[row] += (bits.index_select(0, code) * part[:, None]).sum(0)
    shares += (sums[:, :, None] * bits).sum(1)
    return shares.view(-1)[:tasks]


def _parts(size: int) -> Iterator[tuple[int, int]]:
    for first in range(0, size, _PART):
        yield first, min(first + _PART, size)


def _bits(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Row b is the 8 bits of the byte b, the lowest first."""
    byte = torch.arange(256, device=device)
    return ((byte[:, None] >> torch.arange(8, device=device)) & 1).to(dtype)
