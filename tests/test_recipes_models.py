"""Networks have the published weight counts; recipes draw them as asked."""

import math

import pytest
import torch
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.recipes import dense, models, registry, resnets
from edgepop_kernels.recipes.edge_popup import EdgePopup
from edgepop_kernels.recipes.layers import INITS

CIFAR, MNIST, DIGITS = (3, 32, 32), (1, 28, 28), (1, 8, 8)


def weights(model):
    return sum(p.numel() for name, p in model.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize(
    ("model", "image", "count"),
    [
        ("mlp", MNIST, 266_200),
        ("mlp", DIGITS, 50_200),
        ("lenet", MNIST, 1_199_648),
        ("conv2", CIFAR, 4_300_992),
        ("conv4", CIFAR, 2_425_024),
        ("conv6", CIFAR, 2_261_184),
        ("conv8", CIFAR, 5_275_840),
    ],
)
def test_weight_counts_are_the_published_ones(model, image, count):
    with torch.device("meta"):
        assert weights(dense.plain_network(dense.Dense(model=model), image, 10)) == count


@pytest.mark.parametrize("image", [CIFAR, MNIST, DIGITS])
@pytest.mark.parametrize("model", models.MODELS)
def test_every_network_takes_every_image_size(model, image):
    network = dense.plain_network(dense.Dense(model=model, width_multiplier=0.05, widths=(9, 8, 7)), image, 13)
    assert network(torch.randn(2, *image)).shape == (2, 13)


def test_the_width_multiplier_scales_hidden_sizes_only():
    network = dense.plain_network(dense.Dense(model="conv4", width_multiplier=0.5), CIFAR, 10)
    shapes = [tuple(p.shape) for p in network.parameters()]
    assert shapes == [(32, 3, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (128, 4096), (128, 128), (10, 128)]


def test_widths_are_rounded_down():
    """As hidden-networks' wide networks: 0.3 * 256 is 76.8."""
    shapes = [
        p.shape[0]
        for p in dense.plain_network(dense.Dense(model="conv4", width_multiplier=0.3), CIFAR, 10).parameters()
    ]
    assert shapes == [19, 19, 38, 38, 76, 76, 10]
    with torch.device("meta"):
        shapes = resnets.build("resnet18", 3, 10, width_multiplier=0.99).conv1.weight.shape
    assert shapes == (63, 3, 7, 7)


@pytest.mark.parametrize(("model", "count"), [("conv2", 5), ("lenet", 4), ("cifar-resnet18", 21), ("resnet50", 54)])
def test_edge_popup_trains_scores_only_and_has_no_biases(model, count):
    network = EdgePopup(model=model, width_multiplier=0.1, keep=0.3).network(CIFAR, 10)
    names = {name.rsplit(".", 1)[1]: set() for name, _ in network.named_parameters()}
    for name, parameter in network.named_parameters():
        names[name.rsplit(".", 1)[1]].add(parameter.requires_grad)
    assert names == {"weight": {False}, "scores": {True}}
    layers = [m for m in network.modules() if isinstance(m, (ek.FusedSubnetConv, ek.FusedSubnetLinear))]
    assert len(layers) == count
    # Signed constants reach every layer, however deep: one magnitude each, not torch's uniform start.
    assert all(layer.weight.abs().unique().numel() == 1 for layer in layers)
    assert {layer.keep for layer in layers} == {0.3}


@pytest.mark.parametrize("scale", ["none", "paper", "hidden-networks"])
@pytest.mark.parametrize("init", INITS)
def test_every_init_and_scale_reaches_the_weights(init, scale):
    if scale != "none" and init not in ek.init.SCALED:
        with pytest.raises(ValueError, match=f"scale: expected none, .* got '{scale}'"):
            EdgePopup(init=init, scale=scale)
        return
    layer = EdgePopup(widths=(200,), keep=0.2, init=init, scale=scale).network(MNIST, 10).fc1
    fan_in, fan_out = 784, 200
    factor = {"none": 1, "paper": 1 / math.sqrt(0.2), "hidden-networks": 1 / math.sqrt(0.8)}[scale]
    std = math.sqrt(2 / fan_in) * factor
    if init.startswith("xavier"):
        std = math.sqrt(2 / (fan_in + fan_out))
    elif init == "default":
        std = 1 / math.sqrt(3 * fan_in)  # U(-1/sqrt(fan_in), 1/sqrt(fan_in))
    rms = layer.weight.square().mean().sqrt().item()
    assert rms == pytest.approx(std, rel=0.02)
    if "constant" in init:
        assert layer.weight.abs().max().item() == pytest.approx(std, rel=1e-5)


def test_the_dense_baseline_starts_kaiming_normal():
    weight = dense.Dense(widths=(200,)).network(MNIST, 10).fc1.weight
    assert weight.requires_grad
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 784), rel=0.02)


def test_recipes_have_their_settings_and_a_goal():
    assert {"edge-popup-digits", "edge-popup-mnist", "edge-popup-conv4", "dense-digits"} <= registry.RECIPES.keys()
    assert set(registry.DEFAULTS.values()) <= registry.RECIPES.keys()
    for name, entry in registry.RECIPES.items():
        assert name.startswith(entry.recipe.method)
        assert entry.goal
        assert entry.source
        assert registry.from_dict(entry.recipe.to_dict()) == entry.recipe


def test_the_goal_holds_for_the_recipe_as_listed_only():
    recipe = registry.find("edge-popup-digits").recipe
    assert registry.goal("edge-popup-digits", recipe.override(seed=7, threads=2), 1437) == "91.1 % ± 0.5"
    assert registry.goal("edge-popup-digits", recipe.override(keep=0.1), 1437) is None
    assert registry.goal("a recipe of an older version", recipe, 1437) is None


def test_shared_selection_is_on():
    network = EdgePopup(widths=(16,)).network(DIGITS, 10)
    assert isinstance(network, nn.Sequential)
    assert len(network._forward_pre_hooks) == 1
