"""`make accuracy`: what it says on the way, what its table holds, and that its numbers are the seeds' alone."""

import importlib
import re
import sys

import pytest
from rich.console import Console
from source_tree import ROOT

if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are part of the source checkout", allow_module_level=True)


@pytest.fixture
def accuracy(monkeypatch):
    """The module, with rows that take no time."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("accuracy")
    rows = (
        module.Row("dense", "dense-digits", 50.0, 50.0, {"epochs": 1}),
        module.Row("masked", "edge-popup-digits", 0.0, 1.0, {"epochs": 1, "widths": (9,)}),
    )
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "TICKETS", module.TICKETS.override(epochs=1, widths=(9,)))
    yield module
    del sys.modules["accuracy"]


def test_every_result_is_shown_as_it_comes_and_a_mean_that_is_off_ends_in_1(accuracy, capsys):
    assert accuracy.main(["--seeds", "2", "--processes", "2"]) == 1
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "6 runs, 2 at once, each on 1 thread"
    runs = [re.fullmatch(r" *(\d) of 6, \d+:\d\d  seed ([01]): (\w+)[ ,](.* )?\d+\.\d %", line) for line in lines[:6]]
    assert [run.group(1) for run in runs] == list("123456")
    assert sorted(run.group(3, 2) for run in runs) == [(n, s) for n in ("dense", "masked", "tickets") for s in "01"]
    (dense,) = [line for line in lines[6:] if line.startswith("│ dense ")]
    (masked,) = [line for line in lines[6:] if line.startswith("│ masked ")]
    assert "ok" in dense
    assert "outside" in masked


def test_a_number_depends_on_the_seed_and_not_on_how_many_processes_there_are(accuracy):
    one, two = (sorted(accuracy.measured(2, processes)) for processes in (1, 2))
    assert one == two
    by_seed = {(name, seed): value for name, seed, value in one}
    assert by_seed["dense", 0] != by_seed["dense", 1]


@pytest.mark.parametrize(
    ("dense", "high", "good"), [(75.0, 60.0, True), (100.5, 60.0, False), (75.0, 85.1, False), (75.0, 85.0, True)]
)
def test_a_mean_is_compared_with_its_target_and_the_tickets_with_each_other(accuracy, dense, high, good):
    found = {"dense": {0: dense, 1: dense}, "masked": {0: 0.5, 1: 1.5}}
    found |= {accuracy.LOW: {0: 90.0, 1: 90.0}, accuracy.HIGH: {0: high - 3, 1: high + 3}}
    table, judged = accuracy.judged(found, 2)
    assert judged == good
    console = Console(width=200)
    with console.capture() as shown:
        console.print(table)
    header, *rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in shown.get().splitlines()[1:]]
    assert header == ["method", "mean, %", "std of 2 seeds", "target, %", "allowed difference", ""]
    by_name = {row[0]: row[1:] for row in rows if row}
    assert by_name["masked"] == ["1.0", "0.7", "0.0", "1.0", "ok"]
    assert by_name[accuracy.HIGH][1:4] == ["4.2", "5.0 below low", "or more"]


@pytest.mark.parametrize("option", ["--seeds", "--processes"])
def test_a_count_that_is_none_is_refused(accuracy, capsys, option):
    with pytest.raises(SystemExit) as exit_:
        accuracy.main([option, "0"])
    assert exit_.value.code == 2
    assert f"argument {option}: expected a whole number above 0, got '0'" in capsys.readouterr().err
