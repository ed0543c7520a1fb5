"""A masked convolution, channels_last, without bias, padding kernel // 2, keep 0.5; a patch embedding without any."""

import torch
from rows import ConvRow, PatchRow

from edgepop_kernels.tuning.workloads import RESNET50

ROWS = [
    ConvRow(dtype, backward, shape, full=full)
    for shape, full in (
        ((16, 64, 32, 64, 3, 1), False),
        ((16, 128, 16, 128, 3, 1), False),
        ((8, 256, 28, 128, 1, 1), False),
        ((8, 128, 28, 256, 3, 2), False),
        ((8, 256, 14, 256, 3, 1), True),
        ((16, 512, 4, 512, 3, 1), True),
    )
    for dtype in (torch.float32, torch.bfloat16)
    for backward in (False, True)
]
ROWS += [
    PatchRow(dtype, backward, (8, 3, 224, 384, 16, 16))
    for dtype in (torch.float32, torch.bfloat16)
    for backward in (False, True)
]
ROWS += [PatchRow(torch.float32, True, (8, 3, 224, 384, size, size), wants_dx=True) for size in (16, 32)]
GPU_ROWS = [
    ConvRow(
        torch.bfloat16,
        backward,
        (batch, *shape),
        full=batch == 256 and not backward,
        compiled=shape == (64, 56, 64, 3, 1) and backward,
    )
    for batch in (32, 256)
    for shape in RESNET50
    for backward in (False, True)
]


def test_conv(row, column, arena, benchmark):
    arena.enter(row, column, benchmark)
