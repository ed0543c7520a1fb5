"""The layers that tiles are tuned for and GPUs are compared on."""

from typing import NamedTuple


class Linear(NamedTuple):
    rows: int
    inputs: int
    outputs: int


class Conv(NamedTuple):
    """Square images and filters, padding kernel // 2."""

    batch: int
    channels: int
    size: int
    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1


def _resnet50():
    """The distinct convolutions of ResNet-50 (stride on the 3x3, He et al. 2016) for images of 224x224: channels, size,
    outputs, kernel, stride."""
    found = [(3, 224, 64, 7, 2)]
    for width, size, before in ((64, 56, 64), (128, 28, 256), (256, 14, 512), (512, 7, 1024)):
        stride = 1 if before == width else 2
        found += [
            (before, size * stride, width, 1, 1),
            (width, size * stride, width, 3, stride),
            (width, size, 4 * width, 1, 1),
            (before, size * stride, 4 * width, 1, stride),
            (4 * width, size, width, 1, 1),
            (width, size, width, 3, 1),
        ]
    return list(dict.fromkeys(found))


RESNET50 = _resnet50()
# Conv4 and Conv6 of Ramanujan et al. 2020 for images of 32x32, and the multilayer perceptron 784-300-100-10.
CONV6 = [
    (3, 32, 64, 3),
    (64, 32, 64, 3),
    (64, 16, 128, 3),
    (128, 16, 128, 3),
    (128, 8, 256, 3),
    (256, 8, 256, 3),
]
DENSE = [(8192, 256), (4096, 256), (256, 256), (256, 10), (784, 300), (300, 100), (100, 10)]

WORKLOADS: list[Linear | Conv] = [
    *(Linear(rows, 4096, 4096) for rows in (32, 128, 1024, 8192)),
    *(Linear(128, *features) for features in DENSE),
    *(Conv(128, *shape) for shape in CONV6),
    *(Conv(batch, *shape) for batch in (32, 256) for shape in RESNET50),
]
