"""Residual networks of the methods' papers, built from whatever layers a method brings.

ResNet-18/50/101 and Wide ResNet-50-2 and 101-2 for ImageNet have their stride on the 3x3 convolution; those of
``CIFAR`` have a 3x3 stem and no pool before the stages; ``wide-resnet28-8`` adds after its activations. Modules are
named as torchvision names those of its ResNets (conv1, bn1, layer1.0.conv1, layer1.0.downsample.0, fc...).
"""

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn

from .layers import Layers


class Residual(nn.Module):
    """Convolutions, each with its norm, added to the input or to ``downsample`` of it: conv1, bn1, conv2, bn2...

    ReLU follows every norm but the last and the sum; with ``late`` False every norm and not the sum.
    """

    def __init__(self, convs: list[tuple[nn.Module, nn.Module]], downsample: nn.Module, *, late: bool = True):
        super().__init__()
        self.depth, self.late = len(convs), late
        for number, (conv, norm) in enumerate(convs, 1):
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", norm)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.depth + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            if number < self.depth or not self.late:
                y = y.relu()
        y = y + self.downsample(x)
        return y.relu() if self.late else y


def _conv(layers, inputs, outputs, kernel, stride=1):
    return layers.conv(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _block(layers: Layers, inputs: int, stride: int, *shapes: tuple[int, int, int]) -> tuple[nn.Module, int]:
    """A block of convolutions of these (channels out, kernel, stride), and its channels."""
    convs, channels = [], inputs
    for outputs, kernel, step in shapes:
        convs.append((_conv(layers, channels, outputs, kernel, step), layers.norm(outputs)))
        channels = outputs
    downsample = nn.Identity()
    if stride > 1 or inputs != channels:
        downsample = nn.Sequential(_conv(layers, inputs, channels, 1, stride), layers.norm(channels))
    return Residual(convs, downsample), channels


def _basic(layers: Layers, inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
    return _block(layers, inputs, stride, (width, 3, stride), (width, 3, 1))


def _bottleneck(layers: Layers, inputs: int, width: int, stride: int, wider: int = 1) -> tuple[nn.Module, int]:
    inner = width * wider
    return _block(layers, inputs, stride, (inner, 1, 1), (inner, 3, stride), (4 * width, 1, 1))


# Name -> (block, blocks of the four stages), He et al. 2016 and Zagoruyko & Komodakis 2016.
_IMAGENET = {
    "resnet18": (_basic, (2, 2, 2, 2)),
    "resnet50": (_bottleneck, (3, 4, 6, 3)),
    "resnet101": (_bottleneck, (3, 4, 23, 3)),
    "wide-resnet50-2": (partial(_bottleneck, wider=2), (3, 4, 6, 3)),
    "wide-resnet101-2": (partial(_bottleneck, wider=2), (3, 4, 23, 3)),
}
IMAGENET = tuple(_IMAGENET)
CIFAR = ("cifar-resnet18", "cifar-resnet50", "cifar-resnet101")
RESNETS = (*IMAGENET, *CIFAR, "wide-resnet28-8")


def scaled(size: int, width_multiplier: float) -> int:
    """The size times the multiplier, rounded down; at least 1."""
    return max(1, int(size * width_multiplier))


def build(
    name: str, channels: int, classes: int, layers: Layers | None = None, *, width_multiplier: float = 1.0
) -> nn.Sequential:
    """A network of ``RESNETS`` for images of ``channels``, any size; width_multiplier: factor on all inner channels.

    Those of ``IMAGENET`` are meant for 224x224 pixels, the others for 32x32. Raises ValueError.
    """
    if name not in RESNETS:
        raise ValueError(f"name: expected one of {', '.join(RESNETS)}, got {name!r}")
    layers = layers or Layers()
    if name == "wide-resnet28-8":
        return _wide_resnet28_8(channels, classes, layers, width_multiplier)
    width = scaled(64, width_multiplier)
    small = name in CIFAR
    conv = _conv(layers, channels, width, 3) if small else _conv(layers, channels, width, 7, 2)
    stem = OrderedDict(conv1=conv, bn1=layers.norm(width), relu=nn.ReLU())
    if not small:
        stem["maxpool"] = nn.MaxPool2d(3, 2, 1)
    block, counts = _IMAGENET[name.removeprefix("cifar-")]
    stages, inputs = OrderedDict(), width
    for stage, count in enumerate(counts):
        blocks = []
        for i in range(count):
            module, inputs = block(layers, inputs, width << stage, 2 if stage > 0 and i == 0 else 1)
            blocks.append(module)
        stages[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    return nn.Sequential(stem | stages | _head(layers, inputs, classes))


def complete(model: nn.Sequential) -> nn.Sequential:
    """Gives a network of ``build``, in place, what torchvision's have and its method leaves out.

    Norms get a scale of 1 and a shift of 0, the classifier a bias of 0. The answers are the same; the state_dict of
    one of ``IMAGENET`` is then whole for torchvision's network of that name.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.affine:
            module.__class__, module.affine = nn.BatchNorm2d, True
            module.weight = nn.Parameter(torch.ones_like(module.running_mean))
            module.bias = nn.Parameter(torch.zeros_like(module.running_mean))
    if model.fc.bias is None:
        model.fc.bias = nn.Parameter(model.fc.weight.new_zeros(model.fc.out_features))
    return model


def _head(layers: Layers, features: int, classes: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=layers.linear(features, classes))


def _wide_resnet28_8(channels: int, classes: int, layers: Layers, width_multiplier: float) -> nn.Sequential:
    """The network of the thresholded supermasks: 3 groups of 4 blocks of widths 128, 256 and 512, pooled in between.

    A block is twice (3x3 convolution, norm, ReLU), added to its input or to a 1x1 convolution of it. Its layers have
    biases where the method's have.
    """
    first, *groups = (scaled(width, width_multiplier) for width in (16, 128, 256, 512))

    def conv(inputs, outputs):
        return layers.conv(inputs, outputs, 3, stride=1, padding=1), layers.norm(outputs)

    modules, inputs = OrderedDict(zip(("conv1", "bn1"), conv(channels, first), strict=True), relu=nn.ReLU()), first
    for number, width in enumerate(groups, 1):
        if number > 1:
            modules[f"maxpool{number - 1}"] = nn.MaxPool2d(2)
        blocks = []
        for _ in range(4):
            convs = [conv(inputs, width), conv(width, width)]
            downsample = nn.Identity()
            if inputs != width:
                downsample = nn.Sequential(layers.conv(inputs, width, 1, stride=1, padding=0))
            blocks.append(Residual(convs, downsample, late=False))
            inputs = width
        modules[f"layer{number}"] = nn.Sequential(*blocks)
    return nn.Sequential(modules | _head(layers, inputs, classes))
