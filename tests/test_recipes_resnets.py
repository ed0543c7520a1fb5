"""Residual networks: parameter counts as published, shapes, and masked layers in their place."""

from functools import partial

import pytest
import torch
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.recipes import resnets
from edgepop_kernels.recipes.layers import Layers


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def weights(model):
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))


@pytest.mark.parametrize(
    ("name", "published"),
    # Of the usual dense models, classifier bias and batch norms included.
    [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("resnet101", 44_549_160), ("wide-resnet50-2", 68_883_240)],
)
def test_imagenet_networks_have_the_published_number_of_parameters(name, published):
    with torch.device("meta"):
        model = resnets.build(name, 3, 1000)
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert parameters(model) == published


@pytest.mark.parametrize(("name", "millions"), [("resnet50", 7.7), ("resnet101", 13.3), ("wide-resnet50-2", 20.6)])
def test_thirty_percent_is_what_hidden_networks_lists(name, millions):
    """Its table counts the kept weights at 30 %; ResNet-50 has 25,502,912 in all."""
    with torch.device("meta"):
        found = weights(resnets.build(name, 3, 1000))
    assert abs(0.3 * found / 1e6 - millions) < 0.1
    assert name != "resnet50" or found == 25_502_912


def test_cifar_resnet18():
    with torch.device("meta"):
        model = resnets.build("cifar-resnet18", 3, 10)
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert parameters(model) == 11_173_962 and weights(model) == 11_164_352


def test_wide_resnet28_8():
    """By hand: the convolutions of widths 16 -> 128 -> 256 -> 512, two per block, and a 1x1 where widths change."""
    with torch.device("meta"):
        model = resnets.build("wide-resnet28-8", 3, 10)
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    expected, inputs = 3 * 16 * 9, 16
    for width in (128, 256, 512):
        expected += inputs * width * 9 + inputs * width + 7 * width * width * 9
        inputs = width
    assert weights(model) == expected + 512 * 10
    assert all(m.bias is not None for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))


def test_masked_layers_take_their_place():
    layers = Layers(
        conv=partial(ek.FusedSubnetConv, keep=0.3),
        norm=ek.NonAffineBatchNorm,
        linear=partial(ek.FusedSubnetLinear, bias=False, keep=0.3),
    )
    with ek.use_backend("reference"):
        model = ek.share_selection(resnets.build("cifar-resnet18", 3, 10, layers))
        model(torch.randn(2, 3, 8, 8)).sum().backward()
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 21 and all(n.endswith("scores") for n in trained)
    with pytest.raises(ValueError, match=r"^name: ."):
        resnets.build("resnet34", 3, 10)
