"""The networks whose training steps are timed, dense; what masks them is in columns.py."""

from itertools import pairwise

import torch
from torch import nn

from edgepop_kernels.recipes import resnets

_CHANNELS_LAST = torch.channels_last


def conv4() -> nn.Sequential:
    """Conv4 of Ramanujan et al. 2020 for 32x32 images: no biases, 2.4 million weights."""
    return _conv_net((64, 128), 8192)


def conv6() -> nn.Sequential:
    """Conv6 of Ramanujan et al. 2020 for 32x32 images: no biases, 2.3 million weights."""
    return _conv_net((64, 128, 256), 4096)


def mlp() -> nn.Sequential:
    """The fully connected net 784-300-100-10 of Zhou et al. 2019, without biases."""
    return nn.Sequential(*_mlp(784, 300, 100, 10))


def fc1024() -> nn.Sequential:
    """The net 784-1024-1024-10 of Wortsman et al. 2020, without biases."""
    return nn.Sequential(*_mlp(784, 1024, 1024, 10))


def thin_resnet18() -> nn.Sequential:
    """ResNet-18 of 20 channels at first, for 32x32 images, in 5 classes (Lopez-Paz and Ranzato 2017)."""
    model = resnets.build("cifar-resnet18", channels=3, classes=5, width_multiplier=0.3125)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.affine, module.weight, module.bias = False, None, None
    return model


def linear(inputs: int, outputs: int) -> nn.Sequential:
    """One layer, without bias."""
    return nn.Sequential(*_mlp(inputs, outputs))


def transformer_block() -> nn.Sequential:
    """The width and number of the linear layers of a block of ViT-S/16 (Dosovitskiy et al. 2021), without attention."""
    return nn.Sequential(*_mlp(384, 1536, 384, 1536, 384))


def resnet18() -> nn.Sequential:
    """ResNet-18 for 224x224 images."""
    return resnets.build("resnet18", channels=3, classes=1000).to(memory_format=_CHANNELS_LAST)


def resnet50() -> nn.Sequential:
    """ResNet-50 for 224x224 images."""
    return resnets.build("resnet50", channels=3, classes=1000).to(memory_format=_CHANNELS_LAST)


def _conv_net(widths, features):
    layers = []
    for before, width in pairwise((3, *widths)):
        for channels in (before, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), *_mlp(features, 256, 256, 10)).to(memory_format=_CHANNELS_LAST)


def _mlp(*features):
    layers = []
    for a, b in pairwise(features):
        layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
    return layers[:-1]
