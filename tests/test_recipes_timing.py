"""Step times: measured after everything else is written, in bounded time, against what the authors do."""

import io
import json
import os
import statistics

import pytest
import torch
from recipe_runs import NAME, RECIPE, rows, start
from rich.console import Console

import edgepop_kernels as ek
from edgepop_kernels.recipes import data, job, registry, timing, trainer
from edgepop_kernels.recipes.report import Report
from edgepop_kernels.recipes.timing import StepTimes
from edgepop_kernels.recipes.unfused import authors_name, unfused

MEASURED = job.Outputs(plots=False)
SHORT = RECIPE.override(epochs=1)


@pytest.fixture(scope="module", autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(folder, recipe=SHORT, name=NAME):
    """What a run with a measurement says."""
    report = Report(Console(file=io.StringIO(), width=200))
    summary = job.start(name, recipe, None, folder, MEASURED, report)
    return summary, report.console.file.getvalue()


class Clock:
    """A time that only goes on by what a step takes, and by a fixed time for the copies."""

    def __init__(self, monkeypatch, step_seconds, copies=0.0):
        self.now, self.steps = 0.0, []
        take, make = timing.train_step, timing.make_network
        seconds = iter(step_seconds)

        def step(*arguments):
            spent = next(seconds)
            self.now += spent
            self.steps.append(spent)
            return torch.zeros(2)

        def network(*arguments):
            self.now += copies
            return make(*arguments)

        monkeypatch.setattr(timing, "train_step", step)
        monkeypatch.setattr(timing, "make_network", network)
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        assert take is trainer.train_step


def repeated(*seconds):
    while True:
        yield from seconds


@pytest.fixture
def trained():
    return trainer.Trainer(RECIPE, data.load("digits", None), torch.device("cpu"))


def test_results_are_written_before_a_measurement_that_ctrl_c_then_skips(tmp_path, monkeypatch):
    run, seen = tmp_path / NAME, []

    def interrupted(trained):
        seen.append({file.name for file in run.iterdir()} | {"results.csv"} & set(os.listdir(tmp_path)))
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "measure", interrupted)
    summary, said = train(tmp_path)
    assert summary.accuracy > 0.5
    assert {"summary.json", "results.csv", "log.csv", "last.pt", "best-test.pt"} <= seen[0]
    lines = said.splitlines()
    assert lines[-2:] == [
        "measuring step times for up to 10 s (Ctrl-C or --no-step-times skips it)",
        "measurement of step times skipped; the run is complete without it",
    ]
    assert not (run / "step_times.json").exists()


def test_a_run_is_compared_with_getsubnet_and_the_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "MOST_ROUNDS", 5)
    _, said = train(tmp_path, SHORT.override(backend="auto"))
    times = json.loads((tmp_path / NAME / "step_times.json").read_text())
    assert (times["own"], times["rounds"]) == ("auto", 5)
    assert list(times["seconds_quartiles"]) == ["auto", "reference", "GetSubnet"]
    assert list(times["times_own_quartiles"]) == ["reference", "GetSubnet"]
    for low, median, high in times["seconds_quartiles"].values():
        assert 0 < low <= median <= high < 10
    for name in ("fused (auto)", "reference", "GetSubnet"):
        assert f"step time, {name}: " in said
    assert said.count("times the run's own") == 2
    assert ("busy machine" in said) == times["busy_machine"]
    assert not [name for name in rows(tmp_path / "results.csv")[0] if "step" in name]
    assert "step" not in (tmp_path / NAME / "summary.json").read_text()


def test_without_step_times_nothing_is_measured_or_said(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "measure", lambda trained: 1 / 0)
    start(tmp_path, SHORT)
    assert not (tmp_path / NAME / "step_times.json").exists()


def test_a_dense_network_has_one_path(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "MOST_ROUNDS", 2)
    recipe = registry.find("dense-digits").recipe.override(epochs=1, widths=(16,), threads=1)
    _, said = train(tmp_path, recipe, "dense-digits")
    assert list(json.loads((tmp_path / "dense-digits" / "step_times.json").read_text())["seconds_quartiles"]) == [
        "dense"
    ]
    assert "step time, dense: " in said and "fused" not in said and "times the run's own" not in said


@pytest.mark.parametrize("slow", [0.004, 0.3, 1.1, 3.4, 4.9])
def test_a_measurement_never_begins_what_would_end_after_its_time(trained, monkeypatch, slow):
    """Own steps of a tenth, and the reference so slow: warm-up and copies are part of the ten seconds."""
    clock = Clock(monkeypatch, repeated(slow / 10, slow), copies=0.05)
    monkeypatch.setattr(timing, "authors_name", lambda model: None)
    trained.recipe = trained.recipe.override(backend="auto")
    times = timing.measure(trained)
    assert clock.now <= timing.SECONDS
    assert times is None or times.rounds == min(timing.MOST_ROUNDS, len(clock.steps) // 2 - _warm(slow))
    assert (times is None) == (slow > 4.5)
    if slow < 0.01:
        assert times.rounds == timing.MOST_ROUNDS


def _warm(slow):
    """Rounds of 1.1 slow seconds that begin within a quarter of the time, three at most."""
    return next((n for n in (1, 2) if n * 1.1 * slow + 0.1 >= timing.SECONDS / 4), 3)


def test_a_step_longer_than_the_whole_time_is_the_only_one(trained, monkeypatch):
    clock = Clock(monkeypatch, repeated(60.0))
    assert timing.measure(trained) is None
    assert clock.steps == [60.0]


def test_a_run_without_time_for_two_rounds_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "measure", lambda trained: None)
    _, said = train(tmp_path)
    assert "no step times: two rounds of steps take longer than 10 s" in said


def test_the_spread_is_told_and_a_busy_machine_called_busy():
    still = StepTimes({"auto": [1.0, 1.01, 1.02, 1.0], "GetSubnet": [3.0, 3.1, 3.05, 3.0]})
    assert not still.busy
    low, median, high = still.ratios()["GetSubnet"]
    assert median == statistics.median([3.0, 3.1 / 1.01, 3.05 / 1.02, 3.0])
    assert low <= median <= high
    said = Report(Console(file=io.StringIO(), width=200))
    said.step_times(StepTimes({"auto": [0.010, 0.013, 0.011, 0.012], "reference": [0.03] * 4}))
    lines = said.console.file.getvalue().splitlines()
    assert lines[0] == "step time, fused (auto): 11.500 ms, half of 4 steps in 10.75 to 12.25"
    assert lines[1].startswith("step time, reference: 30.000 ms, half of 4 steps in 30 to 30; 2.61 times the run's own")
    assert len(lines) == 2
    busy = StepTimes({"auto": [1.0, 2.0, 1.0, 2.0]})
    assert busy.busy
    said.step_times(busy)
    assert "busy machine: " in said.console.file.getvalue().splitlines()[-1]
    assert StepTimes({"dense": [0.5]}).quartiles() == {"dense": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("recipe", "name"), [("edge-popup-digits", "GetSubnet"), ("wirings-digits", "ChooseEdges")], ids=str
)
@pytest.mark.parametrize("model", ["mlp", "small-conv"])
def test_the_authors_way_computes_the_same_network_and_the_same_gradients(recipe, name, model, channels_last):
    settings = dict(model=model, widths=(17,), width_multiplier=0.3, keep=0.3, channels_last=channels_last)
    settings = registry.find(recipe).recipe.override(**settings)
    torch.manual_seed(0)
    fused = trainer.make_network(settings, data.load("digits", None), torch.device("cpu"))
    torch.manual_seed(0)
    sorting = trainer.make_network(settings, data.load("digits", None), torch.device("cpu"))
    assert authors_name(fused) == name
    unfused(sorting)
    assert not any(hasattr(layer, "_cuts") and layer._group for layer in sorting.modules())
    images = torch.randn(5, 1, 8, 8)
    with ek.use_backend("reference"):
        ours, theirs = fused(images), sorting(images)
        ours.square().sum().backward()
        theirs.square().sum().backward()
    torch.testing.assert_close(theirs, ours)
    expected = [p.grad for p in fused.parameters() if p.requires_grad]
    found = [p.grad for p in sorting.parameters() if p.requires_grad]
    assert len(found) == len(expected) >= 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("recipe", ["dense-digits", "supermask-digits", "neural-graph-static-digits"])
def test_networks_that_neither_function_masks_have_no_authors_way(recipe):
    assert authors_name(registry.find(recipe).recipe.network((1, 8, 8), 10)) is None
