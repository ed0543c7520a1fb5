"""training.png shows what a run has an answer to; log.csv says what share of the mask bits changed in an epoch."""

import json

import pytest
import torch
from recipe_runs import NAME, RECIPE, quiet, rows, start, state

import edgepop_kernels as ek
from edgepop_kernels.recipes import data, figure, job, masks, plots, registry
from edgepop_kernels.recipes.trainer import Trainer

DRAWN = job.Outputs(plots=True, step_times=False)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Trains a recipe on digits; the panels of training.png by their titles."""
    seen = []
    save = figure.save
    monkeypatch.setattr(figure, "save", lambda drawn, path: (seen.append(drawn), save(drawn, path))[1])

    def run(name, **settings):
        # Small: an epoch of 5 steps.
        settings = dict(widths=(16,), limit_images=320, threads=1) | settings
        recipe = registry.find(name).recipe.override(**settings)
        job.start(name, recipe, None, tmp_path, DRAWN, quiet())
        assert (tmp_path / name / "training.png").read_bytes().startswith(b"\x89PNG")
        (found,) = seen
        found.canvas.draw()
        return {axes.get_title(): axes for axes in found.axes}

    return run


def visible_ticks(axes):
    low, high = axes.get_xlim()
    return [tick for tick in axes.get_xticks() if low <= tick <= high]


@pytest.mark.parametrize("epochs", [1, 2, 7, 40])
def test_epochs_are_whole_numbers_and_one_epoch_is_seen(drawn, epochs):
    panels = drawn(NAME, epochs=epochs, limit_images=64)
    for title in ("accuracy", "loss", "mask bits that changed in the epoch"):
        ticks = visible_ticks(panels[title])
        assert ticks and all(tick == int(tick) and 1 <= tick <= epochs for tick in ticks)
        for line in panels[title].lines[:2]:
            assert len(line.get_xdata()) in (epochs, 2)
            assert epochs > 1 or line.get_marker() == "o" or line.get_linestyle() == ":"


def test_a_masked_run_shows_losses_churn_and_scores_with_their_cut(drawn, tmp_path):
    panels = drawn(NAME, epochs=3, keep=0.3, validation=50)
    assert list(panels) == ["accuracy", "loss", "mask bits that changed in the epoch", "scores at the end"]
    log = rows(tmp_path / NAME / "log.csv")
    labels = {
        "accuracy": {"train": "training, while it trains", "validation": "validation", "test": "test"},
        "loss": {"train": "training, while it trains", "validation": "validation", "test": "test"},
    }
    for title, parts in labels.items():
        lines = {line.get_label(): line for line in panels[title].lines}
        for part, label in parts.items():
            scale = 100 if title == "accuracy" else 1
            expected = [scale * float(row[f"{part}_{title}"]) for row in log]
            assert lines[label].get_ydata() == pytest.approx(expected)
    validation = [float(row["validation_accuracy"]) for row in log]
    picked = f"epoch {validation.index(max(validation)) + 1}, picked by validation"
    assert picked in {line.get_label() for line in panels["accuracy"].lines}
    (churn,) = panels["mask bits that changed in the epoch"].lines
    assert churn.get_ydata() == pytest.approx([100 * float(row["churn"]) for row in log])
    scores = panels["scores at the end"]
    assert [patch.get_label() for patch in scores.patches] == ["fc1", "fc2"]
    for name, patch in zip(("fc1", "fc2"), scores.patches, strict=True):
        counts, edges, _ = patch.get_data()
        assert sum(counts) == pytest.approx(100)
        beyond = sum(count for count, left in zip(counts, edges, strict=False) if left >= 1)
        assert beyond == pytest.approx(30, abs=4), name  # a bar's width
    (cut,) = scores.lines
    assert set(cut.get_xdata()) == {1}


def layers(run):
    return json.loads((run / "summary.json").read_text())["layers"]


def test_layers_that_keep_different_shares_are_shown_by_name(drawn, tmp_path):
    panels = drawn("supermask-digits", epochs=1, scores_init="kaiming", lr=1.0, widths=(16, 12))
    kept = panels["weights kept in each layer"]
    assert [tick.get_text() for tick in kept.get_xticklabels()] == ["fc1", "fc2", "fc3"]
    shares = [100 * layer["kept"] / layer["weights"] for layer in layers(tmp_path / "supermask-digits")]
    assert [bar.get_height() for bar in kept.patches] == pytest.approx(shares)


def test_weights_that_score_themselves_are_shown_beside_the_smallest_kept(drawn):
    panels = drawn("wirings-digits", epochs=1, widths=(16, 12))
    assert panels["scores at the end"].get_xlabel().startswith("|weight| / smallest kept of the layer")


def test_a_supermask_shows_the_sigmoid_of_its_scores(drawn):
    scores = drawn("supermask-digits", epochs=1, cutoff=0.7)["scores at the end"]
    assert scores.get_xlabel() == "sigmoid(score)"
    assert scores.lines[0].get_label() == "from 0.7 on: kept"


def test_a_network_without_masks_shows_accuracy_and_loss(drawn, tmp_path):
    assert list(drawn("dense-digits", epochs=1)) == ["accuracy", "loss"]
    assert "churn" not in rows(tmp_path / "dense-digits" / "log.csv")[0]


def test_many_layers_are_one_line_of_scores(drawn):
    panels = drawn("edge-popup-conv8", dataset="digits", epochs=1, width_multiplier=0.05, limit_images=64)
    assert [patch.get_label() for patch in panels["scores at the end"].patches] == ["all 11 layers"]


def test_the_layers_of_a_network_that_keeps_alike_do_not_differ():
    with torch.device("cpu"):
        model = registry.find("edge-popup-resnet50").recipe.override(width_multiplier=0.05).network((3, 32, 32), 10)
    layers = [
        (name, ek.kept_count(layer.weight.numel(), 0.3), layer.weight.numel())
        for name, layer in masks.masked_layers(model)
    ]
    assert len(layers) == 54 and not figure.differ(layers)
    name, kept, weights = layers[3]
    assert figure.differ([*layers[:3], (name, kept + weights // 20, weights), *layers[4:]])


def test_churn_is_the_share_of_mask_bits_that_changed(tmp_path):
    start(tmp_path, RECIPE.override(epochs=1, keep=0.4))
    before, after = (state(tmp_path / NAME, name)["model"] for name in ("first", "last"))
    rule, changed, weights = ek.TopK(0.4), 0, 0
    for name in ("fc1", "fc2"):
        scores = [model[f"{name}.scores"] for model in (before, after)]
        changed += int((ek.mask(scores[0], rule) != ek.mask(scores[1], rule)).sum())
        weights += scores[0].numel()
    (row,) = rows(tmp_path / NAME / "log.csv")
    assert float(row["churn"]) == changed / weights > 0


def test_masks_that_are_drawn_are_compared_by_what_is_likely_and_draw_nothing():
    recipe = registry.find("supermask-bernoulli-digits").recipe.override(widths=(16,), backend="reference")
    model = Trainer(recipe, data.load("digits", None), torch.device("cpu")).model
    begun = torch.get_rng_state()
    before = masks.packed_masks(model)
    assert torch.equal(torch.get_rng_state(), begun)
    with torch.no_grad():
        model.fc1.scores.view(-1)[:7] = 0.1  # from 0, as all start: now kept rather than not
    assert masks.changed(model, before, masks.packed_masks(model)) == 7 / (64 * 16 + 16 * 10)


def test_a_comparison_of_one_epoch_is_seen_too(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plots, "save", lambda drawn, path: seen.append(drawn))
    plots.lines(plots.Chart("curves", "test accuracy", "epoch", [1], {"a": [0.3], "b": [0.6]}), tmp_path / "x.png")
    (axes,) = seen[0].axes
    assert [line.get_marker() for line in axes.lines] == [".", "."]
    assert visible_ticks(axes) == [1]
