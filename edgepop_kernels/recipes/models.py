"""Networks of the recipes by name, built from whatever layers a method brings.

Conv2/4/6/8 are those of Frankle & Carbin 2019 and Zhou et al. 2019 in the shape of Ramanujan et al. 2020: VGG-like
pairs of 3x3 convolutions, each followed by a 2x2 max pool, then 256, 256 and the classes, no normalisation. ``lenet``
is the network of hidden-networks' one-file MNIST example. The residual ones are in ``resnets``.
"""

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from . import resnets
from .layers import Layers

CONV_CHANNELS = (64, 128, 256, 512)
CONV_HEAD = (256, 256)
SMALL_CONV_CHANNELS = (32, 64)
SMALL_CONV_HEAD = (128,)

WITHOUT_NORM = ("mlp", "small-conv", "lenet", "conv2", "conv4", "conv6", "conv8")
MODELS = (*WITHOUT_NORM, *resnets.RESNETS)


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

    widths: hidden widths of the MLP; width_multiplier: factor on the hidden channels and features of the others,
    rounded down as hidden-networks' wide networks are.
    """

    def scaled(sizes):
        return tuple(resnets.scaled(size, width_multiplier) for size in sizes)

    if name in resnets.RESNETS:
        return resnets.build(name, image[0], classes, layers, width_multiplier=width_multiplier)
    if name == "mlp":
        return _mlp(image, (*widths, classes), layers)
    if name == "lenet":
        return _lenet(image, scaled(SMALL_CONV_CHANNELS), (*scaled(SMALL_CONV_HEAD), classes), layers)
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
            modules[f"conv{depth}"] = layers.conv(channels, wider, 3, padding=1)
            modules[f"conv{depth}_relu"] = nn.ReLU()
            channels = wider
        # ceil_mode changes nothing at 32x32; it lets Conv8's four pools shrink 8x8 digits to 1x1 instead of nothing.
        modules[f"pool{number}"] = nn.MaxPool2d(2, ceil_mode=True)
        height, width = -(-height // 2), -(-width // 2)
    return nn.Sequential(modules | _head(channels * height * width, head, layers))


def _lenet(image: tuple[int, int, int], convs: tuple[int, int], head: tuple[int, int], layers: Layers) -> nn.Sequential:
    """Two unpadded 3x3 convolutions with one ReLU, a max pool, two dropouts, two fully connected layers."""
    channels, height, width = image
    first, second = convs
    pixels = (height - 4) // 2 * ((width - 4) // 2)
    hidden, classes = head
    modules = OrderedDict(
        conv1=layers.conv(channels, first, 3, padding=0),
        conv1_relu=nn.ReLU(),
        conv2=layers.conv(first, second, 3, padding=0),
        pool=nn.MaxPool2d(2),
        conv2_dropout=nn.Dropout2d(0.25),
        flatten=nn.Flatten(),
        fc1=layers.linear(second * pixels, hidden),
        fc1_relu=nn.ReLU(),
        fc1_dropout=nn.Dropout(0.5),
        fc2=layers.linear(hidden, classes),
    )
    return nn.Sequential(modules)


def _head(features: int, widths: tuple[int, ...], layers: Layers) -> OrderedDict[str, nn.Module]:
    """Flatten, then fully connected layers with ReLU in between."""
    modules = OrderedDict(flatten=nn.Flatten())
    for number, (narrow, wide) in enumerate(pairwise((features, *widths)), 1):
        if number > 1:
            modules[f"fc{number - 1}_relu"] = nn.ReLU()
        modules[f"fc{number}"] = layers.linear(narrow, wide)
    return modules
