"""Residual networks of the methods' papers, built from whatever layers a method brings.

ResNet-18/50/101 and Wide ResNet-50-2 for ImageNet have their stride on the 3x3 convolution; ``cifar_resnet18`` is
ResNet-18 with a 3x3 stem and no pool before the stages; ``wide_resnet28_8`` adds after its activations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn


@dataclass(frozen=True)
class Parts:
    """How a method makes its layers; nn.Conv2d, nn.BatchNorm2d and nn.Linear are the dense ones.

    conv(in_channels, out_channels, kernel_size, stride=, padding=, bias=); norm(channels); linear(inputs, outputs).
    """

    conv: Callable[..., nn.Module] = nn.Conv2d
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    linear: Callable[[int, int], nn.Module] = nn.Linear


class Residual(nn.Module):
    """branch(x) + shortcut(x), then ReLU where ``activated``."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, activated: bool):
        super().__init__()
        self.branch, self.shortcut, self.activated = branch, shortcut, activated

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x) + self.shortcut(x)
        return y.relu() if self.activated else y


def _conv(parts, inputs, outputs, kernel, stride=1):
    return parts.conv(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(parts, inputs, outputs, stride):
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_conv(parts, inputs, outputs, 1, stride), parts.norm(outputs))


def _basic(parts: Parts, inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
    branch = nn.Sequential(
        _conv(parts, inputs, width, 3, stride),
        parts.norm(width),
        nn.ReLU(),
        _conv(parts, width, width, 3),
        parts.norm(width),
    )
    return Residual(branch, _shortcut(parts, inputs, width, stride), activated=True), width


def _bottleneck(parts: Parts, inputs: int, width: int, stride: int, wider: int = 1) -> tuple[nn.Module, int]:
    inner, outputs = width * wider, 4 * width
    branch = nn.Sequential(
        _conv(parts, inputs, inner, 1),
        parts.norm(inner),
        nn.ReLU(),
        _conv(parts, inner, inner, 3, stride),
        parts.norm(inner),
        nn.ReLU(),
        _conv(parts, inner, outputs, 1),
        parts.norm(outputs),
    )
    return Residual(branch, _shortcut(parts, inputs, outputs, stride), activated=True), outputs


# Name -> (block, blocks of the four stages), He et al. 2016 and Zagoruyko & Komodakis 2016.
_IMAGENET = {
    "resnet18": (_basic, (2, 2, 2, 2)),
    "resnet50": (_bottleneck, (3, 4, 6, 3)),
    "resnet101": (_bottleneck, (3, 4, 23, 3)),
    "wide-resnet50-2": (partial(_bottleneck, wider=2), (3, 4, 6, 3)),
}
IMAGENET = tuple(_IMAGENET)


def imagenet_resnet(name: str, classes: int = 1000, parts: Parts | None = None) -> nn.Sequential:
    """A network of ``IMAGENET`` for images (N, 3, 224, 224). Raises ValueError."""
    if name not in _IMAGENET:
        raise ValueError(f"name: expected one of {', '.join(IMAGENET)}, got {name!r}")
    parts = parts or Parts()
    stem = [_conv(parts, 3, 64, 7, 2), parts.norm(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return _stages(stem, *_IMAGENET[name], classes, parts)


def cifar_resnet18(classes: int = 10, parts: Parts | None = None) -> nn.Sequential:
    """ResNet-18 for images (N, 3, 32, 32)."""
    parts = parts or Parts()
    return _stages([_conv(parts, 3, 64, 3), parts.norm(64), nn.ReLU()], *_IMAGENET["resnet18"], classes, parts)


def _stages(stem, block, counts, classes, parts):
    modules, channels = list(stem), 64
    for stage, count in enumerate(counts):
        for i in range(count):
            module, channels = block(parts, channels, 64 << stage, 2 if stage > 0 and i == 0 else 1)
            modules.append(module)
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), parts.linear(channels, classes))


def wide_resnet28_8(channels: int = 3, classes: int = 10, parts: Parts | None = None) -> nn.Sequential:
    """The network of the thresholded supermasks: 3 groups of 4 blocks of widths 128, 256 and 512, pooled in between.

    A block is twice (3x3 convolution, norm, ReLU), added to its input or to a 1x1 convolution of it; biases everywhere.
    """
    parts = parts or Parts()

    def activated(inputs, outputs):
        return [parts.conv(inputs, outputs, 3, stride=1, padding=1, bias=True), parts.norm(outputs), nn.ReLU()]

    modules, inputs = activated(channels, 16), 16
    for group, width in enumerate((128, 256, 512)):
        if group:
            modules.append(nn.MaxPool2d(2))
        for _ in range(4):
            same = inputs == width
            shortcut = nn.Identity() if same else parts.conv(inputs, width, 1, stride=1, padding=0, bias=True)
            branch = nn.Sequential(*activated(inputs, width), *activated(width, width))
            modules.append(Residual(branch, shortcut, activated=False))
            inputs = width
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), parts.linear(inputs, classes))
