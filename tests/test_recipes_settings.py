"""Settings that have no effect beside the others: refused where somebody asks for them, and recorded nowhere."""

import dataclasses
import json

import pytest
import torch

from edgepop_kernels.recipes import data, experiments, registry
from edgepop_kernels.recipes.errors import ConfigError
from edgepop_kernels.recipes.interrupt import Stop
from edgepop_kernels.recipes.trainer import Trainer

# Recipe, what is asked of it, and the refusal: each of these trained the recipe as if nothing had been said.
WITHOUT_EFFECT = [
    ("edge-popup-digits", {"width_multiplier": "0.5"}, "a model other than mlp only, got 0.5"),
    ("edge-popup-digits", {"image_size": "64"}, "dataset imagenet or tinyimagenet only, got 64"),
    ("edge-popup-digits", {"workers": "2"}, "dataset imagenet or tinyimagenet only, got 2"),
    ("edge-popup-digits", {"channels_last": True}, "a model other than mlp only, got True"),
    ("edge-popup-digits", {"optimizer": "adam", "momentum": "0.5"}, "optimizer sgd or score-sgd only, got 0.5"),
    ("edge-popup-digits", {"init": "default", "scale": "none"}, "kaiming_normal or kaiming_uniform only, got 'none'"),
    ("edge-popup-digits-conv", {"widths": "30,20"}, "model mlp only, got (30, 20)"),
    ("edge-popup-conv4", {"image_size": "32"}, "dataset imagenet or tinyimagenet only, got 32"),
    (
        "edge-popup-resnet50",
        {"dataset": "cifar10", "image_size": "32"},
        "dataset imagenet or tinyimagenet only, got 32",
    ),
    ("edge-popup-resnet50", {"dataset": "cifar10", "workers": "0"}, "dataset imagenet or tinyimagenet only, got 0"),
    ("edge-popup-resnet50", {"widths": "30"}, "model mlp only, got (30,)"),
    ("dense-digits", {"backend": "reference"}, "methods that mask layers only, got 'reference'"),
    ("supermask-digits", {"momentum": "0.9"}, "optimizer sgd or score-sgd only, got 0.9"),  # its default
    ("supermask-digits", {"at_eval": "round"}, "rule bernoulli only, got 'round'"),
    ("supermask-digits", {"rule": "bernoulli", "cutoff": "0.4"}, "rule threshold only, got 0.4"),
    ("supermask-bernoulli-digits", {"cutoff": "0.5"}, "rule threshold only, got 0.5"),
    ("edge-popup-digits", {"init": "xavier_normal", "mode": "fan_out"}, "kaiming_uniform only, got 'fan_out'"),
    ("edge-popup-digits", {"init": "default", "nonlinearity": "tanh"}, "kaiming_uniform only, got 'tanh'"),
    ("edge-popup-digits", {"init": "kaiming_normal", "pack": True}, "trains masks and init signed_constant, unsigned"),
    ("edge-popup-digits", {"trains": "weights", "pack": True}, "trains masks and init signed_constant, unsigned"),
    ("edge-popup-digits", {"norm": "affine"}, "networks that have batch norms only, got 'affine'"),
    ("edge-popup-digits", {"multistep_every": "3"}, "schedule multistep only, got 3"),
    ("wirings-digits", {"schedule": "constant", "multistep_factor": "0.5"}, "schedule multistep only, got 0.5"),
    ("supermask-digits", {"nesterov": True}, "optimizer sgd or score-sgd only, got True"),
    ("supermask-digits", {"norm_decay": True}, "a weight_decay other than 0.0 only, got True"),
    ("supermask-digits", {"scale_keep": "0.3"}, "a scale other than none only, got 0.3"),
    ("dense-digits", {"first_dense": True}, "methods that mask layers only, got True"),
    ("lottery-tickets-digits", {"save_every": "1"}, "recipes of one training only, got 1"),
    ("neural-graph-static-digits", {"widths": "9"}, "model mlp only, got (9,)"),
    ("neural-graph-static-digits", {"width_multiplier": "0.5"}, "model mobilenet only, got 0.5"),
    ("neural-graph-discrete", {"small_classifier": True}, "model mobilenet only, got True"),
    ("neural-graph-mobilenet", {"nodes": "100"}, "model tiny-static, tiny-discrete or tiny-continuous only, got 100"),
    ("neural-graph-mobilenet-cifar10", {"edges": "99"}, "tiny-static, tiny-discrete or tiny-continuous only, got 99"),
    ("lottery-tickets-mnist", {"keep_conv": "0.5"}, "a model other than mlp only, got 0.5"),
    ("lottery-tickets-conv2", {"widths": "9"}, "model mlp only, got (9,)"),
    ("lottery-tickets-conv2", {"model": "resnet18", "keep": "0.5"}, "networks that have hidden linear layers only"),
    ("lottery-tickets-mnist", {"momentum": "0.5"}, "optimizer sgd or score-sgd only, got 0.5"),
    ("supermask-init-mnist", {"accumulate": "1"}, "recipes of one training only, got 1"),
    ("bayesian-tickets-digits", {"channels_last": False}, "a model other than mlp only, got False"),
    ("bayesian-tickets-digits", {"width_multiplier": "2"}, "a model other than mlp only, got 2.0"),
]


@pytest.mark.parametrize(("name", "asked", "words"), WITHOUT_EFFECT, ids=lambda v: str(v).replace(" ", ""))
def test_a_setting_without_effect_is_refused_with_what_it_has_an_effect_on(name, asked, words):
    with pytest.raises(ConfigError) as refusal:
        registry.find(name).recipe.asked(**asked)
    setting = list(asked)[-1]
    assert str(refusal.value).startswith(f"{setting}: has an effect with ")
    assert words in str(refusal.value)


@pytest.mark.parametrize(("name", "asked", "words"), WITHOUT_EFFECT, ids=lambda v: str(v).replace(" ", ""))
def test_python_and_files_may_name_settings_without_effect(name, asked, words):
    """A test, a benchmark or a file of settings sets them for many recipes at once."""
    recipe = registry.find(name).recipe.override(**asked)
    everything = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    assert registry.from_dict({"method": recipe.method} | everything) == recipe


def trained(recipe):
    """What an epoch on the first 50 digits leaves."""
    digits = data.load("digits", None)
    few = data.Split(digits.train.images[:50], digits.train.labels[:50])
    trainer = Trainer(recipe, dataclasses.replace(digits, train=few, test=few), torch.device("cpu"))
    with Stop() as stop:
        assert trainer.train_epoch(stop, lambda: None)
    return trainer.history, trainer.model.state_dict()


ON_DIGITS = [(name, asked) for name, asked, _ in WITHOUT_EFFECT if "digits" in name and "tickets" not in name]


@pytest.mark.parametrize(("name", "asked"), ON_DIGITS, ids=lambda v: str(v).replace(" ", ""))
def test_what_is_refused_would_have_changed_nothing(name, asked):
    recipe = registry.find(name).recipe.override(batch_size=20, threads=1)
    others = dict(list(asked.items())[:-1])
    history, state = trained(recipe.override(**others))
    other_history, other_state = trained(recipe.override(**asked))
    assert history == other_history
    assert all(torch.equal(state[name], other_state[name]) for name in state)


@pytest.mark.parametrize("name", ["lottery-tickets-digits", "supermask-init-digits", "bayesian-tickets-digits"])
def test_comparisons_read_images_by_as_many_processes_as_they_are_asked_for(name, monkeypatch):
    class Seen(Exception):
        pass

    def batches(*arguments, workers=0, **options):
        raise Seen(workers)

    monkeypatch.setattr(experiments, "Batches", batches)
    recipe = registry.find(name).recipe.asked(dataset="imagenet", workers=3)
    with pytest.raises(Seen, match=r"^3$"):
        recipe.run(data.load("digits", None), torch.device("cpu"))


@pytest.mark.parametrize("name", registry.RECIPES)
def test_what_is_recorded_is_in_effect_and_gives_the_recipe_back(name):
    recipe = registry.RECIPES[name].recipe
    recorded = json.loads(json.dumps(recipe.to_dict()))
    assert registry.from_dict(recorded).to_dict() == recipe.to_dict()
    del recorded["method"]
    assert recipe.asked(**recorded) == recipe  # nothing in it is refused: what is recorded can be asked for
    assert ("widths" in recorded) == (recipe.model == "mlp")
    assert ("momentum" in recorded) == recipe.optimizer.endswith("sgd")
    assert ("image_size" in recorded) == ("workers" in recorded) == (recipe.dataset in data.PHOTOGRAPHS)


@pytest.mark.parametrize("optimizer", ["score-sgd", "score-adam"])
def test_the_dense_baseline_has_no_optimizer_that_looks_for_cuts(optimizer):
    with pytest.raises(ConfigError, match=f"optimizer: expected one of sgd, adam, got '{optimizer}'"):
        registry.find("dense-digits").recipe.override(optimizer=optimizer)
