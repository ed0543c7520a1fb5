"""Other projects' masked layers, known by name, become ours and go on as they were; what is not known is named."""

import warnings
from unittest import mock

import pytest
import torch
from foreign import SPARSITY, best, dnw, hidden_networks, hydra, supsup, torchao
from test_convert_refusals import check_unchanged, everything
from torch import nn
from torch.nn.utils import prune

import edgepop_kernels as ek
from edgepop_kernels.interop.table import _REGISTERED
from edgepop_kernels.testing.tolerances import assert_close

OF_TORCHAO = "its scores' gradient there lacks the factor W"


@pytest.fixture
def registry():
    """The table of registered classes, as it was before the test."""
    with mock.patch.dict(_REGISTERED):
        yield


def rated(layer, rate):
    layer.set_prune_rate(rate)
    return layer


def frozen_weight(layer):
    layer.weight.requires_grad_(False)
    return layer


# Source, what it becomes, the rule, and the input.
RANKED = {
    "SubnetConv": (
        lambda: rated(hidden_networks.SubnetConv(3, 5, 3, stride=2, padding=1), 0.3),
        ek.FusedSubnetConv,
        0.3,
    ),
    "SubnetConv, weight frozen": (
        lambda: frozen_weight(rated(hidden_networks.SubnetConv(4, 6, 3, groups=2, bias=False), 0.7)),
        ek.FusedSubnetConv,
        0.7,
    ),
    "SupermaskConv": (lambda: hidden_networks.SupermaskConv(3, 7, 3), ek.FusedSubnetConv, None),
    "SupermaskLinear": (lambda: frozen_weight(hidden_networks.SupermaskLinear(17, 13)), ek.FusedSubnetLinear, None),
    "hydra's SubnetConv": (lambda: rated(hydra.SubnetConv(3, 5, 3, dilation=2), 0.1), ek.FusedSubnetConv, 0.1),
    "hydra's SubnetLinear": (lambda: rated(hydra.SubnetLinear(17, 13), 0.9), ek.FusedSubnetLinear, 0.9),
}


def input_of(layer):
    sizes = (4, layer.in_features) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 9, 7)
    return torch.randn(sizes)


def step(layer, scores, x):
    """Output, and gradients of scores, weight, bias and x."""
    x = x.clone().requires_grad_()
    y = layer(x)
    asked = {"scores": scores, "weight": layer.weight, "bias": layer.bias, "x": x}
    asked = {name: t for name, t in asked.items() if t is not None and t.requires_grad}
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
    found = {"y": y.detach()} | {name: t.grad for name, t in asked.items()}
    for t in asked.values():
        t.grad = None
    return found


@pytest.mark.parametrize("what", RANKED)
@pytest.mark.filterwarnings("ignore:the weight of a masked layer trains beside its scores")
def test_layers_that_rank_scores_go_on_as_they_were(what):
    build, kind, rate = RANKED[what]
    layer = build()
    name = "popup_scores" if hasattr(layer, "popup_scores") else "scores"
    scores, weight, bias = getattr(layer, name), layer.weight, layer.bias
    trained = [p.requires_grad for p in (weight, scores)] + ([] if bias is None else [bias.requires_grad])
    x, model = input_of(layer), nn.Sequential(layer)
    before, mask = step(layer, scores, x), layer.masked() != 0
    ek.convert(model, **({} if rate else {"keep": SPARSITY}))
    assert type(layer) is kind and layer.rule == ek.TopK(rate or SPARSITY)
    assert layer.scores is scores and layer.weight is weight and layer.bias is bias
    assert [p.requires_grad for p in (weight, scores)] + ([] if bias is None else [bias.requires_grad]) == trained
    assert torch.equal(layer.mask(), mask)
    assert not {"prune_rate", "k", "w"} & vars(layer).keys() and "popup_scores" not in layer._parameters
    after = step(layer, layer.scores, x)
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert_close(key, after[key], value, torch.float32)


def test_a_layer_that_draws_draws_on_with_the_same_odds():
    layer = hidden_networks.SampleSubnetConv(5, 7, 3)
    layer.set_prune_rate(0.3)  # which says nothing there
    nn.init.normal_(layer.scores)
    scores, x = layer.scores, input_of(layer)
    ek.convert(nn.Sequential(layer))
    assert type(layer) is ek.FusedSupermaskConv and layer.rule == ek.Bernoulli() and layer.scores is scores
    assert layer.weight.requires_grad
    drawn = sum(layer.mask().float() for _ in range(400)) / 400
    spread = (scores.sigmoid() * (1 - scores.sigmoid()) / 400).sqrt()
    assert ((drawn - scores.sigmoid()).abs() / spread).max() < 5
    with pytest.warns(UserWarning, match="trains beside its scores"):
        layer(x)


def test_a_fixed_subnet_is_frozen_and_one_that_is_none_yet_is_refused():
    layer = hidden_networks.FixedSubnetConv(3, 5, 3)
    layer.set_prune_rate(0.8)
    model = nn.Sequential(layer)
    before = everything(model)
    with pytest.raises(ValueError, match=r"^model: layer '0', a FixedSubnetConv of hidden-networks, .* set_subnet\(\)"):
        ek.convert(model)
    check_unchanged(model, before)
    layer.set_subnet()
    x, mask = input_of(layer), layer.scores.bool()
    y = layer(x)
    with pytest.raises(
        ValueError, match=r"^rule: layer '0', a FixedSubnetConv .* has a fixed mask.*got TopK\(keep=0\.5"
    ):
        ek.convert(model, keep=0.5)
    ek.convert(model)
    assert type(layer) is ek.FusedSubnetConv and layer.rule == ek.Frozen() and layer.scores is None
    assert torch.equal(layer.mask(), mask) and int(mask.sum()) == 135 - int(0.8 * 135)
    assert_close("y", layer(x), y, torch.float32)
    layer(x).sum().backward()
    assert torch.equal(layer.weight.grad != 0, mask)


@pytest.mark.parametrize("name", ["SparseConv", "DNW"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_wirings_keep_what_is_not_removed_and_train_every_weight(name, rate):
    layer = getattr(dnw, name)(5, 8, 3, padding=1, bias=False)
    layer.set_prune_rate(rate)
    x, weight = input_of(layer), layer.weight
    before, mask = step(layer, None, x), layer.masked() != 0
    ek.convert(nn.Sequential(layer))
    assert type(layer) is ek.FusedSparseConv and layer.weight is weight and weight.requires_grad
    assert torch.equal(layer.mask(), mask)
    after = step(layer, None, x)
    for key, value in before.items():
        assert_close(key, after[key], value, torch.float32)


def test_as_many_weights_are_kept_as_there_where_one_minus_the_rate_rounds():
    rounded = 0
    for numel in (17, 63, 100, 147, 5120, 36864):
        for rate in (i / 100 for i in range(100)):
            layer = dnw.SparseConv(1, numel, 1, bias=False)
            layer.set_prune_rate(rate)
            ek.convert(layer)
            assert layer.rule.kept(numel) == numel - int(rate * numel)
            rounded += ek.TopK(1 - rate).kept(numel) != layer.rule.kept(numel)
    assert 0 < rounded < 60
    layer = dnw.SparseConv(512, 10, 1, bias=False)
    layer.set_prune_rate(0.1)
    assert int(ek.convert(layer).mask().sum()) == 4608


@pytest.mark.filterwarnings(f"ignore:.*{OF_TORCHAO}:UserWarning")
def test_torchao_s_percentile_of_raw_scores():
    for i in range(100):
        layer = torchao.SupermaskLinear(i / 100, 1, 17, 13)
        x, mask, trained = input_of(layer), layer.mask(), layer.weight.requires_grad
        y = layer(x)
        ek.convert(nn.Sequential(layer))
        assert type(layer) is ek.FusedSubnetLinear and layer.rule.of == "raw"
        assert torch.equal(layer.mask(), mask) and layer.weight.requires_grad == trained
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_close("y", layer(x), y, torch.float32)


def test_torchao_s_other_gradient_is_told_of_and_its_blocks_are_refused():
    model = nn.Sequential(torchao.SupermaskLinear(0.5, 1, 8, 8), torchao.SupermaskLinear(0.5, 1, 8, 8))
    with pytest.warns(UserWarning, match=rf"^convert: layer '0', a SupermaskLinear of torchao, .*{OF_TORCHAO}") as told:
        ek.convert(model)
    assert len(told) == 1
    blocks = nn.Sequential(torchao.SupermaskLinear(0.5, 4, 8, 8))
    with pytest.raises(ValueError, match=r"^model: layer '0', .* torchao, has one score for each block of 4x4 weights"):
        ek.convert(blocks)


@pytest.mark.parametrize("method", [None, "subnet", "supermask", "sparse"])
def test_a_pruned_layer_becomes_a_frozen_one(method):
    model = nn.Sequential(nn.Linear(17, 13), nn.ReLU(), nn.Conv1d(13, 4, 1))
    for layer, amount in ((model[0], 0.7), (model[0], 0.3), (model[2], 0.5)):  # the first twice: a container of both
        prune.l1_unstructured(layer, "weight", amount)
    x = torch.randn(13, 17)
    y, weight, masks = model(x), model[0].weight_orig, [model[i].weight_mask.bool() for i in (0, 2)]
    ek.convert(model, method=method)
    kinds = {"supermask": ek.FusedSupermaskLinear, "sparse": ek.FusedSparseLinear}
    assert type(model[0]) is kinds.get(method, ek.FusedSubnetLinear)
    for layer, mask in zip((model[0], model[2]), masks, strict=True):
        assert layer.rule == ek.Frozen() and torch.equal(layer.mask(), mask)
        assert not [hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, prune.BasePruningMethod)]
        assert list(layer._parameters)[:2] == ["weight", "bias"] and "weight_mask" not in layer._buffers
    assert model[0].weight is weight and weight.requires_grad
    assert_close("y", model(x), y, torch.float32)
    model(x).sum().backward()
    assert not weight.grad[~masks[0]].any() and weight.grad[masks[0]].any()
    state = model.state_dict()
    assert {name for name in state if name.startswith("0.")} == {
        *("0.weight", "0.bias", "0.mask_bits", "0._extra_state")
    }


def test_a_pruned_layer_under_an_interrupted_conversion_stays_pruned():
    model = nn.Sequential(prune.l1_unstructured(nn.Linear(17, 13), "weight", 0.5))
    before = everything(model)

    def interrupted(weight):
        weight.data.zero_()
        raise KeyboardInterrupt

    with mock.patch("edgepop_kernels.conversion.by_name", return_value=interrupted), pytest.raises(KeyboardInterrupt):
        ek.convert(model, init="signed_constant")
    check_unchanged(model, before)
    with pytest.raises(ValueError, match=r"^scale: it follows the fraction kept, which Frozen\(\) does not name"):
        ek.convert(model, init="signed_constant", scale="paper")
    check_unchanged(model, before)


def test_a_mask_of_other_values_than_0_and_1_is_refused():
    model = nn.Sequential(prune.custom_from_mask(nn.Linear(3, 4), "weight", torch.full((4, 3), 0.5)))
    with pytest.raises(ValueError, match=r"prune, has a mask of other values than 0 and 1; or exclude"):
        ek.convert(model)


UNSAID = {
    "SubnetConv": (hidden_networks.SubnetConv, "has no prune_rate: set_prune_rate was never called"),
    "SupermaskConv": (hidden_networks.SupermaskConv, "does not hold its rate, which is args.sparsity there"),
    "hydra": (hydra.SubnetConv, "has no k: set_prune_rate was never called"),
    "dnw": (dnw.SparseConv, "has no prune_rate: set_prune_rate was never called"),
}


@pytest.mark.parametrize("what", UNSAID)
def test_a_rate_that_was_never_set_is_asked_for(what):
    build, words = UNSAID[what]
    model = nn.Sequential(build(3, 5, 3))
    before = everything(model)
    with pytest.raises(
        ValueError, match=rf"^keep: layer '0', a {build.__name__} of .*, {words}.*; expected keep=\.\.\. or"
    ):
        ek.convert(model)
    check_unchanged(model, before)
    assert ek.convert(model, keep=0.2)[0].keep == 0.2


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (rated(hidden_networks.SubnetConv(3, 5, 3), -1), r"prune_rate -1, there the fraction KEPT; .*\(0, 1\]"),
        (rated(hydra.SubnetLinear(3, 5), "0.5"), r"k '0\.5', there the fraction KEPT"),
        (rated(dnw.SparseConv(3, 5, 3), 1.0), r"prune_rate 1\.0, there the fraction REMOVED; .*\[0, 1\)"),
        (torchao.SupermaskLinear(1.5, 1, 3, 5), r"sparsity_level 1\.5, there the fraction REMOVED"),
    ],
    ids=["hidden-networks", "hydra", "dnw", "torchao"],
)
def test_a_rate_that_cannot_be_is_named_with_its_meaning(layer, words):
    with pytest.raises(ValueError, match=rf"^keep: it, a \w+ of .*, has {words}"):
        ek.convert(layer)


def test_what_the_caller_says_stands_before_what_the_layer_says():
    def layer():
        return rated(hidden_networks.SubnetConv(3, 5, 3), 0.3)

    assert ek.convert(layer(), ek.Percentile(0.4)).rule == ek.Percentile(0.4)
    supermask = ek.convert(layer(), method="supermask", scores_init=1.0)
    assert type(supermask) is ek.FusedSupermaskConv and supermask.rule == ek.Threshold()
    sparse = ek.convert(layer(), method="sparse")
    assert type(sparse) is ek.FusedSparseConv and sparse.rule == ek.TopK(0.3) and sparse.scores is None
    assert ek.convert(hidden_networks.SampleSubnetConv(3, 5, 3), method="sparse").rule == ek.TopK()


@pytest.mark.filterwarnings("ignore:the weight of a masked layer trains beside its scores")
def test_an_optimizer_built_before_goes_on():
    layer = rated(hydra.SubnetLinear(17, 13), 0.3)
    optimizer = torch.optim.SGD([layer.popup_scores], lr=0.1, momentum=0.9)
    model, x = nn.Sequential(layer), torch.randn(5, 17)
    for convert in (False, True):
        if convert:
            ek.convert(model)
        before = next(iter(optimizer.param_groups[0]["params"])).detach().clone()
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert not torch.equal(before, optimizer.param_groups[0]["params"][0])
    assert optimizer.param_groups[0]["params"][0] is layer.scores and layer.scores in optimizer.state


def training(build, rate, convert_at):
    """Losses of ten steps of SGD on two layers and a dense one, converted before one of them."""
    torch.manual_seed(1)
    layers = [rated(kind(*sizes), rate) for kind, sizes in build]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.Flatten(), nn.Linear(6 * 15, 4))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.2, momentum=0.9)
    x, y, losses = torch.randn(16, 3, 7, 9), torch.arange(16) % 4, []
    for i in range(10):
        if i == convert_at:
            ek.convert(model, left="ignore")
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [hasattr(layer, "mask_bits") for layer in layers]


@pytest.mark.parametrize(
    ("kind", "rate"), [(hidden_networks.SubnetConv, 0.4), (hydra.SubnetConv, 0.4), (dnw.SparseConv, 0.7)]
)
@pytest.mark.filterwarnings("ignore:the weight of a masked layer trains beside its scores")
def test_a_training_that_is_converted_in_its_midst_goes_on(kind, rate):
    build = [(kind, (3, 8, 3)), (kind, (8, 6, 3))]
    expected, converted = training(build, rate, None)
    assert converted == [False, False] and expected[-1] < 0.95 * expected[0]
    for convert_at in (0, 4):
        losses, converted = training(build, rate, convert_at)
        assert converted == [True, True] and losses == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scores_become_float32(dtype):
    layer = rated(hidden_networks.SubnetConv(3, 5, 3), 0.3).to(dtype)
    scores = layer.scores.detach().clone()
    layer.scores.requires_grad_(False)
    ek.convert(nn.Sequential(layer))
    assert layer.scores.dtype is torch.float32 and torch.equal(layer.scores, scores.float())
    assert not layer.scores.requires_grad and layer.weight.dtype is dtype


def mixed():
    first, masked, last = nn.Conv2d(3, 4, 3), rated(hidden_networks.SubnetConv(4, 5, 3), 0.3), nn.Conv2d(5, 2, 1)
    return nn.Sequential(first, masked, last)


def masked_in(model):
    return [name for name, m in model.named_modules() if hasattr(m, "mask_bits")]


def test_dense_layers_beside_masked_ones_stay_dense_and_are_told_of():
    with pytest.warns(ek.LeftDense, match=r"2 Conv2d \(0, 2: 118 weights\).*; include='\*' masks plain layers beside"):
        model = ek.convert(mixed())
    assert masked_in(model) == ["1"] and type(model[0]) is nn.Conv2d
    with warnings.catch_warnings():
        warnings.simplefilter("error", ek.LeftDense)
        assert masked_in(ek.convert(mixed(), exclude=["0", "2"])) == ["1"]
        assert masked_in(ek.convert(mixed(), include="*")) == ["0", "1", "2"]
        assert masked_in(ek.convert(mixed(), include="0")) == ["0"]
        assert masked_in(ek.convert(mixed(), exclude="1")) == ["0", "2"]  # of plain ones alone
        ek.convert(mixed().requires_grad_(False))


@pytest.mark.parametrize("name", ["MultitaskMaskConv", "MultitaskMaskLinear", "IndividualHeads"])
def test_layers_of_several_tasks_are_refused_by_name_and_can_be_excluded(name):
    sizes = (3, 4) if name.endswith("Linear") else (3, 4, 3)
    model = nn.ModuleDict({"body": getattr(supsup, name)(*sizes), "head": nn.Linear(4, 2)})
    before = everything(model)
    with pytest.raises(
        ValueError, match=rf"^model: layer 'body', a {name} of supsup, holds the scores of several tasks"
    ):
        ek.convert(model)
    check_unchanged(model, before)
    assert masked_in(ek.convert(model, exclude="body*")) == ["head"]


class Flagged(hidden_networks.SubnetConv):
    """Another method's layer of the same name, which holds more than hidden-networks' does."""

    def __init__(self, *args):
        super().__init__(*args)
        self.flag = nn.Parameter(torch.ones_like(self.weight), requires_grad=False)


Flagged.__name__ = "SubnetConv"


class PopupLinear(nn.Linear):
    def __init__(self, *sizes, k=0.2):
        super().__init__(*sizes)
        self.k, self.s = k, nn.Parameter(torch.randn_like(self.weight))
        self.register_buffer("chosen", best(self.s.abs(), self.s.numel() // 2))


@pytest.mark.parametrize("build", [lambda: rated(Flagged(3, 5, 3), 0.3), lambda: PopupLinear(3, 4)])
def test_what_is_not_known_is_left_and_named_with_what_makes_it_known(build):
    layer = build()
    kind = type(layer).__name__
    with pytest.warns(
        ek.LeftDense, match=rf"1 {kind} \(1: .*; where {kind} has masks, edgepop_kernels\.interop\.register"
    ):
        ek.convert(nn.Sequential(nn.Linear(3, 3), layer))
    assert type(layer).__name__ == kind
    with pytest.raises(
        ValueError, match=rf"^model: it has no .*a {kind}, a subclass of nn\.\w+, .* unless .*register says"
    ):
        ek.convert(nn.Sequential(layer))


def test_a_registered_class_is_taken_as_it_says(registry):
    ek.interop.register(PopupLinear, scores="s", rule=lambda layer: ek.TopK(layer.k))
    layer = PopupLinear(17, 13)
    scores = layer.s
    ek.convert(nn.Sequential(layer))
    assert type(layer) is ek.FusedSubnetLinear and layer.rule == ek.TopK(0.2) and layer.scores is scores
    assert layer.weight.requires_grad
    for options, rule, held in (
        (dict(scores=None, rule=ek.TopK(0.4)), ek.TopK(0.4), True),
        (dict(mask="chosen"), ek.Frozen(), False),
        (dict(method="sparse", rule=ek.TopK(0.1)), ek.TopK(0.1), False),
        (dict(method="supermask", scores="s", rule=ek.Threshold(0.3)), ek.Threshold(0.3), True),
    ):
        ek.interop.register(PopupLinear, **options)
        layer = PopupLinear(17, 13)
        chosen = layer.chosen.bool()
        ek.convert(layer)
        assert layer.rule == rule and (layer.scores is not None) == held
        assert rule != ek.Frozen() or torch.equal(layer.mask(), chosen)
    ek.interop.register(PopupLinear, scores="chosen", rule=ek.TopK(0.4))
    layer = PopupLinear(17, 13)
    chosen = layer.chosen
    ek.convert(layer)
    assert torch.equal(layer.scores, chosen) and "chosen" not in layer._buffers  # a buffer, which did not train
    assert isinstance(layer.scores, nn.Parameter) and not layer.scores.requires_grad
    ek.interop.register(PopupLinear, scores="s")
    with pytest.raises(
        ValueError, match=r"^keep: it, a PopupLinear of test_interop_layers, was registered without a rule"
    ):
        ek.convert(PopupLinear(3, 4))
    for wrong, words in (
        (dict(scores="S"), "has no tensor 'S' of scores"),
        (dict(mask="bias"), "has no mask of its weight's"),
    ):
        ek.interop.register(PopupLinear, **wrong)
        with pytest.raises(ValueError, match=rf"^model: it, a PopupLinear .*, {words}"):
            ek.convert(PopupLinear(3, 4))
    with pytest.raises(ValueError, match=r"^model: it has no .*unless .*register says"):  # a subclass is its own
        ek.convert(type("Narrow", (PopupLinear,), {})(3, 4))


@pytest.mark.parametrize(
    ("arguments", "options", "argument"),
    [
        ((nn.Linear,), {}, "cls"),
        ((nn.LSTM,), {}, "cls"),
        ((ek.FusedSubnetConv,), {}, "cls"),
        ((PopupLinear(2, 3),), {}, "cls"),
        ((PopupLinear,), {"method": "dnw"}, "method"),
        ((PopupLinear,), {"rule": 0.5}, "rule"),
        ((PopupLinear,), {"rule": ek.TopK}, "rule"),
        ((PopupLinear,), {"rule": ek.TopK(0.5), "mask": "chosen"}, "rule"),
        ((PopupLinear,), {"scores": 1}, "scores"),
        ((PopupLinear,), {"mask": torch.ones(3)}, "mask"),
    ],
)
def test_what_cannot_be_registered_is_refused_by_its_argument(arguments, options, argument, registry):
    before = dict(_REGISTERED)
    with pytest.raises((TypeError, ValueError), match=rf"^{argument}: .*expected .*, got"):
        ek.interop.register(*arguments, **options)
    assert before == _REGISTERED


def test_freeze_rest_leaves_the_weights_of_frozen_masks_still():
    model = nn.Sequential(
        prune.l1_unstructured(nn.Linear(17, 13), "weight", 0.5), rated(hydra.SubnetLinear(13, 3), 0.5)
    )
    ek.convert(model, freeze_rest=True)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["1.scores"]
