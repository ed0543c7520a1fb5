"""A masked linear layer, without bias, keep 0.5."""

import torch
from rows import LinearRow

ROWS = [
    LinearRow(dtype, backward, shape, full=full)
    for shape, full in (
        ((128, 1024, 1024), False),
        ((128, 8192, 256), False),
        ((512, 2048, 2048), False),
        ((32, 4096, 4096), True),
        ((4096, 32, 1), False),
    )
    for dtype in (torch.float32, torch.bfloat16)
    for backward in (False, True)
]
GPU_ROWS = [
    LinearRow(torch.bfloat16, backward, (rows, 4096, 4096), compiled=backward)
    for rows in (32, 128, 1024, 8192)
    for backward in (False, True)
]


def test_linear(row, column, arena, benchmark):
    arena.enter(row, column, benchmark)
