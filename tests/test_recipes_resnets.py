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
    [
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("wide-resnet50-2", 68_883_240),
        ("wide-resnet101-2", 126_886_696),
    ],
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


def torchvisions(name):
    """Key -> shape of the state_dict of torchvision's network of this name, 1000 classes: written out from its rule."""
    found = {}

    def conv(key, outputs, inputs, kernel):
        found[f"{key}.weight"] = (outputs, inputs, kernel, kernel)

    def norm(key, channels):
        found.update({f"{key}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})
        found[f"{key}.num_batches_tracked"] = ()

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    inputs = 64
    counts = (2, 2, 2, 2) if name == "resnet18" else (3, 4, 23, 3) if "101" in name else (3, 4, 6, 3)
    for stage, count in enumerate(counts):
        width = 64 << stage
        inner = 2 * width if name.startswith("wide") else width
        outputs = width if name == "resnet18" else 4 * width
        for block in range(count):
            key = f"layer{stage + 1}.{block}"
            if name == "resnet18":
                shapes = [(width, inputs, 3), (width, width, 3)]
            else:
                shapes = [(inner, inputs, 1), (inner, inner, 3), (outputs, inner, 1)]
            for number, shape in enumerate(shapes, 1):
                conv(f"{key}.conv{number}", *shape)
                norm(f"{key}.bn{number}", shape[0])
            if block == 0 and inputs != outputs:
                conv(f"{key}.downsample.0", outputs, inputs, 1)
                norm(f"{key}.downsample.1", outputs)
            inputs = outputs
    return found | {"fc.weight": (1000, inputs), "fc.bias": (1000,)}


@pytest.mark.parametrize(("name", "keys"), [("resnet18", 122), ("resnet50", 320)] + [(n, 0) for n in resnets.IMAGENET])
def test_imagenet_networks_have_torchvisions_names_and_shapes(name, keys):
    expected = torchvisions(name)
    assert not keys or len(expected) == keys
    with torch.device("meta"):
        state = resnets.build(name, 3, 1000).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


@pytest.mark.parametrize("name", resnets.RESNETS)
def test_a_completed_network_has_the_keys_of_torchs_own_layers_and_the_same_answers(name):
    bare = Layers(
        conv=lambda *sizes, **options: nn.Conv2d(*sizes, **options | {"bias": name == "wide-resnet28-8"}),
        linear=partial(nn.Linear, bias=False),
        norm=ek.NonAffineBatchNorm,
    )
    model = resnets.build(name, 3, 7, bare, width_multiplier=0.05)
    for _ in range(3):
        model(torch.randn(3, 3, 33, 35))  # statistics other than those at the start
    model.eval()
    x = torch.randn(2, 3, 33, 35)
    before = model(x)
    assert resnets.complete(model) is model
    plain = resnets.build(name, 3, 7, width_multiplier=0.05).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), before)
    torch.testing.assert_close(plain(x), before)
    assert not [m for m in model.modules() if type(m) is ek.NonAffineBatchNorm]


@pytest.mark.parametrize(("name", "published"), [("cifar-resnet50", 23_520_842), ("cifar-resnet101", 42_512_970)])
def test_deeper_residual_networks_of_cifar(name, published):
    with torch.device("meta"):
        model = resnets.build(name, 3, 10)
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert parameters(model) == published


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
