"""The layers that a network is built of: the layers of the method that trains it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

import edgepop_kernels as ek

INITS = (*ek.init.NAMES, "default")  # how a recipe's weights are drawn; "default" leaves what torch's layers start with


@dataclass(frozen=True)
class Layers:
    """A maker of a method's layers; torch's own are those of the dense network.

    conv(in_channels, out_channels, kernel_size, stride=, padding=) and linear(in_features, out_features) have a bias if
    the method says so, convolutions before a norm none: they are asked for with bias=False. norm(channels).
    """

    conv: Callable[..., nn.Module] = nn.Conv2d
    linear: Callable[[int, int], nn.Module] = nn.Linear
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
