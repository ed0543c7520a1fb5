"""A comparison in its run folder: what it shows and leaves, and that one killed anywhere ends as one left in peace."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comparison_runs import RECIPES, assert_same_comparison, finished, recipe, start
from recipe_runs import quiet, resume, rows
from rich.console import Console
from typer.testing import CliRunner

from edgepop_kernels.recipes import cli, comparison, data, files, job, registry
from edgepop_kernels.recipes.errors import ConfigError, Interrupted, UserError
from edgepop_kernels.recipes.report import Report
from edgepop_kernels.recipes.session import Outcome, Session

CPU = torch.device("cpu")
TICKETS = "bayesian-tickets-digits"
LOTTERY = "lottery-tickets-digits"
TRAININGS = {TICKETS: 3, "supermask-init-digits": 3, LOTTERY: 9, "supsup-digits": 3}
STEPS = 3  # of an epoch


@pytest.fixture(scope="module", autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run folders of comparisons left in peace, by name."""
    place = tmp_path_factory.mktemp("straight")
    for name in RECIPES:
        start(place / name, name)
    return {name: place / name / name for name in RECIPES}


class Killed(BaseException):
    """As SIGKILL leaves it: nothing is caught, nothing more is written."""


def killed_at_step(patch, number):
    """Killed after ``number`` more steps, of which none is saved that the clock had not saved."""
    step, left = comparison.Saved.step, [number]

    def count(session, *place):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        step(session, *place)

    patch.setattr(comparison.Saved, "step", count)


def killed_at_write(patch, number, after):
    """Killed at the ``number``-th file that is replaced, before or after that."""
    replace, left = os.replace, [number]

    def count(*paths):
        left[0] -= 1
        if left[0] == 0 and not after:
            raise Killed
        replace(*paths)
        if left[0] == 0:
            raise Killed

    patch.setattr(files.os, "replace", count)


def signalled_at_step(patch, number, name=signal.SIGTERM):
    step, left = comparison.Saved.step, [number]

    def count(session, *place):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), name)
        step(session, *place)

    patch.setattr(comparison.Saved, "step", count)


def test_it_trains_as_often_as_it_says(straight):
    for name, run in straight.items():
        assert recipe(name).trainings() == TRAININGS[name] == len(rows(run / "trainings.csv"))
    assert registry.find(LOTTERY).recipe.trainings() == 1 + 9 * 24
    several = registry.find(LOTTERY).recipe.override(criteria="snip,grad,snip", kept="rewind,signed_constant", rounds=5)
    assert several.trainings() == 1 + 2 * 2 * 5


@pytest.mark.parametrize("name", RECIPES)
def test_in_a_run_folder_it_finds_what_it_finds_in_memory(straight, name):
    result = recipe(name).run(data.load("digits", None), CPU)
    header, *lines = csv.reader((straight[name] / f"{result.charts[0].name}.csv").read_text().splitlines())
    assert header[1:] == list(result.charts[0].lines)
    assert [[float(cell) for cell in line[1:]] for line in lines] == [
        list(row) for row in zip(*result.charts[0].lines.values(), strict=True)
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_killed_at_any_step_it_resumes_to_the_same_files(straight, tmp_path, name):
    """First without a save inside a training, then with one after every step."""
    steps = recipe(name).epochs * STEPS  # of a training
    for seconds, stride in ((1e9, 5), (-1.0, 7)) if name != LOTTERY else ((1e9, 11), (-1.0, 13)):
        for number in range(1, TRAININGS[name] * steps + 1, stride):
            folder = tmp_path / f"{seconds} {number}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(comparison, "SAVE_EVERY", seconds)
                killed_at_step(patch, number)
                with pytest.raises(Killed):
                    start(folder, name)
            assert (folder / name / "current.pt").exists() == (seconds < 0 and number % steps != 1)
            resume(folder / name)
            assert_same_comparison(folder / name, straight[name])


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_write_it_resumes_to_the_same_files(tmp_path, after):
    short = dict(epochs=1, batch_size=1437)
    start(tmp_path, TICKETS, **short)
    number, complete = 3, False  # the first two: an empty state and config.json, without which there is no run
    while not complete:
        folder = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comparison, "SAVE_EVERY", -1.0)
            killed_at_write(patch, number, after)
            try:
                start(folder, TICKETS, **short)
                complete = True
            except Killed:
                number += 1
        resume(folder / TICKETS)
        assert_same_comparison(folder / TICKETS, tmp_path / TICKETS)
    # Of three trainings: a save under way, the state, and two or three tables; at the end tables, summary and results.
    assert number - 3 == 3 * 4 + 2 + 3 + 1 + 3


def test_killed_by_the_system_at_any_moment_it_resumes_to_the_same_files():
    """Three of what ``python tests/kill_runs.py 20 SEED comparison`` does; in a process of its own, for it forks."""
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    command = [sys.executable, str(tests / "kill_runs.py"), "3", "1", "comparison"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": the same") == 3


def test_killed_again_and_again_it_resumes_to_the_same_files(straight, tmp_path):
    run, moments = tmp_path / LOTTERY, 0
    while not (run / "summary.json").exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comparison, "SAVE_EVERY", -1.0)
            killed_at_step(patch, 5)
            try:
                resume(run) if moments else start(tmp_path, LOTTERY)
            except Killed:
                moments += 1
    assert moments == -(-9 * 2 * STEPS // 4) - 1  # a step that was not saved is done again
    assert_same_comparison(run, straight[LOTTERY])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", RECIPES)
def test_a_signal_ends_it_after_the_step_and_says_how_to_continue(straight, tmp_path, name, number):
    steps = recipe(name).epochs * STEPS  # of a training
    for step in (1, steps - 1, steps, steps + 2):
        run = tmp_path / str(step) / name
        with pytest.MonkeyPatch.context() as patch:
            signalled_at_step(patch, step, number)
            with pytest.raises(Interrupted) as stopped:
                start(run.parent, name)
        whole, within = divmod(step - 1, steps)
        epoch, done = divmod(within, STEPS)
        training = list(finished(straight[name])["finished"])[whole]
        assert str(stopped.value) == (
            f"stopped by {number.name} in training {whole + 1} of {TRAININGS[name]} ({training}) after epoch {epoch}, "
            f"step {done + 1}; everything is saved in {run}: continue with `edgepop train --resume {run}`"
        )
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        resume(run)
        assert_same_comparison(run, straight[name])


def test_interrupted_at_the_command_line_it_ends_with_130_and_keeps_its_tables(tmp_path, monkeypatch):
    command = ["train", TICKETS, "--epochs", "2", "--batch-size", "480", "--widths", "8", "--out", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        signalled_at_step(patch, 2 * STEPS + 1, signal.SIGINT)
        done = CliRunner().invoke(cli.app, [*command, "--backend", "reference", "--threads", "1"])
    run = tmp_path / TICKETS
    assert done.exit_code == 130 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("edgepop: stopped by SIGINT in training 2 of 3 (unmasked) after epoch 0, step 1;")
    (row,) = rows(run / "trainings.csv")
    assert row["training"] == "posterior"
    assert [list(row) for row in rows(run / "curves.csv")] == [["epoch", "posterior"]] * 2
    done = CliRunner().invoke(cli.app, ["train", "--resume", str(run), "--no-plots"])
    assert done.exit_code == 0, done.output
    assert "continuing after 1 of 3 trainings" in done.stdout
    assert not {"current.pt"} & {file.name for file in run.iterdir()}


def test_resuming_a_finished_comparison_repeats_its_end(straight, tmp_path):
    run = straight[LOTTERY]
    before = {file: file.read_bytes() for file in run.iterdir()}
    report = quiet()
    result = resume(run, report=report)
    assert {file: file.read_bytes() for file in run.iterdir()} == before
    assert len(result.charts[0].lines) == 4
    assert "continuing after 9 of 9 trainings" in report.console.file.getvalue()
    assert len(rows(run.parent / "results.csv")) == 5


def test_every_training_is_a_line_with_its_place_and_its_time(tmp_path):
    report = quiet()
    start(tmp_path, TICKETS, report)
    lines = report.console.file.getvalue().splitlines()
    assert "3 trainings of 2 epochs" in lines
    told = [line for line in lines if " left)" in line]
    assert [line.partition(":")[0] for line in told] == [
        "1/3  posterior", "2/3  unmasked", "3/3  keep 0.2 by random",
    ]  # fmt: skip
    accuracies = [f"{float(row['test_accuracy']):.2%}" for row in rows(tmp_path / TICKETS / "trainings.csv")]
    assert all(f"test accuracy {accuracy}" in line for line, accuracy in zip(told, accuracies, strict=True))
    assert "kept 100.00%" in told[1] and "kept 20.10%" in told[2]
    assert told[-1].endswith("about 0:00:00 left)")


def test_the_time_left_is_that_of_as_many_trainings_as_are_left(tmp_path, monkeypatch):
    """Seconds of earlier processes count; those of a training that a killed one lost do not."""
    monkeypatch.setattr(comparison, "SAVE_EVERY", 1e9)
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr(comparison.time, "monotonic", lambda: next(clock))
    state = comparison.begin(tmp_path, recipe(LOTTERY), data.load("digits", None), {"threads": 1, "backend": None})
    session = comparison.Saved(tmp_path, recipe(LOTTERY), CPU, state | {"seconds": 7000.0}, quiet(), None)
    session.finished = {str(number): Outcome([0.5], [0.25]) for number in range(3)}
    monkeypatch.setattr(comparison.time, "monotonic", lambda: session.started + 7200)
    assert session.told("2") == "3/9  2: test accuracy 25.00%  (2:00:00 so far, about 4:00:00 left)"


def test_a_terminal_shows_one_bar_over_all_trainings(tmp_path):
    report = Report(Console(file=io.StringIO(), force_terminal=True, width=150))
    start(tmp_path, LOTTERY, report)
    shown = report.console.file.getvalue()
    for number, name in ((1, "whole network"), (9, "random, random_reinit, round 2")):
        assert f"training {number}/9  {name}  epoch " in shown
    assert "1/9  whole network: kept 100.00%" in shown


def test_results_has_a_row_for_each_variant(straight):
    table = rows(straight[LOTTERY].parent / "results.csv")
    lines = ["snip, rewind", "snip, random_reinit", "random, rewind", "random, random_reinit"]
    assert [row["variant"] for row in table] == ["whole network", *lines]
    trained = {row["training"]: row for row in rows(straight[LOTTERY] / "trainings.csv")}
    for row in table:
        last = trained[row["variant"] if row["variant"] == "whole network" else f"{row['variant']}, round 2"]
        assert [last[name] for name in ("test_accuracy", "kept", "weights")] == [
            row[name] for name in ("test_accuracy", "kept", "weights")
        ]
        assert (row["method"], row["epochs"], row["best_test_epoch"]) == ("lottery-tickets", "2", "")
    summary = json.loads((straight[LOTTERY] / "summary.json").read_text())
    assert [variant["variant"] for variant in summary["variants"]] == [row["variant"] for row in table]
    assert [repr(variant["test_accuracy"]) for variant in summary["variants"]] == [
        row["test_accuracy"] for row in table
    ]
    assert summary["trainings"] == 9
    layers = rows(straight[LOTTERY] / "layers.csv")
    assert [row["variant"] for row in layers] == [row["variant"] for row in table for _ in range(2)]
    for row in table:
        assert sum(int(layer["kept"]) for layer in layers if layer["variant"] == row["variant"]) == int(row["kept"])


def test_the_mask_to_train_on_under_is_picked_by_images_held_out_and_else_it_is_said(straight, tmp_path):
    name, report = "supermask-init-digits", quiet()
    start(tmp_path, name, report, validation=300, fine_tune_lr=1e-6)
    held = tmp_path / name
    assert "(1,137 training images, 300 held out for validation)" in report.console.file.getvalue()
    for run, table, words in ((straight[name], "curves", "test part, on which"), (held, "validation", "held out")):
        masks = [float(row["mask only"]) for row in rows(run / f"{table}.csv")]
        (note,) = json.loads((run / "summary.json").read_text())["notes"]
        epoch = masks.index(max(masks)) + 1
        assert note.startswith(f"best mask: that of epoch {epoch}, by its accuracy of {max(masks):.2%} on the ")
        assert words in note
    # At so small a rate the network is still the best mask's.
    tuned = [float(row["best mask, then weights"]) for row in rows(held / "validation.csv")]
    assert tuned[0] == pytest.approx(max(masks), abs=0.01)
    assert all(accuracy * 300 == pytest.approx(round(accuracy * 300)) for accuracy in [*masks, *tuned])
    for table in (tmp_path / "results.csv", held / "trainings.csv"):
        assert [float(row["validation_accuracy"]) for row in rows(table)][::2] == [masks[-1], tuned[-1]]
    assert json.loads((held / "config.json").read_text())["config"]["validation"] == 300
    assert registry.find("supermask-init-mnist").recipe.resolved(60_000).validation == 5000


def test_weights_are_saved_of_what_later_trainings_need_alone(straight, tmp_path):
    """Of the first training and of the last; of none at the end."""
    run = tmp_path / LOTTERY
    with pytest.MonkeyPatch.context() as patch:
        signalled_at_step(patch, 5 * 2 * STEPS + 1)
        with pytest.raises(Interrupted):
            start(tmp_path, LOTTERY)
    state = finished(run)
    assert len(state["finished"]) == 5
    assert list(state["left"]) == ["whole network", "snip, random_reinit, round 2"]
    assert finished(straight[LOTTERY])["left"] == {}


def test_a_session_gives_what_is_left_until_the_next_is_finished():
    session, seen = Session(), []

    def training(name, **options):
        return session.training(name, lambda: (Outcome([1.0], [1.0]), {"from": torch.tensor(len(seen))}), **options)

    first, second = training("a", lasting=True), training("b")
    training("c")
    assert list(session.finished) == ["a", "b", "c"]
    assert training("a") is first and training("b") == {} != second


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"lr": 0.5}, "lr is 0.0012 in its checkpoint, 0.5 in the command line"),
        ({"criteria": "snip"}, "criteria is 'snip,random' in its checkpoint, 'snip' in the command line"),
    ],
)
def test_another_setting_is_refused_on_resume(straight, asked, words):
    with pytest.raises(ConfigError, match=f"cannot resume .*{words}"):
        resume(straight[LOTTERY], asked)


@pytest.fixture
def stopped(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        signalled_at_step(patch, 2 * STEPS + 2)
        with pytest.raises(Interrupted):
            start(tmp_path, TICKETS)
    return tmp_path / TICKETS


def test_what_is_not_this_run_is_refused_on_resume(stopped, monkeypatch):
    for file in ("finished.pt", "current.pt", "last.pt"):
        with pytest.raises(UserError, match=rf"cannot resume from .*{file}: a comparison is continued from its folder"):
            resume(stopped / file)
    with pytest.raises(UserError, match="leave out --tensorboard"):
        job.resume(stopped, {}, None, job.Outputs(tensorboard=True), quiet())
    with files.locked(stopped, wait=False), pytest.raises(UserError, match="another process is training in"):
        resume(stopped)
    with monkeypatch.context() as patch:
        patch.setattr(data.digits, "TRAIN", 1438)
        with pytest.raises(UserError, match="the digits data are not those this run was started with"):
            resume(stopped)
    config = stopped / "config.json"
    config.write_text(config.read_text().replace('"batch_size": 480', '"batch_size": 481'))
    with pytest.raises(ConfigError, match=r"batch_size is 480 in its checkpoint, 481 in config\.json"):
        resume(stopped)


@pytest.mark.parametrize(("name", "words"), [("finished", "corrupt"), ("current", "begins again")])
def test_a_damaged_file_is_named(stopped, straight, name, words):
    file = stopped / f"{name}.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"the checkpoint {file} is corrupt: .*") as error:
        resume(stopped)
    assert words in str(error.value)
    if name == "current":
        file.unlink()
        resume(stopped)
        assert_same_comparison(stopped, straight[TICKETS])


def test_a_loss_that_is_no_number_is_named_with_its_training(tmp_path):
    name = "supermask-init-digits"
    with pytest.raises(UserError, match=r"^best mask, then weights: the loss is not a finite number in epoch [12]"):
        start(tmp_path, name, fine_tune_lr=1e30, augment=False)
    assert len(rows(tmp_path / name / "trainings.csv")) == 2
