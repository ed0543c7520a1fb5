"""Settings of networks whose weights are drawn, of what trains in them, and of the steps that are taken."""

import json
import math
import warnings

import pytest
import torch
from recipe_runs import NAME, RECIPE, STEPS, SignalAt, assert_same_run, quiet, resume, rows, start, state
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.recipes import evaluation, export, job, masks, registry
from edgepop_kernels.recipes.errors import ConfigError, Interrupted, UserError
from edgepop_kernels.recipes.trainer import make_optimizer

METHODS = {
    "edge-popup": "edge-popup-digits",
    "supermask": "supermask-digits",
    "wirings": "wirings-digits",
    "dense": "dense-digits",
}
DIGITS, CIFAR = (1, 8, 8), (3, 32, 32)


def recipe(method, **settings):
    return registry.find(METHODS[method]).recipe.override(**settings)


def layers(model):
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_constant_rate_and_steps_after_the_warm_up(warmup):
    rates = {
        "constant": lambda epoch: 0.4,
        "multistep": lambda epoch: 0.4 * 0.5 ** (epoch // 4),
    }
    for schedule, rate in rates.items():
        settings = dict(lr=0.4, epochs=13, warmup=warmup, schedule=schedule, multistep_every=4, multistep_factor=0.5)
        found = [RECIPE.override(**settings).lr_at(epoch) for epoch in range(13)]
        assert found == [0.4 * (e + 1) / 3 if e < warmup else rate(e) for e in range(13)]
        graph = registry.find("neural-graph-static").recipe.override(**settings)
        assert [graph.lr_at(epoch) for epoch in range(13)] == found
        tickets = registry.find("supermask-init-digits").recipe.override(**settings)
        assert [tickets.lr_at(epoch) for epoch in range(13)] == found


@pytest.mark.parametrize("optimizer", ["sgd", "score-sgd"])
def test_nesterov_reaches_the_optimizer(optimizer):
    for nesterov in (False, True):
        settings = recipe("edge-popup", optimizer=optimizer, nesterov=nesterov)
        groups = make_optimizer(settings, settings.network(DIGITS, 10)).param_groups
        assert [group["nesterov"] for group in groups] == [nesterov]
    with pytest.raises(ConfigError, match=r"^nesterov: expected false with momentum 0"):
        recipe("edge-popup", optimizer=optimizer, nesterov=True, momentum=0.0)


def test_weight_decay_reaches_norms_and_biases_where_that_is_asked():
    for norm_decay, decays in ((False, {5e-4, 0.0}), (True, {5e-4})):
        settings = dict(model="resnet18", width_multiplier=0.1, last_dense=True, weight_decay=5e-4)
        settings = recipe("dense", **settings, norm_decay=norm_decay)
        model = settings.network(CIFAR, 10)
        groups = make_optimizer(settings, model).param_groups
        assert {group["weight_decay"] for group in groups} == decays
        decayed = {p for group in groups if group["weight_decay"] for p in group["params"]}
        assert {n for n, p in model.named_parameters() if p not in decayed} == (
            set() if norm_decay else {n for n, p in model.named_parameters() if p.dim() == 1}
        )
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("model", ["mlp", "conv2", "cifar-resnet18"])
@pytest.mark.parametrize("method", METHODS)
def test_the_first_and_the_last_layer_are_dense_where_that_is_asked(method, model):
    torch.manual_seed(3)
    sizes = dict(model=model, width_multiplier=0.1)
    masked = layers(recipe(method, **sizes).network(CIFAR, 10))
    settings = recipe(method, **sizes, first_dense=True, last_dense=True)
    network = settings.network(CIFAR, 10)
    found = layers(network)
    assert [m.weight.shape for m in found] == [m.weight.shape for m in masked]
    first, *between, last = found
    assert type(first) in (nn.Conv2d, nn.Linear) and first.bias is None
    assert type(last) is nn.Linear and last.bias is not None
    assert last.weight.abs().max() <= 1 / math.sqrt(last.in_features)  # torch's own start
    assert all(type(a) is type(b) and a.bias is None for a, b in zip(between, masked[1:-1], strict=True))
    assert all(m.weight.requires_grad is (method in ("wirings", "dense")) for m in found)
    if isinstance(first, nn.Conv2d):
        assert (first.kernel_size, first.stride, first.padding) == ((3, 3), (1, 1), (1, 1))
    if method == "edge-popup":  # drawn as the others are
        assert first.weight.abs().unique().numel() == 1
    assert network(torch.randn(2, *CIFAR)).shape == (2, 10)


@pytest.mark.parametrize("method", METHODS)
def test_norms_have_a_scale_and_a_shift_or_not(method):
    usual = "affine" if method in ("wirings", "dense") else "non-affine"
    for norm in ("affine", "non-affine"):
        settings = recipe(method, model="cifar-resnet18", width_multiplier=0.1, norm=norm)
        norms = [m for m in settings.network(CIFAR, 10).modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == 20 and {m.affine for m in norms} == {norm == "affine"}
        if norm == "affine":  # trains where weights do
            assert {m.weight.requires_grad for m in norms} == {usual == "affine"}
    assert recipe(method).norm == usual


@pytest.mark.parametrize("method", METHODS)
def test_scale_mode_and_nonlinearity_reach_the_deviation(method):
    keep = {"keep" if method in ("edge-popup", "wirings") else "scale_keep": 0.3}
    for mode, fan in (("fan_in", 300), ("fan_out", 100)):
        settings = dict(init="kaiming_normal", scale="hidden-networks", mode=mode, nonlinearity="tanh")
        torch.manual_seed(1)
        weight = recipe(method, **settings, **keep).network(DIGITS, 10).fc2.weight
        assert weight.shape == (100, 300)
        assert weight.std().item() == pytest.approx(5 / 3 / math.sqrt(fan * 0.7), rel=0.02)
    with pytest.raises(ConfigError, match=r"^scale: expected none or paper with keep 1"):
        recipe(method, scale="hidden-networks", init="kaiming_normal", **dict.fromkeys(keep, 1.0))
    with pytest.raises(ConfigError, match=r"^scale: expected none, the only one init xavier_normal has"):
        recipe(method, scale="paper", init="xavier_normal")


def test_supermasks_scores_start_kaiming_uniform_where_that_is_asked():
    settings = recipe("supermask", scores_init="kaiming")
    scores = settings.network(DIGITS, 10).fc1.scores
    assert scores.abs().max() <= 1 / 8 and scores.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.02)
    assert registry.from_dict(settings.to_dict()) == settings
    with pytest.raises(ConfigError, match=r"^scores_init: expected a number in \[-20, 20\], or kaiming, got 'drawn'"):
        settings.override(scores_init="drawn")


def test_a_network_of_dense_layers_alone_is_refused():
    settings = recipe("edge-popup", widths=(16,), first_dense=True)
    with pytest.raises(ConfigError, match=r"^last_dense: expected false for an mlp of two layers whose first is dense"):
        settings.override(last_dense=True)


MOVED = {"masks": {"scores"}, "both": {"scores", "weight"}, "weights": {"weight"}}


@pytest.mark.parametrize("trains", MOVED)
def test_what_trains_moves_and_nothing_else(tmp_path, trains):
    settings = RECIPE.override(trains=trains, epochs=1, first_dense=True, widths=(16, 12), weight_decay=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = start(tmp_path, settings)
    first, last = (state(tmp_path / NAME, name)["model"] for name in ("first", "last"))
    changed = {
        name for name in first if isinstance(first[name], torch.Tensor) and not torch.equal(first[name], last[name])
    }
    assert {name.rpartition(".")[2] for name in changed} == MOVED[trains]
    assert ("fc1.weight" in changed) is (trains != "masks")
    assert summary.unchanged is (True if trains == "masks" else None)
    if trains == "weights":  # under the masks that were drawn
        for name in ("fc2", "fc3"):
            mask = ek.unpack_mask(last[f"{name}.mask_bits"], last[f"{name}.weight"].shape)
            assert torch.equal(mask, ek.mask(first[f"{name}.scores"], ek.TopK(0.5)))
            assert torch.equal(last[f"{name}.weight"][~mask], first[f"{name}.weight"][~mask])


def test_a_supermask_trains_its_weights_beside_the_scores():
    settings = recipe("supermask", trains="both", model="conv2", width_multiplier=0.1)
    assert all(p.requires_grad for p in settings.network(CIFAR, 10).parameters())
    with pytest.raises(ConfigError, match=r"^trains: expected one of masks, both, got 'weights'"):
        settings.override(trains="weights")


@pytest.mark.parametrize("trains", ["both", "weights"])
def test_stopped_and_resumed_it_is_the_same_run(tmp_path, trains):
    settings = RECIPE.override(
        trains=trains, schedule="multistep", multistep_every=2, multistep_factor=0.5, nesterov=True, norm_decay=True,
        first_dense=True, last_dense=True, save_every=2, widths=(16, 12),
    )  # fmt: skip
    start(tmp_path / "a", settings)
    with pytest.raises(Interrupted):
        start(tmp_path / "b", settings, SignalAt(2 * STEPS + 5))
    resume(tmp_path / "b" / NAME)
    assert_same_run(tmp_path / "b" / NAME, tmp_path / "a" / NAME, ("last", "best", "first", "epoch-2", "epoch-4"))
    assert not (tmp_path / "a" / NAME / "epoch-3.pt").exists()
    assert state(tmp_path / "a" / NAME, "epoch-2")["epoch"] == 2


@pytest.mark.parametrize(
    "settings",
    [
        dict(first_dense=True, last_dense=True, widths=(16, 12), backend="auto"),
        dict(model="small-conv", width_multiplier=0.2, channels_last=True, dtype="bfloat16", optimizer="score-sgd"),
    ],
    ids=str,
)
def test_packed_weights_give_the_same_run(tmp_path, settings):
    plain = RECIPE.override(epochs=2, **settings)
    first = start(tmp_path / "a", plain)
    with pytest.raises(Interrupted):
        start(tmp_path / "b", plain.override(pack=True), SignalAt(STEPS + 5))
    packed = resume(tmp_path / "b" / NAME)
    assert packed.unchanged is first.unchanged is True
    assert (packed.last, packed.layers) == (first.last, first.layers)
    assert rows(tmp_path / "b" / NAME / "log.csv") == rows(tmp_path / "a" / NAME / "log.csv")
    states = [state(tmp_path / folder / NAME)["model"] for folder in ("a", "b")]
    masked = [name for name in states[0] if name.endswith("scores")]
    for name in masked:
        assert torch.equal(states[0][name], states[1][name])
        assert name.replace("scores", "weight") not in states[1]
        signs = states[1][name.replace("scores", "weight_signs")]
        assert signs.numel() <= states[0][name].numel() // 8 + 16 and signs.dtype is torch.uint8
    assert masks.count_weights(plain.override(pack=True).network(DIGITS, 10)) == masks.count_weights(
        plain.network(DIGITS, 10)
    )


def test_packed_runs_are_exported_started_from_and_timed(tmp_path):
    packed = RECIPE.override(epochs=1, pack=True)
    job.start(NAME, packed, None, tmp_path / "a", job.Outputs(plots=False, step_times=True), quiet())
    run = tmp_path / "a" / NAME
    times = json.loads((run / "step_times.json").read_text())
    assert "GetSubnet" in times["seconds_quartiles"]
    network = packed.network(DIGITS, 10)
    network.load_state_dict(state(run)["model"])
    for options in ({"packed": True}, {}):
        suffix = ".safetensors" if options else ".pt"
        export.export(run, "last", tmp_path / f"net{suffix}", **options)
    weights = torch.load(tmp_path / "net.pt", weights_only=True)
    assert torch.equal(weights["fc1.weight"], network.fc1.effective_weight())
    (found,) = evaluation.evaluate(tmp_path / "net.safetensors", None, None, quiet())
    assert found.accuracy == state(run)["history"][-1]["test_accuracy"]
    for pack in (True, False):  # from a packed run, packed or not; and a packed one from weights
        start(tmp_path / "b", RECIPE.override(epochs=1, pack=pack, pretrained=str(run / "last.pt")))
    source = tmp_path / "b" / f"{NAME}-1"
    assert torch.equal(state(source, "first")["model"]["fc1.weight"], network.fc1.weight)
    start(tmp_path / "b", RECIPE.override(epochs=1, pack=True, pretrained=str(source / "last.pt")))
    signs = [state(tmp_path / "b" / name, "first")["model"]["fc1.weight_signs"] for name in (NAME, f"{NAME}-2")]
    assert torch.equal(*signs)
    drawn = RECIPE.override(epochs=1, init="kaiming_normal")
    start(tmp_path / "c", drawn)
    with pytest.raises(UserError, match=r"has weights that are no constants: expected --no-pack"):
        start(tmp_path / "d", RECIPE.override(pack=True, pretrained=str(tmp_path / "c" / NAME / "last.pt")))
