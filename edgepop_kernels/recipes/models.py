"""Networks of the recipes, built from whatever layers a method brings.

Conv2/4/6/8 are those of Frankle & Carbin 2019 and Zhou et al. 2019 in the shape of Ramanujan et al. 2020: VGG-like
pairs of 3x3 convolutions, each followed by a 2x2 max pool, then 256, 256 and the classes. No biases, no normalisation.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

CONV_CHANNELS = (64, 128, 256, 512)
CONV_HEAD = (256, 256)
SMALL_CONV_CHANNELS = (32, 64)
SMALL_CONV_HEAD = (128,)

MODELS = ("mlp", "small-conv", "conv2", "conv4", "conv6", "conv8")


@dataclass(frozen=True)
class Layers:
    """How a method makes its layers.

    conv(in_channels, out_channels): 3x3, padding 1; linear(in_features, out_features). Neither has a bias.
    """

    conv: Callable[[int, int], nn.Module]
    linear: Callable[[int, int], nn.Module]


def build(
    name: str,
    image: tuple[int, int, int],
    classes: int,
    layers: Layers,
    *,
    widths: tuple[int, ...],
    width_multiplier: float,
) -> nn.Sequential:
    """The network ``name`` for images [C, H, W] = ``image``.

    widths: hidden widths of the MLP; width_multiplier: factor on the hidden channels and features of the others.
    """

    def scaled(sizes):
        return tuple(max(1, round(width_multiplier * size)) for size in sizes)

    if name == "mlp":
        return _mlp(image, (*widths, classes), layers)
    if name == "small-conv":
        # One pool only: on the 8x8 digits a second one would leave 2x2 pixels.
        blocks = [scaled(SMALL_CONV_CHANNELS)]
        return _conv_net(image, blocks, (*scaled(SMALL_CONV_HEAD), classes), layers)
    depth = int(name.removeprefix("conv"))
    blocks = [(channels, channels) for channels in scaled(CONV_CHANNELS[: depth // 2])]
    return _conv_net(image, blocks, (*scaled(CONV_HEAD), classes), layers)


def _mlp(image: tuple[int, int, int], widths: tuple[int, ...], layers: Layers) -> nn.Sequential:
    channels, height, width = image
    return nn.Sequential(_head(channels * height * width, widths, layers))


def _conv_net(
    image: tuple[int, int, int], blocks: list[tuple[int, ...]], head: tuple[int, ...], layers: Layers
) -> nn.Sequential:
    """Blocks of convolutions with ReLU, a 2x2 max pool after each block, then fully connected layers."""
    channels, height, width = image
    modules, depth = OrderedDict(), 0
    for number, block in enumerate(blocks, 1):
        for wider in block:
            depth += 1
            modules[f"conv{depth}"] = layers.conv(channels, wider)
            modules[f"conv{depth}_relu"] = nn.ReLU()
            channels = wider
        # ceil_mode changes nothing at 32x32; it lets Conv8's four pools shrink 8x8 digits to 1x1 instead of nothing.
        modules[f"pool{number}"] = nn.MaxPool2d(2, ceil_mode=True)
        height, width = -(-height // 2), -(-width // 2)
    return nn.Sequential(modules | _head(channels * height * width, head, layers))


def _head(features: int, widths: tuple[int, ...], layers: Layers) -> OrderedDict[str, nn.Module]:
    """Flatten, then fully connected layers with ReLU in between."""
    modules = OrderedDict(flatten=nn.Flatten())
    for number, (narrow, wide) in enumerate(pairwise((features, *widths)), 1):
        if number > 1:
            modules[f"fc{number - 1}_relu"] = nn.ReLU()
        modules[f"fc{number}"] = layers.linear(narrow, wide)
    return modules
