"""Networks of the methods beside edge-popup: which layers, what trains, and that a step moves the loss."""

import pytest
import torch
from recipe_runs import start, state

import edgepop_kernels as ek
from edgepop_kernels.methods.graphs import StaticGraph
from edgepop_kernels.recipes import registry
from edgepop_kernels.recipes.errors import ConfigError

NETWORKS = {
    "supermask-digits": (ek.FusedSupermaskLinear, ek.Threshold(0.5), {"scores"}),
    "supermask-bernoulli-digits": (ek.FusedSupermaskLinear, ek.Bernoulli(), {"scores"}),
    "wirings-digits": (ek.FusedSparseLinear, ek.TopK(0.1), {"weight"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_and_what_trains(name):
    kind, rule, trained = NETWORKS[name]
    model = registry.find(name).recipe.network((1, 8, 8), 10)
    layers = [m for m in model.modules() if hasattr(m, "mask")]
    assert len(layers) == 3 and all(type(layer) is kind and layer.rule == rule for layer in layers)
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == trained
    assert sum(layer.weight.numel() for layer in layers) == 64 * 300 + 300 * 100 + 100 * 10


def test_settings_reach_the_layers():
    settings = dict(rule="bernoulli", at_eval="round", scores_init=0.5, rescale=True, model="conv2")
    layer = registry.find("supermask-digits").recipe.override(**settings).network((3, 32, 32), 10)[0]
    assert isinstance(layer, ek.FusedSupermaskConv) and layer.rescale and (layer.scores == 0.5).all()
    assert layer.rule == ek.Bernoulli("round")
    model = registry.find("wirings-digits").recipe.override(first_dense=True).network((1, 8, 8), 10)
    assert [m.keep for m in model.modules() if hasattr(m, "mask")] == [0.1, 0.1]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_short_run_learns(name, tmp_path):
    """Chance is 10 %; a few epochs of a narrow network are far above it, and frozen weights have not moved."""
    recipe = registry.find(name).recipe.override(epochs=8, widths=(64,), threads=1)
    if name == "supermask-digits":
        recipe = recipe.override(scores_init=0.05)  # from 1, eight epochs are too few to drop anything
    summary = start(tmp_path, recipe, name=name)
    assert summary.accuracy > 0.6
    assert summary.unchanged is (None if name == "wirings-digits" else True)  # there every weight trains


def test_neural_graphs_learn_or_hold_their_wiring(tmp_path):
    """Steps of the rate as published, whatever the number of epochs; a random wiring ends as it was drawn."""
    recipe = registry.find("neural-graph-static").recipe
    rates = [recipe.lr_at(epoch) for epoch in (0, 79, 80, 119, 120, 159)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert recipe.override(warmup=4).lr_at(0) == pytest.approx(0.025)
    small = dict(dataset="digits", nodes=50, edges=300, epochs=2, batch_size=128, threads=1, backend="reference")
    moved = {}
    for name in ("neural-graph-static", "neural-graph-static-random"):
        summary = start(tmp_path, registry.find(name).recipe.override(**small), name=name)
        assert summary.kept == 300 and summary.accuracy > 0.15
        first, last = (state(tmp_path / name, which)["model"] for which in ("first", "last"))
        (picture,) = recipe.pictures(registry.find(name).recipe.override(**small).network((1, 8, 8), 10), tmp_path)
        assert picture.name == "wiring.png" and picture.read_bytes()[:4] == b"\x89PNG"
        watched = [n for n in last if n.endswith(("wires.0.weight", "mask_bits"))]
        moved[name] = {n.rpartition(".")[2]: not torch.equal(first[n], last[n]) for n in watched}
    assert moved == {
        "neural-graph-static": {"weight": True},
        "neural-graph-static-random": {"weight": True, "mask_bits": False},
    }


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (dict(model="mlp"), "model"),
        (dict(model="mobilenet", width_multiplier=1.5), "width_multiplier"),
        (dict(nodes=60, edges=1000), "edges"),
        (dict(nodes=20), "nodes"),
    ],
    ids=str,
)
def test_wrong_graphs_are_named(settings, word):
    with pytest.raises(ConfigError, match=rf"^{word}: "):
        registry.find("neural-graph-static").recipe.override(**settings)


def test_mobilenet_takes_digits_and_a_small_classifier(tmp_path, monkeypatch):
    recipe = registry.find("neural-graph-mobilenet-cifar10").recipe.override(small_classifier=True)
    model = recipe.network((1, 8, 8), 10)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert isinstance(model[-1], ek.FusedSparseLinear) and model[-1].keep == 0.225
    monkeypatch.setattr(StaticGraph, "picture", lambda graph, path: path)
    assert recipe.pictures(model, tmp_path) == [tmp_path / f"wiring-{i}.png" for i in range(1, 6)]
    kept = sum(int(m.mask().sum()) for m in model.modules() if isinstance(m, ek.FusedSparseConv))
    assert kept == 104 + 1244 + 4977 + 72_991 + 79_626
