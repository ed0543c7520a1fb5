"""Recipes of several trainings: what is compared, that the stages follow from each other, and their files."""

import csv
import json
import os

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import edgepop_kernels as ek
from edgepop_kernels.methods import criteria
from edgepop_kernels.recipes import bayesian_tickets, cli, data, experiments, lottery_tickets, supermask_init
from edgepop_kernels.recipes.errors import ConfigError
from edgepop_kernels.recipes.jitter import jitter
from edgepop_kernels.recipes.session import Session

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", None)


def test_bayesian_tickets_compare_whole_and_masked(digits):
    recipe = bayesian_tickets.BayesianTickets(widths=(32,), epochs=4, keep=0.3)
    result = recipe.run(digits, CPU)
    (chart,) = result.charts
    assert list(chart.lines) == ["posterior", "unmasked", "keep 0.3 by low_variance"]
    assert all(len(line) == 4 and line[-1] > 0.4 for line in chart.lines.values())
    assert sum(kept for _, kept, _ in result.layers) == ek.kept_count(64 * 32 + 32 * 10, 0.3)
    assert recipe.run(digits, CPU) == result


def test_bayesian_tickets_by_several_criteria_share_posterior_and_whole_network(digits):
    recipe = bayesian_tickets.BayesianTickets(widths=(8,), epochs=1, keep=0.3)
    (both,) = recipe.tickets(digits, CPU, ["low_variance", "high_variance"]).charts
    (low,) = recipe.run(digits, CPU).charts
    assert list(both.lines) == [*low.lines, "keep 0.3 by high_variance"]
    assert {name: both.lines[name] for name in low.lines} == low.lines


def test_bayesian_tickets_of_a_convolutional_network(digits):
    """All layers are ranked together. A network with a norm is refused: it would carry what the posterior learned."""
    settings = dict(model="small-conv", width_multiplier=0.25, epochs=3, keep=0.3, channels_last=True)
    result = bayesian_tickets.BayesianTickets(**settings).run(digits, CPU)
    posterior, unmasked, masked = result.charts[0].lines.values()
    assert posterior[-1] > 0.5 and unmasked[-1] > 0.5 and masked[-1] > 0.3
    sizes = {"conv1": 8 * 9, "conv2": 8 * 16 * 9, "fc1": 16 * 16 * 32, "fc2": 32 * 10}
    assert {name: size for name, _, size in result.layers} == sizes
    assert sum(kept for _, kept, _ in result.layers) == ek.kept_count(sum(sizes.values()), 0.3)
    with pytest.raises(ConfigError, match=r"^model: expected one of mlp, small-conv, .*, got 'cifar-resnet18'"):
        bayesian_tickets.BayesianTickets(model="cifar-resnet18")


def test_supermask_init_fine_tunes_the_best_mask(digits):
    recipe = supermask_init.SupermaskInit(widths=(32,), epochs=5, fine_tune_lr=1e-6, patience=5)
    test, training = recipe.run(digits, CPU).charts
    masks, weights, tuned = test.lines.values()
    assert weights[-1] > 0.85
    # At so small a rate the network is still the best mask's.
    assert tuned[0] == pytest.approx(max(masks), abs=0.01)
    assert training.name == "training" and training.lines["weights only"][-1] > 0.9


def test_supermask_init_masks_a_residual_network_with_and_without_biases(digits):
    for model, biases in (("wide-resnet28-8", True), ("cifar-resnet18", False)):
        recipe = supermask_init.SupermaskInit(model=model, width_multiplier=0.05, epochs=1, batch_size=1437)
        result = recipe.run(digits, CPU)
        assert len(result.layers) == (29 if biases else 21) and all(kept == size for _, kept, size in result.layers)


def test_the_rate_falls_where_training_stands_still(digits):
    """Two epochs without a better training accuracy, then lr / 10: a patience of 2."""
    recipe = supermask_init.SupermaskInit(lr=0.3, epochs=6, optimizer="sgd")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])  # and no step: the accuracy stands still

    def watched(recipe, model):
        return Watched(model.parameters(), lr=recipe.lr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "make_optimizer", watched)
        batches = data.Batches(digits, 1437, 0)
        found, picked = experiments.fit(recipe, model, batches, Session(), patience=2, pick=True)
    assert rates == pytest.approx([0.3, 0.3, 0.3, 0.03, 0.03, 0.003])
    assert len(found.test) == 6 and len(set(found.train)) == 1
    assert torch.equal(picked["1.weight"], model[1].weight)


def test_jitter_moves_images_as_one(digits):
    """A turn by an angle and a shift keep a plain image plain, mirror half of the others, and repeat from a seed."""
    draw = lambda images: jitter(images, torch.Generator().manual_seed(3))  # noqa: E731
    plain = torch.full((5, 2, 8, 8), 0.7)
    torch.testing.assert_close(draw(plain), plain)
    ramp = torch.linspace(-1, 1, 33).expand(400, 1, 33, 33)  # grows to the right
    moved = draw(ramp)
    slope = moved[:, 0, 16, 20] - moved[:, 0, 16, 12]
    assert 160 < (slope < 0).sum() < 240  # mirrored
    # cos 20 degrees < slope / 8 steps < 1, up to the borders that came in
    assert (slope.abs() <= 0.5 + 1e-5).all() and slope.abs().median() > 0.45
    middle = moved[:, 0, 16, 16]
    assert 0.35 < middle.abs().max() <= 0.4126  # a fifth of the side is 6.6 pixels, each 1/16 of the ramp
    assert torch.equal(moved, draw(ramp))
    plain, jittered = (
        supermask_init.SupermaskInit(widths=(8,), epochs=1, augment=augment) for augment in (False, True)
    )
    assert jittered.run(digits, CPU) == jittered.run(digits, CPU) != plain.run(digits, CPU)


QUICK = dict(widths=(32,), epochs=2, rounds=3, keep=0.5, keep_output=0.8)


def test_lottery_tickets_prune_round_after_round(digits):
    recipe = lottery_tickets.LotteryTickets(**QUICK, criteria="large_final,random,snip,magnitude_increase")
    result = recipe.run(digits, CPU)
    tickets, supermasks = result.charts
    assert list(tickets.lines) == list(supermasks.lines) == ["large_final", "random", "snip", "magnitude_increase"]
    first, second = 64 * 32, 32 * 10
    kept = [100.0]
    for _ in range(3):
        first, second = ek.kept_count(first, 0.5), ek.kept_count(second, 0.8)
        kept.append(100 * (first + second) / (64 * 32 + 32 * 10))
    assert tickets.at == pytest.approx(kept) and tickets.log
    assert result.layers == [("fc1", first, 64 * 32), ("fc2", second, 32 * 10)]
    starts = {line[0] for line in tickets.lines.values()}
    assert len(starts) == 1 and starts.pop() > 0.5  # one training of the whole network serves all lines
    # A mask of what training made large is worth something before any training; a random one is not.
    assert max(supermasks.lines["large_final"][1:]) > max(supermasks.lines["random"][1:]) + 0.2
    assert recipe.run(digits, CPU) == result


@pytest.mark.parametrize(
    "settings",
    [{"kept": ",".join(criteria.MASK_1)}, {"pruned": ",".join(criteria.MASK_0)}, {"rescale": True, "sign": "same"}],
    ids=str,
)
def test_lottery_tickets_compare_treatments(digits, settings):
    recipe = lottery_tickets.LotteryTickets(**QUICK | {"rounds": 2}, criteria="large_final", **settings)
    lines = recipe.run(digits, CPU).charts[0].lines
    assert list(lines) == (settings.get("kept") or settings.get("pruned") or "large_final").split(",")
    assert all(len(line) == 3 and min(line) > 0.1 for line in lines.values())
    assert len({tuple(line) for line in lines.values()}) == len(lines)  # the treatments differ


def test_pruned_weights_that_are_not_zero_stand_still(digits):
    recipe = lottery_tickets.LotteryTickets(**QUICK, criteria="large_final", pruned="freeze_init")
    batches = data.Batches(digits, 60, 0)
    start = {"fc1": torch.randn(32, 64) / 8, "fc2": torch.randn(10, 32) / 6}
    masks = {name: weight > 0 for name, weight in start.items()}
    final = recipe._round(Session(), batches, start, masks, fused=False)[1]["final"]
    for name, mask in masks.items():
        assert torch.equal(final[name][~mask], start[name][~mask])
        assert (final[name][mask] != start[name][mask]).any()
    zero = {name: weight * masks[name] for name, weight in start.items()}
    fused, plain = (recipe._round(Session(), batches, zero, masks, fused=how)[1]["final"] for how in (True, False))
    for name in masks:
        torch.testing.assert_close(fused[name], plain[name], rtol=1e-3, atol=1e-4)


def test_the_command_writes_tables_and_pictures(tmp_path):
    arguments = ["bayesian-tickets-digits", "--epochs", "1", "--widths", "8", "--threads", "1"]
    done = CliRunner().invoke(cli.app, ["train", *arguments, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "bayesian-tickets-digits"
    with open(folder / "curves.csv", newline="") as text:
        header, row = csv.reader(text)
    assert header == ["epoch", "posterior", "unmasked", "keep 0.2 by low_variance"] and row[0] == "1"
    names = {"config.json", "curves.csv", "curves.png", "layers.csv", "layers.png"}
    assert names <= {path.name for path in folder.iterdir()}
    assert (folder / "layers.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((folder / "config.json").read_text())["config"]["widths"] == [8]
    done = CliRunner().invoke(cli.app, ["train", *arguments, "--no-plots", "--out", str(tmp_path)])
    assert done.exit_code == 0 and not list((tmp_path / "bayesian-tickets-digits-1").glob("*.png"))


def test_a_comparison_has_no_network_to_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "bayesian-tickets-digits"
    command = ["train", name, "--epochs", "1", "--widths", "8", "--threads", "1", "--no-plots"]
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    before = sorted(os.listdir(f"runs/{name}"))
    assert "finished.pt" in before
    for place, *arguments in ((name,), (name, "--masks", "--checkpoint", "first"), (f"{name}/finished.pt",)):
        done = CliRunner().invoke(cli.app, ["export", f"runs/{place}", *arguments])
        assert done.exit_code == 2
        assert done.stderr == (
            f"edgepop: runs/{name} is a comparison of several trainings (bayesian-tickets): it keeps their accuracies, "
            "and no trained network to export or evaluate\n"
        )
    assert sorted(os.listdir(f"runs/{name}")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["supermask-init-digits", "--keep", "0.5"],
        ["supermask-init-digits", "--tensorboard"],
        ["bayesian-tickets-digits", "--lr", "1e30", "--epochs", "1", "--widths", "8"],
        ["lottery-tickets-digits", "--criteria", "large_final,largest"],
        ["lottery-tickets-digits", "--pruned", "freeze_init", "--kept", "random_reinit"],
    ],
    ids=str,
)
def test_wrong_arguments_are_one_sentence(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["train", *arguments])
    assert done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 1


def test_a_wrong_setting_is_named():
    with pytest.raises(ConfigError, match="fine_tune_lr"):
        supermask_init.SupermaskInit(fine_tune_lr=-1.0)
