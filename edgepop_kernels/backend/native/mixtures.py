"""A weight under several masks at once, as ``mixing`` defines it."""

import torch

from ... import mixing
from . import compiled


def superposed(weight, codes, alphas):
    weight = weight.contiguous()
    mixed = torch.empty_like(weight)
    tables = mixing.tables_of(alphas, len(codes), torch.float32)
    compiled.kernels.superpose(
        weight.data_ptr(), _codes(codes), tables.data_ptr(), weight.numel(), mixed.data_ptr(), torch.get_num_threads()
    )
    return mixed


def shares_of(a, b, codes, tasks):
    a, b = a.contiguous(), b.contiguous()
    shares = torch.empty(8 * len(codes), dtype=torch.float64)
    compiled.kernels.shares(
        a.data_ptr(), b.data_ptr(), _codes(codes), a.numel(), shares.data_ptr(), torch.get_num_threads()
    )
    return shares[:tasks]


def _codes(codes):
    return codes.data_ptr(), len(codes), codes.stride(0)
