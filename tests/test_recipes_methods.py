"""Networks of the methods beside edge-popup: which layers, what trains, and that a step moves the loss."""

import pytest
from recipe_runs import start

import edgepop_kernels as ek
from edgepop_kernels.recipes import registry

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
    assert [m.keep for m in model.modules() if hasattr(m, "mask")] == [1.0, 0.1, 0.1]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_short_run_learns(name, tmp_path):
    """Chance is 10 %; a few epochs of a narrow network are far above it, and frozen weights have not moved."""
    recipe = registry.find(name).recipe.override(epochs=8, widths=(64,), threads=1)
    if name == "supermask-digits":
        recipe = recipe.override(scores_init=0.05)  # from 1, eight epochs are too few to drop anything
    summary = start(tmp_path, recipe, name=name)
    assert summary.accuracy > 0.6 and summary.unchanged
