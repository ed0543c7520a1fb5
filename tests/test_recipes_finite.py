"""NaN and infinity end a training by name, wherever they are, and reach no checkpoint and no table."""

import math

import pytest
import torch
from recipe_runs import NAME, RECIPE, STEPS, SignalAt, resume, start, state
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.recipes import data, finite, registry
from edgepop_kernels.recipes.errors import Interrupted, NotFinite, UserError
from edgepop_kernels.recipes.experiments import fit
from edgepop_kernels.recipes.session import Session


@pytest.fixture(scope="module", autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_finite(saved):
    """Everything in a checkpoint, by whatever path."""
    if isinstance(saved, dict):
        saved = saved.values()
    if isinstance(saved, torch.Tensor):
        assert not saved.is_floating_point() or saved.isfinite().all()
    elif isinstance(saved, float):
        assert math.isfinite(saved)
    elif not isinstance(saved, str | int | type(None)):
        for part in saved:
            assert_finite(part)


@pytest.mark.parametrize("optimizer", ["sgd", "score-sgd"])
def test_scores_that_are_nan_under_a_finite_loss_end_the_run(tmp_path, optimizer):
    """The mask keeps as many weights as ever, whose loss is finite."""
    with pytest.raises(UserError) as error:
        start(tmp_path, RECIPE.override(lr=1e30, optimizer=optimizer))
    sentence = str(error.value)
    assert "fc1.scores is not finite any more in epoch 1: try a lower lr than 1e+30; " in sentence
    assert sentence.endswith("last.pt still holds epoch 0")
    assert state(tmp_path / NAME)["epoch"] == 0
    assert_finite(state(tmp_path / NAME))
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]
    assert not (tmp_path / NAME / "summary.json").exists() and not (tmp_path / NAME / "log.csv").exists()


def test_a_stopped_run_saves_nothing_that_is_not_finite(tmp_path):
    """At the signal the first score is infinite and the loss not yet looked at."""

    class Diverging(SignalAt):
        def progress(self, trained):
            counts = super().progress(trained)
            trained.model.fc1.scores.data[3, 5] = math.inf
            return counts

    with pytest.raises(UserError, match=r"fc1\.scores is not finite any more in epoch 1: .* still holds epoch 0"):
        start(tmp_path, report=Diverging(2))
    assert state(tmp_path / NAME)["step"] == 0
    assert_finite(state(tmp_path / NAME))
    with pytest.raises(Interrupted):
        resume(tmp_path / NAME, report=SignalAt(STEPS + 2))
    assert_finite(state(tmp_path / NAME))


def small_network():
    model = nn.Sequential(ek.FusedSubnetLinear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01, amsgrad=True)
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    return model, optimizer


PLACES = {
    "0.scores": lambda model, optimizer: model[0].scores,
    "0.weight": lambda model, optimizer: model[0].weight,
    "2.bias": lambda model, optimizer: model[2].bias,
    "1.running_var": lambda model, optimizer: model[1].running_var,
    "exp_avg_sq of 0.scores": lambda model, optimizer: optimizer.state[model[0].scores]["exp_avg_sq"],
    "max_exp_avg_sq of 1.weight": lambda model, optimizer: optimizer.state[model[1].weight]["max_exp_avg_sq"],
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", PLACES)
def test_whatever_is_not_finite_is_named(name, value):
    with ek.use_backend("reference"):
        model, optimizer = small_network()
    finite.check(model, optimizer, 0, 0.1)
    PLACES[name](model, optimizer).detach().view(-1)[-1] = value
    with pytest.raises(NotFinite, match=f"^{name} is not finite any more in epoch 3: try a lower lr than 0.25$"):
        finite.check(model, optimizer, 2, 0.25)


def test_answers_that_overflow_have_no_accuracy(tmp_path, monkeypatch):
    """Every parameter is finite, and so is the loss in training; argmax takes NaN for the first class it meets."""

    def overflowing(self, image, classes):
        model = network(self, image, classes)
        model.register_forward_hook(lambda module, args, y: y if module.training else y * 1e38 * 1e38)
        return model

    network = type(RECIPE).network
    monkeypatch.setattr(type(RECIPE), "network", overflowing)
    with pytest.raises(UserError, match=r"^the test loss is not a finite number: .* lower lr than 0\.1; .* epoch 0$"):
        start(tmp_path)
    assert_finite(state(tmp_path / NAME))
    assert not (tmp_path / "results.csv").exists()


def test_bits_of_a_mask_are_no_numbers_to_look_at():
    layer = ek.FusedSubnetLinear(5, 7)
    layer.freeze()
    finite.check(layer, torch.optim.SGD(layer.parameters(), lr=0.1), 0, 0.1)


def test_weights_that_overflow_as_they_are_drawn_are_no_matter_of_the_learning_rate(tmp_path):
    recipe = RECIPE.override(keep=1e-300, init="kaiming_normal", scale="paper")
    with pytest.raises(UserError, match=r"^fc1\.weight is not finite as it is drawn: try another init"):
        start(tmp_path, recipe)
    assert not list(tmp_path.iterdir())


def test_a_comparisons_training_looks_at_what_trains_too():
    """As the loss of masked networks does not tell."""
    recipe = registry.find("supermask-init-digits").recipe.override(
        epochs=1, lr=1e30, optimizer="sgd", weight_decay=1.0
    )
    digits = data.load("digits", None)
    with ek.use_backend("reference"):
        model = RECIPE.network(digits.image, digits.classes)
        with pytest.raises(
            NotFinite, match=r"^fc1\.scores is not finite any more in epoch 1: try a lower lr than 1e\+30$"
        ):
            fit(recipe, model, data.Batches(digits, 64, 0), Session())
