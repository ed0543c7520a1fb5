"""Adapters in the shape of peft's (its own are in tests/zoo): refused around masked layers, never masked themselves."""

import copy

import pytest
import torch
from torch import nn

import edgepop_kernels as ek


class Adapter(nn.Module):
    """Two factors beside a layer, and a way to add their product to its weight, as peft's LoRA does it."""

    def __init__(self, base, down=None):
        super().__init__()
        self.base_layer = base
        rows, columns = base.weight.flatten(1).shape
        self.down = nn.ModuleDict({"default": down or nn.Linear(columns, 2, bias=False)})
        self.up = nn.ModuleDict({"default": nn.Linear(2, rows, bias=False)})

    def forward(self, x):
        if isinstance(self.base_layer, nn.Linear):
            return self.base_layer(x) + self.up["default"](self.down["default"](x))
        return self.base_layer(x)

    def merge(self):
        change = self.up["default"].weight @ self.down["default"].weight
        self.base_layer.weight.data += change.view_as(self.base_layer.weight).detach()


class Beside(nn.Module):
    """A wrapper that happens to call its layer so, and merges nothing."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base

    def forward(self, x):
        return self.base_layer(x) + 1


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 3))


MASKED = {
    "linear": lambda: ek.FusedSubnetLinear(5, 7),
    "conv2d": lambda: ek.FusedSubnetConv(3, 5, 3),
    "conv1d": lambda: ek.FusedSubnetConv1d(3, 5, 3),
    "supermask": lambda: ek.FusedSupermaskLinear(5, 7),
    "sparse": lambda: ek.FusedSparseLinear(5, 7),
}


@pytest.mark.parametrize("frozen", [False, True], ids=["loose", "frozen"])
@pytest.mark.parametrize("kind", MASKED)
def test_an_adapter_around_a_masked_layer_is_refused_before_it_changes_anything(kind, frozen):
    layer = MASKED[kind]()
    if frozen:
        layer.freeze()
    before, training = copy.deepcopy(layer.state_dict()), [p.requires_grad for p in layer.parameters()]
    name = type(layer).__name__
    with pytest.raises(ValueError, match=rf"^base_layer: .*\(test_adapters\.Adapter\).*got a {name}, .*materialize"):
        Adapter(layer)
    assert [p.requires_grad for p in layer.parameters()] == training
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_an_adapter_around_a_module_with_masked_layers_in_it_is_refused():
    attention = nn.ModuleDict({"q": nn.Linear(5, 5), "k": ek.FusedSubnetLinear(5, 5)})
    with pytest.raises(ValueError, match="got a FusedSubnetLinear"):
        Adapter(attention)


def test_what_merges_nothing_may_hold_a_masked_layer():
    layer = ek.FusedSubnetLinear(5, 7, keep=0.3)
    x = torch.randn(3, 5)
    assert torch.equal(Beside(layer)(x), layer(x) + 1)
    holder = nn.ModuleDict({"base_layer": layer})
    holder.register_module("none", None)
    assert holder["base_layer"] is layer


def test_what_is_materialized_can_be_adapted_and_merged():
    model = ek.convert(network(), keep=0.3)
    plain = ek.materialize(model, copy=True)
    x = torch.randn(4, 5)
    masked = model(x)
    plain[2] = Adapter(plain[2])
    adapted = plain(x)
    plain[2].merge()
    plain[2] = plain[2].base_layer
    assert torch.allclose(plain(x), adapted, atol=1e-6)
    assert not torch.allclose(adapted, masked, atol=1e-3)
    assert torch.equal(model(x), masked)


def test_parts_of_adapters_are_never_converted_wherever_else_they_are_found():
    model = nn.Module()
    model.shared = nn.Linear(7, 2, bias=False)  # by all adapters, and found first where it belongs to none
    model.network = network()
    for i in (2, 4):
        model.network[i] = Adapter(model.network[i], model.shared)
    ek.convert(model, exclude="*.base_layer", left="ignore")
    assert [n for n, m in model.named_modules() if isinstance(m, ek.FusedSubnetLinear)] == ["network.0"]
    assert model.shared.weight.requires_grad


def test_a_layer_with_an_adapter_is_refused_by_any_name():
    model = network()
    model.add_module("adapter", Adapter(model[2]))  # the layer is still model[2] as well, where it is found first
    with pytest.raises(ValueError, match=r"^model: layer '2' has an adapter \(test_adapters\.Adapter\)"):
        ek.convert(model)


class Prompted(nn.Module):
    """The shape of peft's model: its network, and what makes a prompt beside it."""

    peft_config = "anything"

    def __init__(self, network):
        super().__init__()
        self.prompt_encoder = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
        self.base_model = network

    def get_base_model(self):
        return self.base_model

    def forward(self, x):
        return self.base_model(x + self.prompt_encoder(x))


def test_what_a_wrapper_trains_outside_of_its_network_is_not_converted():
    model = ek.convert(Prompted(network()), left="ignore")
    assert all(type(m) in (nn.Sequential, nn.Linear, nn.Tanh) for m in model.prompt_encoder.modules())
    assert isinstance(model.base_model[0], ek.FusedSubnetLinear)
    model(torch.randn(3, 5)).sum().backward()
    assert model.prompt_encoder[0].weight.grad is not None and model.base_model[0].scores.grad is not None
