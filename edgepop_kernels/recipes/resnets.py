"""Residual networks of the methods' papers, built from whatever layers a method brings.

ResNet-18/50/101 and Wide ResNet-50-2 for ImageNet have their stride on the 3x3 convolution; ``cifar-resnet18`` is
ResNet-18 with a 3x3 stem and no pool before the stages; ``wide-resnet28-8`` adds after its activations.
"""

from functools import partial

from torch import Tensor, nn

from .layers import Layers


class Residual(nn.Module):
    """branch(x) + shortcut(x), then ReLU where ``activated``."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, activated: bool):
        super().__init__()
        self.branch, self.shortcut, self.activated = branch, shortcut, activated

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x) + self.shortcut(x)
        return y.relu() if self.activated else y


def _conv(layers, inputs, outputs, kernel, stride=1):
    return layers.conv(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(layers, inputs, outputs, stride):
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_conv(layers, inputs, outputs, 1, stride), layers.norm(outputs))


def _basic(layers: Layers, inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
    branch = nn.Sequential(
        _conv(layers, inputs, width, 3, stride),
        layers.norm(width),
        nn.ReLU(),
        _conv(layers, width, width, 3),
        layers.norm(width),
    )
    return Residual(branch, _shortcut(layers, inputs, width, stride), activated=True), width


def _bottleneck(layers: Layers, inputs: int, width: int, stride: int, wider: int = 1) -> tuple[nn.Module, int]:
    inner, outputs = width * wider, 4 * width
    branch = nn.Sequential(
        _conv(layers, inputs, inner, 1),
        layers.norm(inner),
        nn.ReLU(),
        _conv(layers, inner, inner, 3, stride),
        layers.norm(inner),
        nn.ReLU(),
        _conv(layers, inner, outputs, 1),
        layers.norm(outputs),
    )
    return Residual(branch, _shortcut(layers, inputs, outputs, stride), activated=True), outputs


# Name -> (block, blocks of the four stages), He et al. 2016 and Zagoruyko & Komodakis 2016.
_IMAGENET = {
    "resnet18": (_basic, (2, 2, 2, 2)),
    "resnet50": (_bottleneck, (3, 4, 6, 3)),
    "resnet101": (_bottleneck, (3, 4, 23, 3)),
    "wide-resnet50-2": (partial(_bottleneck, wider=2), (3, 4, 6, 3)),
}
IMAGENET = tuple(_IMAGENET)
RESNETS = (*IMAGENET, "cifar-resnet18", "wide-resnet28-8")


def build(
    name: str, channels: int, classes: int, layers: Layers | None = None, *, width_multiplier: float = 1.0
) -> nn.Sequential:
    """A network of ``RESNETS`` for images of ``channels``, any size; width_multiplier: factor on all inner channels.

    Those of ``IMAGENET`` are meant for 224x224 pixels, the others for 32x32. Raises ValueError.
    """
    layers = layers or Layers()
    if name == "wide-resnet28-8":
        return _wide_resnet28_8(channels, classes, layers, width_multiplier)
    width = max(1, round(64 * width_multiplier))
    if name == "cifar-resnet18":
        stem = [_conv(layers, channels, width, 3), layers.norm(width), nn.ReLU()]
        return _stages(stem, width, *_IMAGENET["resnet18"], classes, layers)
    if name not in _IMAGENET:
        raise ValueError(f"name: expected one of {', '.join(RESNETS)}, got {name!r}")
    stem = [_conv(layers, channels, width, 7, 2), layers.norm(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return _stages(stem, width, *_IMAGENET[name], classes, layers)


def _stages(stem, width, block, counts, classes, layers):
    modules, channels = list(stem), width
    for stage, count in enumerate(counts):
        for i in range(count):
            module, channels = block(layers, channels, width << stage, 2 if stage > 0 and i == 0 else 1)
            modules.append(module)
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers.linear(channels, classes))


def _wide_resnet28_8(channels: int, classes: int, layers: Layers, width_multiplier: float) -> nn.Sequential:
    """The network of the thresholded supermasks: 3 groups of 4 blocks of widths 128, 256 and 512, pooled in between.

    A block is twice (3x3 convolution, norm, ReLU), added to its input or to a 1x1 convolution of it. Its layers have
    biases where the method's have.
    """
    first, *groups = (max(1, round(width_multiplier * width)) for width in (16, 128, 256, 512))

    def activated(inputs, outputs):
        return [layers.conv(inputs, outputs, 3, stride=1, padding=1), layers.norm(outputs), nn.ReLU()]

    modules, inputs = activated(channels, first), first
    for group, width in enumerate(groups):
        if group:
            modules.append(nn.MaxPool2d(2))
        for _ in range(4):
            same = inputs == width
            shortcut = nn.Identity() if same else layers.conv(inputs, width, 1, stride=1, padding=0)
            branch = nn.Sequential(*activated(inputs, width), *activated(width, width))
            modules.append(Residual(branch, shortcut, activated=False))
            inputs = width
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers.linear(inputs, classes))
