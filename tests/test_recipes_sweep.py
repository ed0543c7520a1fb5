"""Sweeps and smoke tests: runs that the table tells apart, several seeds in one command, runs cut short."""

import io
import itertools
import json
import os
import signal
import statistics
from pathlib import Path

import pytest
import torch
from recipe_runs import NAME, RECIPE, STEPS, SignalAt, assert_same, assert_same_run, quiet, resume, rows, start, state
from rich.console import Console
from typer.testing import CliRunner

from edgepop_kernels.recipes import cli, data, job, registry, sweep, trainer
from edgepop_kernels.recipes.errors import ConfigError, Interrupted, UserError
from edgepop_kernels.recipes.report import Report, duration

QUICK = ["--epochs", "2", "--widths", "16", "--backend", "reference", "--threads", "1", "--no-plots", "--no-step-times"]
DIGITS = ["edge-popup-digits", *QUICK]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def edgepop(tmp_path, monkeypatch):
    """Runs `edgepop train ARGUMENTS` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(cli.app, ["train", *map(str, arguments)])


def results(folder="runs"):
    return rows(f"{folder}/results.csv", without=())


def test_the_table_tells_runs_apart_by_every_setting_that_is_not_the_recipes(edgepop):
    assert edgepop(*DIGITS).exit_code == 0
    assert edgepop(*DIGITS, "--keep", 0.3, "--lr", 0.05, "--seed", 3).exit_code == 0
    assert edgepop("bayesian-tickets-digits", *QUICK[:4], "--no-plots", "--limit-images", 90).exit_code == 0
    first, second, *compared = [row["settings"] for row in results()]
    assert first == "widths=16 epochs=2"  # not the backend, nor the threads
    assert second == "widths=16 epochs=2 lr=0.05 keep=0.3"  # nor the seed: runs to average over read alike
    assert set(compared) == {"limit_images=90 widths=16 epochs=2"}


def test_a_run_has_the_name_it_is_given(edgepop):
    for _ in range(2):
        assert edgepop(*DIGITS, "--epochs", 1, "--name", "first try").exit_code == 0
    assert sorted(os.listdir("runs")) == ["first try", "first try-1", "results.csv"]
    assert [(row["run"], row["recipe"]) for row in results()] == [("first try", NAME), ("first try-1", NAME)]
    assert json.loads(Path("runs/first try/config.json").read_text())["recipe"] == NAME


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--name", "a/b"], "--name: expected a folder's name without /"),
        (["--name", ".."], "--name: expected a folder's name without /"),
        (["--name", ""], "--name: expected a folder's name without /"),
        (["--name", "results.csv"], "--name: expected a folder's name without /"),
        (["--seeds", "0"], "--seeds: expected a whole number, at least 1, got '0'"),
        (["--seeds", "five"], "--seeds: expected a whole number, at least 1, got 'five'"),
        (["--seeds", "2", "--seed", str(2**32 - 1)], f"--seed: expected a whole number in [0, 2**32), got {2**32}"),
        (["--max-steps", "-1"], "--max-steps: expected a whole number, at least 0, got -1"),
        (
            ["--limit-images", "9", "--validation", "9"],
            "--validation: expected fewer than the 9 training images, got 9",
        ),
        (["--limit-images", "3", "--accumulate", "4"], "--batch-size: 64 leaves 3 of 3 images"),
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_said_before_anything_is_made(edgepop, arguments, words):
    result = edgepop(*DIGITS, *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert words in result.stderr
    assert not os.path.exists("runs")


@pytest.mark.parametrize(("option", "value"), [("--name", "other"), ("--seeds", "2")])
def test_a_resumed_run_keeps_its_name_and_its_seed(edgepop, option, value):
    result = edgepop("--resume", "runs/x", option, value)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"edgepop: {option}: a resumed run has")


def test_several_seeds_are_as_many_runs_and_one_line_about_all(edgepop, tmp_path):
    result = edgepop(*DIGITS, "--seeds", 3, "--seed", 4, "--name", "three")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir("runs")) == ["results.csv", "three-seed4", "three-seed5", "three-seed6"]
    table = results()
    assert [row["seed"] for row in table] == ["4", "5", "6"]
    assert len({row["settings"] for row in table}) == 1
    accuracies = [float(row["test_accuracy"]) for row in table]
    mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
    last = result.stdout.splitlines()[-1]
    assert last == (f"test accuracy, last epoch: {mean:.2%} ± {deviation:.2%} (mean ± standard deviation of 3 seeds)")
    start(tmp_path / "alone", RECIPE.override(epochs=2, seed=5))
    assert_same(state(tmp_path / "runs" / "three-seed5")["model"], state(tmp_path / "alone" / NAME)["model"], "model")


def test_with_images_held_out_the_seeds_are_compared_at_the_picked_epoch_too(edgepop):
    result = edgepop(*DIGITS, "--seeds", 2, "--validation", 200)
    table = results()
    for column, what in (
        ("test_accuracy", "test accuracy, last epoch"),
        ("test_accuracy_at_best_validation", "test accuracy, epoch picked by validation"),
    ):
        assert f"{what}: {sweep.spread([float(row[column]) for row in table])}" in result.stdout


def test_the_seeds_of_a_comparison_are_averaged_by_what_is_compared(edgepop):
    result = edgepop("bayesian-tickets-digits", *QUICK[:4], "--no-plots", "--limit-images", 90, "--seeds", 2)
    assert result.exit_code == 0, result.output
    by_variant = {}
    for row in results():
        by_variant.setdefault(row["variant"], []).append(float(row["test_accuracy"]))
    assert len(by_variant) == 3
    for variant, accuracies in by_variant.items():
        assert f"{variant}, test accuracy: {sweep.spread(accuracies)}" in result.stdout


def test_a_stopped_sweep_keeps_its_runs_and_says_how_to_go_on(tmp_path):
    reports = iter([quiet(), SignalAt(STEPS + 3), quiet()])

    def begin(recipe, name):
        return start_as(tmp_path, recipe, name, next(reports))

    with pytest.raises(Interrupted) as stopped:
        sweep.over_seeds(RECIPE.override(epochs=2, seed=7), 3, "all", begin, quiet())
    words = str(stopped.value)
    assert "stopped by SIGTERM after epoch 1, step 3" in words
    assert f"continue with `edgepop train --resume {tmp_path / 'all-seed8'}`" in words
    assert words.endswith("; finished: seed 7; after seed 8: the same command with --seed 9 --seeds 1")
    assert sorted(os.listdir(tmp_path)) == ["all-seed7", "all-seed8", "results.csv"]
    resume(tmp_path / "all-seed8")
    assert [row["seed"] for row in rows(tmp_path / "results.csv")] == ["7", "8"]


def start_as(folder, recipe, name, report):
    return job.start(NAME, recipe, None, folder, job.Outputs(plots=False, step_times=False), report, name)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (UserError("no room"), UserError, "no room; finished: seed 0; after seed 1: the same command with --seed 2 "),
        (KeyboardInterrupt(), Interrupted, "stopped in seed 1, whose checkpoints are whole; finished: seed 0; after"),
        (ConfigError("expected more", "lr"), ConfigError, "lr: expected more$"),
    ],
    ids=["error", "interrupt", "setting"],
)
def test_a_seed_that_fails_names_those_that_are_finished(error, kind, words):
    def begin(recipe, name):
        if recipe.seed == 1:
            raise error

    with pytest.raises(kind, match=words):
        sweep.over_seeds(RECIPE, 3, "x", begin, quiet())


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run that max_steps ends in its second epoch, and what it printed."""
    threads = torch.get_num_threads()
    folder, screen = tmp_path_factory.mktemp("short"), io.StringIO()
    start(folder, RECIPE.override(max_steps=STEPS + 5), Report(Console(file=screen, width=120)))
    torch.set_num_threads(threads)
    return folder / NAME, screen.getvalue()


def test_max_steps_ends_a_run_which_says_so(short):
    run, screen = short
    log = rows(run / "log.csv")
    assert [row["epoch"] for row in log] == ["1", "2"]
    right = float(log[1]["train_accuracy"]) * 5 * RECIPE.batch_size  # of the images trained on, not of the whole set
    assert right == pytest.approx(round(right), abs=1e-6) and right > 5 * RECIPE.batch_size / 2
    ended = f"by max_steps, after step 5 of {STEPS} of epoch 2 of 4"
    assert json.loads((run / "summary.json").read_text())["ended"] == ended
    assert ended in screen
    (result,) = rows(run.parent / "results.csv")
    assert result["settings"] == f"widths=16 epochs=4 max_steps={STEPS + 5}"


def test_a_run_cut_short_aims_at_nothing(tmp_path):
    """The same settings otherwise: the recipe's own, of which nothing else differs."""
    for cut in ({"max_steps": 3}, {"limit_images": 64}):
        recipe = registry.find(NAME).recipe.override(backend="reference", **cut)
        assert registry.goal(NAME, recipe, 1437) is None
    assert registry.goal(NAME, registry.find(NAME).recipe.override(backend="reference"), 1437) == "91.1 % ± 0.5"


def test_a_run_cut_short_begins_as_the_whole_one(short, tmp_path):
    start(tmp_path, RECIPE.override(epochs=4))
    assert rows(short[0] / "log.csv")[0] == rows(tmp_path / NAME / "log.csv")[0]


@pytest.mark.parametrize("step", [4, STEPS, STEPS + 2, STEPS + 5])
def test_a_run_cut_short_resumes_to_the_same(short, tmp_path, step):
    with pytest.raises(Interrupted):
        start(tmp_path, RECIPE.override(max_steps=STEPS + 5), SignalAt(step, signal.SIGINT))
    resume(tmp_path / NAME)
    assert_same_run(tmp_path / NAME, short[0])


def test_more_steps_than_there_are_end_nothing(tmp_path):
    start(tmp_path, RECIPE.override(epochs=1, max_steps=STEPS))
    assert json.loads((tmp_path / NAME / "summary.json").read_text())["ended"] == ""


def test_limited_images_are_the_first_of_both_parts(tmp_path):
    digits = data.load("digits", None)
    few = data.limited(digits, 77)
    for part in ("train", "test"):
        whole, first = getattr(digits, part), getattr(few, part)
        assert len(first) == 77
        assert torch.equal(first.images, whole.images[:77]) and torch.equal(first.labels, whole.labels[:77])
    assert len(data.limited(digits, 1000).test) == 360
    screen = io.StringIO()
    start(tmp_path, RECIPE.override(epochs=1, limit_images=77), Report(Console(file=screen, width=120)))
    assert "(77 training images)" in screen.getvalue()
    (row,) = rows(tmp_path / NAME / "log.csv")
    assert float(row["test_accuracy"]) * 77 == pytest.approx(round(float(row["test_accuracy"]) * 77))


def test_a_single_image_is_refused_where_a_norm_would_see_one_value():
    digits = data.limited(data.load("digits", None), 65)  # 64, and one
    recipe = registry.find("edge-popup-cifar-resnet18").recipe
    recipe = recipe.override(width_multiplier=0.05, batch_size=64, backend="reference")
    with pytest.raises(ConfigError, match="batch_size: 64 leaves a single image for the last step of an epoch"):
        trainer.Trainer(recipe, digits, torch.device("cpu"))
    trainer.Trainer(recipe.override(batch_size=63), digits, torch.device("cpu"))  # two
    small = trainer.Trainer(recipe.override(model="conv2"), digits, torch.device("cpu"))  # without norms
    assert small.model.training


def test_every_epoch_says_how_long_it_took_and_how_much_is_left(tmp_path):
    screen, seconds = io.StringIO(), itertools.chain([100.0, 104.25, 144.5], itertools.repeat(190.0))
    start(tmp_path, RECIPE.override(epochs=4), Report(Console(file=screen, width=150), lambda: next(seconds)))
    lines = [line for line in screen.getvalue().splitlines() if line.startswith("epoch ")]
    # 4.25 s for each of 3 epochs; then 44.5 s for 2, and as much left.
    assert [line.rpartition("  ")[2] for line in lines] == [
        "4.2 s, 12.8 s left",
        "40.2 s, 44.5 s left",
        "45.5 s, 30.0 s left",
        "0.0 s",
    ]
    assert "seconds" not in (tmp_path / NAME / "log.csv").read_text()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (80, "1 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7530, "2 h 6 min"),
    ],
)
def test_durations_are_told_in_two_units(seconds, words):
    assert duration(seconds) == words
