"""The fraction kept in recipes: over layers, and over the epochs of a training."""

import math

import pytest
from recipe_runs import NAME, RECIPE, STEPS, SignalAt, assert_same_run, resume, rows, start, state

import edgepop_kernels as ek
from edgepop_kernels.recipes import registry
from edgepop_kernels.recipes.errors import ConfigError, Interrupted
from edgepop_kernels.recipes.masks import masked_layers

GRADUAL = RECIPE.override(keep=0.2, keep_epochs=3, keep_from=0.9)
CIFAR = (3, 32, 32)


def recipe(method, **settings):
    return registry.find(f"{method}-digits").recipe.override(**settings)


@pytest.mark.parametrize("method", ["edge-popup", "wirings"])
@pytest.mark.parametrize(("name", "density"), [("erk", ek.density.erk), ("uniform-plus", ek.density.uniform_plus)])
def test_layers_keep_what_the_density_says_and_the_whole_what_keep_says(method, name, density):
    asked = recipe(method, model="conv2", keep=0.2, per_layer=name)
    model = asked.network(CIFAR, 10)
    layers = dict(masked_layers(model))
    assert {n: m.keep for n, m in layers.items()} == density(model, 0.2)
    total = sum(m.weight.numel() for m in layers.values())
    assert abs(sum(int(m.mask().sum()) for m in layers.values()) - 0.2 * total) <= len(layers)
    assert asked.density() == f"keep 0.2, {name}"


def test_the_deviation_of_a_layers_weights_follows_its_own_keep():
    model = recipe("edge-popup", model="conv2", keep=0.2, per_layer="erk", scale="paper").network(CIFAR, 10)
    for _, layer in masked_layers(model):
        fan_in = layer.weight[0].numel()
        assert layer.weight.abs().max().item() == pytest.approx(math.sqrt(2 / (fan_in * layer.keep)))


def test_masks_of_a_fixed_random_subnet_are_spread_too():
    model = recipe("edge-popup", model="conv2", keep=0.2, per_layer="erk", trains="weights").network(CIFAR, 10)
    kept = {n: m.mask().float().mean().item() for n, m in masked_layers(model)}
    asked = recipe("edge-popup", model="conv2").network(CIFAR, 10)
    assert kept == pytest.approx(ek.density.erk(asked, 0.2), abs=0.01)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    start(folder, GRADUAL)
    return folder / NAME


def test_keep_falls_step_by_step_to_the_end_of_its_epochs(straight):
    first, last = state(straight, "first")["model"], state(straight)["model"]
    for entries, keep in ((first, 0.9), (last, 0.2)):
        model = GRADUAL.network((1, 8, 8), 10)
        model.load_state_dict(entries)
        assert {m.rule for _, m in masked_layers(model)} == {ek.TopK(keep)}


def test_the_curve_is_that_of_steps(monkeypatch, tmp_path):
    kept, step = [], ek.KeepSchedule.step

    def noted(self):
        step(self)
        kept.append(next(iter(self.keep.values())))

    monkeypatch.setattr(ek.KeepSchedule, "step", noted)
    start(tmp_path, GRADUAL)
    end = 3 * STEPS
    assert kept == pytest.approx([0.2 + 0.7 * (1 - min(t, end) / end) ** 3 for t in range(1, 4 * STEPS + 1)])


def test_no_epoch_before_the_end_of_the_schedule_is_the_best(straight):
    picked = rows(straight / "log.csv")
    accuracies = [float(row["test_accuracy"]) for row in picked]
    best = state(straight, "best-test")["epoch"] if (straight / "best-test.pt").exists() else None
    full = max(range(2, 4), key=lambda epoch: accuracies[epoch])
    assert best == full + 1


@pytest.mark.parametrize("step", [1, STEPS + 5, 3 * STEPS])
def test_a_gradual_run_resumes_to_the_bit(straight, tmp_path, step):
    with pytest.raises(Interrupted):
        start(tmp_path, GRADUAL, SignalAt(step))
    resume(tmp_path / NAME)
    assert_same_run(tmp_path / NAME, straight)


def test_a_checkpoint_on_the_way_is_evaluated_as_it_was(tmp_path):
    start(tmp_path, GRADUAL.override(epochs=3, save_every=1))
    found = [float(row["test_accuracy"]) for row in rows(tmp_path / NAME / "log.csv")]
    for epoch, accuracy in enumerate(found, 1):
        loaded = state(tmp_path / NAME, f"epoch-{epoch}")
        model = GRADUAL.network((1, 8, 8), 10)
        model.load_state_dict(loaded["model"])
        keep = 0.2 + 0.7 * (1 - epoch / 3) ** 3
        assert model.fc1.keep == pytest.approx(keep) and 0 < accuracy <= 1


WRONG = [
    ({"keep_epochs": 5}, r"^keep_epochs: expected at most the 4 epochs of the training, got 5"),
    ({"keep_from": 0}, r"^keep_from: expected a number in \(0, 1\], got 0"),
    ({"per_layer": "er"}, r"^per_layer: expected one of uniform, erk, uniform-plus, got 'er'"),
    (
        {"trains": "weights", "keep_epochs": 2},
        r"^keep_epochs: expected 0 with trains weights, whose masks stand, got 2",
    ),
    (
        {"per_layer": "erk", "init": "kaiming_normal", "scale": "hidden-networks"},
        r"^scale: expected none or paper with per_layer erk: a layer may keep all, got 'hidden-networks'",
    ),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=str)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        RECIPE.override(**settings)


def test_a_keep_below_what_two_layers_take_is_an_error_of_the_setting():
    asked = recipe("edge-popup", model="conv2", keep=0.0001, per_layer="uniform-plus")
    with pytest.raises(
        ConfigError, match=r"^keep: with per_layer uniform-plus \S+ and \S+ take .* of all weights, expected"
    ):
        asked.network(CIFAR, 10)


def test_a_start_without_epochs_has_no_effect():
    with pytest.raises(ConfigError, match=r"^keep_from: has an effect with a keep_epochs other than 0 only, got 0.7"):
        RECIPE.asked(keep_from=0.7)
