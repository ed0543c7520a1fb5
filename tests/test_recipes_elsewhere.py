"""A run that goes on with other threads, kernels or another device goes on, and says so wherever its numbers stand."""

import io
import json
import os

import comparison_runs
import pytest
import torch
from recipe_runs import NAME, NOTHING, RECIPE, SignalAt, assert_same, rows, start, state
from rich.console import Console

from edgepop_kernels.recipes import checkpoint, comparison, job, machine
from edgepop_kernels.recipes.errors import ConfigError, Interrupted, UserError
from edgepop_kernels.recipes.report import Report

TICKETS = "bayesian-tickets-digits"
SHORT = RECIPE.override(epochs=2)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stopped(tmp_path):
    """The folder of a run that was stopped in its first epoch, on one thread with the reference."""
    with pytest.raises(Interrupted):
        start(tmp_path, SHORT, SignalAt(3))
    return tmp_path / NAME


def resume(run, stop=None, **asked):
    """What is said."""
    report = stop or Report(Console(file=io.StringIO(), width=200))
    if stop is None:
        job.resume(run, asked, None, NOTHING, report)
    else:
        with pytest.raises(Interrupted):
            job.resume(run, asked, None, NOTHING, report)
    return report.console.file.getvalue()


def edited(run, environment=(), **settings):
    """As if the run had been started with these settings, on such a machine."""
    record = json.loads((run / "config.json").read_text())
    record["config"] |= settings
    record["environment"] |= dict(environment)
    (run / "config.json").write_text(json.dumps(record))
    saved = checkpoint.load(run / "last.pt")
    saved["config"] |= settings
    saved["ran_on"] = [saved["ran_on"][0] | settings | dict(environment)]
    checkpoint.save(run, ["last"], saved)


def row(run):
    return rows(run.parent / "results.csv")[-1]


def test_other_threads_and_kernels_are_taken_noted_and_told(stopped):
    said = resume(stopped, threads="2", backend="auto")
    assert "note: threads was 1 and is 2: the run goes on, but not bit for bit" in said
    assert "note: backend was reference and is auto: the run goes on, but not bit for bit" in said
    assert torch.get_num_threads() == 2
    assert (row(stopped)["threads"], row(stopped)["backend"]) == ("1;2", "reference;auto")
    ran_on = json.loads((stopped / "summary.json").read_text())["ran_on"]
    assert [(place["threads"], place["backend"]) for place in ran_on] == [(1, "reference"), (2, "auto")]
    assert ran_on[0]["torch"] == torch.__version__ and ran_on[0]["cores"] == os.cpu_count()
    config = json.loads((stopped / "config.json").read_text())["config"]
    assert (config["threads"], config["backend"]) == (1, "reference")  # as it was started
    assert state(stopped)["config"]["threads"] == 2


def test_a_run_goes_on_where_it_last_was(stopped):
    resume(stopped, SignalAt(3), threads=2)
    said = resume(stopped)
    assert "note: threads was 1 and is 2" in said
    assert row(stopped)["threads"] == "1;2"
    assert len(state(stopped)["ran_on"]) == 2


def test_in_its_own_place_nothing_is_noted(stopped, tmp_path):
    said = resume(stopped, threads=1, backend="reference", device="cpu")
    assert "note" not in said
    assert (row(stopped)["threads"], row(stopped)["backend"]) == ("1", "reference")
    start(tmp_path / "straight", SHORT)
    assert_same(state(stopped), state(tmp_path / "straight" / NAME), "last")


def test_back_at_an_earlier_checkpoint_only_its_own_places_count(stopped):
    resume(stopped, SignalAt(3), threads=2)
    resume(stopped / "first.pt", threads=1)
    assert row(stopped)["threads"] == "1"


def test_a_finished_run_was_nowhere_else(stopped):
    resume(stopped)
    said = resume(stopped, threads=2)
    assert "note: threads was 1 and is 2" in said
    assert [place["threads"] for place in json.loads((stopped / "summary.json").read_text())["ran_on"]] == [1]


@pytest.mark.parametrize(("cores", "threads"), [(64, None), (None, 64)], ids=["a larger machine", "as many too many"])
def test_threads_of_a_larger_machine_are_this_ones_choice(stopped, monkeypatch, cores, threads):
    """Whereas who asked for more threads than there are cores has them again."""
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 3)
    taken = []
    monkeypatch.setattr(machine.torch, "set_num_threads", taken.append)
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: taken[-1] if taken else 3)
    edited(stopped, {"cores": cores or 3}, threads=64)
    said = resume(stopped)
    assert taken == ([] if threads is None else [64])
    assert ("note: threads was 64 and is 3" in said) == (threads is None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_run_from_a_gpu_goes_on_without_one(stopped, monkeypatch):
    monkeypatch.setattr(machine.ek, "backends", lambda: {"triton": "there is no GPU", "reference": None})
    edited(stopped, {"machine": "some GPU"}, device="cuda", backend="triton")
    saved = checkpoint.load(stopped / "last.pt")
    saved["random"]["cuda"] = torch.zeros(16, dtype=torch.uint8)
    checkpoint.save(stopped, ["last"], saved)
    said = resume(stopped)
    for name, was, now in (("device", "cuda", "cpu"), ("backend", "triton", "auto"), ("machine", "some GPU", "")):
        assert f"note: {name} was {was} and is {now}" in said
    assert row(stopped)["backend"] == "triton;auto"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_place_that_is_asked_for_and_not_there_is_refused(stopped):
    before = (stopped / "last.pt").read_bytes()
    with pytest.raises(UserError, match="device cuda was asked for, but PyTorch finds no GPU here"):
        resume(stopped, device="cuda")
    with pytest.raises(ConfigError, match=r"threads: expected a whole number in \[0, 1024\], got 4096"):
        resume(stopped, threads=4096)
    assert (stopped / "last.pt").read_bytes() == before


def test_a_comparison_goes_on_elsewhere_too(tmp_path, monkeypatch):
    """Twice, the first time for some steps of a training."""
    run = tmp_path / TICKETS

    def stop_after(steps):
        """As a signal after so many steps would."""
        left, step = [steps], comparison.Saved.step

        def counted(session, *arguments):
            left[0] -= 1
            if left[0] == 0:
                session.stop.requested = "SIGTERM"
            step(session, *arguments)

        monkeypatch.setattr(comparison.Saved, "step", counted)

    with monkeypatch.context():
        stop_after(2)
        with pytest.raises(Interrupted):
            comparison_runs.start(tmp_path, TICKETS)
    for threads in (2, 3):
        with monkeypatch.context():
            stop_after(1)
            with pytest.raises(Interrupted):
                job.resume(run, {"threads": threads}, None, NOTHING, Report(Console(file=io.StringIO())))
    monkeypatch.undo()
    said = resume(run)
    assert "note: threads was 1 and is 3: the run goes on, but not bit for bit" in said
    assert {found["threads"] for found in rows(tmp_path / "results.csv")} == {"1;2;3"}
    assert [place["threads"] for place in json.loads((run / "summary.json").read_text())["ran_on"]] == [1, 2, 3]
