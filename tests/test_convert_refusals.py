"""What convert refuses, by name and with the cure, and that a refusal leaves the model as it was."""

import copy
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import edgepop_kernels as ek


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 3))


def everything(model):
    """All that a conversion could change: classes, attributes, tables of hooks and parameters, values, what trains."""
    found = {}
    for name, module in model.named_modules():
        table = {k: (v, dict(v) if isinstance(v, dict) else None) for k, v in vars(module).items()}
        params = {k: (p, p.detach().clone(), p.requires_grad) for k, p in module._parameters.items() if p is not None}
        found[name] = (type(module), table, params, [b.clone() for b in module.buffers(recurse=False)])
    return found


def check_unchanged(model, before):
    after = everything(model)
    assert after.keys() == before.keys()
    for name, (kind, table, params, buffers) in before.items():
        kind_now, table_now, params_now, buffers_now = after[name]
        assert kind_now is kind and table_now.keys() == table.keys() and params_now.keys() == params.keys()
        for key, (value, entries) in table.items():
            assert table_now[key][0] is value, f"{name}.{key}"
            if entries is not None:
                assert list(table_now[key][1]) == list(entries)
                assert all(table_now[key][1][k] is v for k, v in entries.items())
        for key, (p, values, trained) in params.items():
            assert params_now[key][0] is p and torch.equal(params_now[key][1], values) and p.requires_grad == trained
        assert all(torch.equal(a, b) for a, b in zip(buffers_now, buffers, strict=True))


def own_forward(model):
    layer = model[2]
    layer._old_forward = layer.forward  # as accelerate's add_hook_to_module does
    layer.forward = lambda x: layer._old_forward(x)
    return model


def tied(model):
    model.add_module("head", nn.Linear(9, 7, bias=False))
    model.add_module("embedding", nn.Embedding(7, 9))
    model.head.weight = model.embedding.weight
    return model


def done(function, *arguments):
    def apply(model):
        function(model[2], *arguments)
        return model

    return apply


class LoraLinear(nn.Module):
    """The shape of peft's adapter layer."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def adapted(model):
    model[2] = LoraLinear(model[2])
    return model


class DistributedDataParallel(nn.Module):
    """Stands for torch's, which wants a process group; it is known by name."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class FSDPModule:
    """Stands for what fully_shard mixes into a module's class."""


def fully_sharded(model):
    model[2].__class__ = type("FSDPLinear", (FSDPModule, nn.Linear), {})
    return model


class Half(nn.Module):
    def forward(self, w):
        return w / 2


REFUSED = {
    "bias pruned": (done(prune.random_unstructured, "bias", 0.5), r"layer '2' .*prune\.remove\(layer, 'bias'\) first"),
    "old weight norm": (done(nn.utils.weight_norm), r"layer '2' .*remove_weight_norm\(layer\) first"),
    "old spectral norm": (done(nn.utils.spectral_norm), r"layer '2' .*remove_spectral_norm\(layer\) first"),
    "weight norm": (done(parametrizations.weight_norm), r"layer '2' .*\(WeightNorm\); call .*remove_parametrizations"),
    "spectral norm": (done(parametrizations.spectral_norm), r"layer '2' .*\(SpectralNorm\); call .*remove_param"),
    "parametrized": (
        lambda m: done(parametrize.register_parametrization, "weight", Half())(m),
        r"layer '2' .*\(Half\); call .*remove_parametrizations\(layer, 'weight'\) first",
    ),
    "a forward of its own": (own_forward, r"layer '2' has a forward of its own.*remove_hook_from_module"),
    "tied": (tied, r"head\.weight is also embedding\.weight.*exclude 'head', or untie it"),
    "adapted": (
        adapted,
        r"layer '2\.base_layer' has an adapter \(\w+\.LoraLinear\).*merge_and_unload",
    ),
    "DistributedDataParallel": (DistributedDataParallel, "it is wrapped by DistributedDataParallel, .* then wrap it"),
    "DataParallel": (nn.DataParallel, "it is wrapped by DataParallel, .* then wrap it"),
    "fully_shard": (fully_sharded, "2 is wrapped by fully_shard, .* then wrap it"),
    "complex": (lambda m: done(nn.Module.to, torch.complex64)(m), r"layer '2' has a weight of torch\.complex64"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
@pytest.mark.parametrize("method", ["subnet", "supermask", "sparse"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_would_not_be_masked_is_refused_with_the_cure_and_nothing_changes(what, method):
    build, message = REFUSED[what]
    model = build(network())
    model.register_forward_hook(lambda *_: None)
    before, random = everything(model), torch.get_rng_state()
    with pytest.raises((ValueError, TypeError), match=rf"^model: {message}"):
        ek.convert(model, method=method, init="signed_constant")
    check_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "what", ["bias pruned", "old weight norm", "weight norm", "a forward of its own", "tied", "adapted"]
)
def test_what_is_refused_can_be_excluded(what):
    model = ek.convert(REFUSED[what][0](network()), exclude=["2*", *(["head"] if what == "tied" else [])])
    assert [n for n, m in model.named_modules() if isinstance(m, ek.FusedSubnetLinear)] == ["0", "4"]
    assert model(torch.randn(3, 5)).shape == (3, 3) if what != "tied" else model.embedding.weight.requires_grad


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_forward_that_was_put_back_on_the_instance_is_no_forward_of_its_own(kind):
    """As accelerate leaves layers when it takes its hooks off, before convert and after."""
    torch.manual_seed(0)
    layer, x = (
        (nn.Linear(5, 7), torch.randn(3, 5)) if kind == "linear" else (nn.Conv2d(3, 5, 3), torch.randn(2, 3, 7, 7))
    )
    model = nn.Sequential(layer)
    layer.forward = layer.forward
    dense = model(x)
    ek.convert(model, keep=0.3)
    masked = model(x)
    assert not torch.allclose(masked, dense)
    layer.forward = layer.forward
    for plain in (layer.materialize(), ek.materialize(model, copy=True), ek.materialize(model)):
        torch.testing.assert_close(plain(x), masked)
        assert all("forward" not in vars(m) for m in plain.modules())


def test_materialize_refuses_a_layer_with_a_forward_of_its_own_and_changes_nothing():
    model = ek.convert(network())
    own_forward(model)
    before = everything(model)
    with pytest.raises(ValueError, match=r"^model: layer '2' has a forward of its own.*remove_hook_from_module"):
        ek.materialize(model)
    check_unchanged(model, before)


@pytest.mark.parametrize("method", ["subnet", "supermask", "sparse"])
def test_a_conversion_that_is_interrupted_leaves_the_model_as_it_was(method):
    model = network().to(torch.bfloat16) if method == "sparse" else network()
    calls = []
    handle = model[0].register_forward_pre_hook(lambda *_: calls.append("called"))
    before = everything(model)
    draw = ek.init.by_name("signed_constant")

    def interrupted(weight):
        draw(weight)
        if len(weight) == 3:
            raise KeyboardInterrupt

    with (
        mock.patch("edgepop_kernels.conversion.by_name", return_value=interrupted),
        pytest.raises(KeyboardInterrupt),
    ):
        ek.convert(
            model, method=method, init="signed_constant", **({"mask_bias": True} if method == "supermask" else {})
        )
    check_unchanged(model, before)
    handle.remove()
    assert not model[0]._forward_pre_hooks and not calls


def test_layers_are_chosen_by_functions_too():
    model = ek.convert(network(), include=lambda name, m: m.out_features == 7, exclude=lambda name, m: name == "2")
    assert [n for n, m in model.named_modules() if isinstance(m, ek.FusedSubnetLinear)] == ["0"]
    with pytest.raises(ValueError, match=r"^include: expected to choose one of the layers 0, 2, 4, got"):
        ek.convert(network(), include=lambda name, m: False)
    with pytest.raises(TypeError, match=r"^exclude: expected patterns of layers' names, or functions"):
        ek.convert(network(), exclude=nn.Linear)


class MyConv(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (
            MyConv(3, 4, 3),
            r"1, a MyConv, a subclass of nn\.Conv2d, which .* unless .*interop\.register says what it is; .* are 0",
        ),
        (nn.LazyLinear(3), r"1, a LazyLinear that has not seen an input yet: run one forward first"),
        (ek.FusedSubnetLinear(3, 4), r"1, a FusedSubnetLinear, which is masked already"),
        (nn.LSTM(3, 4), r"1, a LSTM, which convert leaves alone"),
        (nn.ReLU(), r"none of the layers 0$"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_pattern_of_what_is_left_alone_is_told_why(layer, words):
    with pytest.raises(ValueError, match=rf"^include: '1' matches {words}"):
        ek.convert(nn.Sequential(nn.Linear(3, 4), layer), include="1")


def test_a_model_without_layers_to_convert_is_told_what_it_has():
    with pytest.raises(
        ValueError,
        match=r"^model: it has no nn\.Conv2d, nn\.Linear.* or nn\.ConvTranspose1d to convert; it has a Multih",
    ):
        ek.convert(nn.MultiheadAttention(8, 2))
    with pytest.raises(ValueError, match=r"only FusedSubnetLinear, masked already; such layers .* layer\.rule = "):
        ek.convert(ek.convert(nn.Linear(3, 4)))
    with pytest.raises(ValueError, match=r"a LazyLinear that has not seen an input yet: run one forward first"):
        ek.convert(nn.Sequential(nn.LazyLinear(3)))


def test_two_layers_of_one_weight_are_refused_naming_both():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"^model: 0\.weight is also 1\.weight"):
        ek.convert(model)
    twice = nn.Sequential(model[0], nn.ReLU(), model[0])  # one layer in two places is masked once, and called twice
    model[1].weight = nn.Parameter(copy.deepcopy(model[0].weight.data))
    assert isinstance(ek.convert(twice)[2], ek.FusedSubnetLinear)
