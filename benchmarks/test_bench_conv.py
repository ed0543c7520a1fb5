"""A masked convolution, channels_last, without bias, padding kernel // 2, keep 0.5."""

import torch
from rows import ConvRow

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
# The distinct convolutions of ResNet-50 for 224x224 images: in_channels, size, out_channels, kernel, stride.
RESNET50 = [(3, 224, 64, 7, 2)]
for width, size, before in ((64, 56, 64), (128, 28, 256), (256, 14, 512), (512, 7, 1024)):
    stride = 1 if before == width else 2
    RESNET50 += [
        (before, size * stride, width, 1, 1),
        (width, size * stride, width, 3, stride),
        (width, size, 4 * width, 1, 1),
        (before, size * stride, 4 * width, 1, stride),
        (4 * width, size, width, 1, 1),
        (width, size, width, 3, 1),
    ]
GPU_ROWS = [
    ConvRow(
        torch.bfloat16,
        backward,
        (batch, *shape),
        full=batch == 256 and not backward,
        compiled=shape == (64, 56, 64, 3, 1) and backward,
    )
    for batch in (32, 256)
    for shape in dict.fromkeys(RESNET50)
    for backward in (False, True)
]


def test_conv(row, column, arena, benchmark):
    arena.enter(row, column, benchmark)
