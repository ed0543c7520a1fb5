"""`make evidence`: what is done is not done again, the page follows from the files of results, and they are whole."""

import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from source_tree import ROOT

if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are part of the source checkout", allow_module_level=True)

MODULES = ("evidence", "evidence_page", "evidence_results", "evidence_rows", "evidence_unfused", "figures", "accuracy")
MATPLOTLIB = re.search(r"^matplotlib==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M)[1]
# `edgepop train` as the driver knows it, in a hundredth of the time: it trains until it is told to stop, and then
# saves; the process that goes on ends at once.
STAND_IN = """
import json, signal, sys, time
from pathlib import Path

arguments = sys.argv[1:]
resumed = "--resume" in arguments
run = Path(arguments[arguments.index("--resume") + 1] if resumed else
           arguments[arguments.index("--out") + 1] + "/" + arguments[arguments.index("--name") + 1])

def save(number, frame):
    (run / "last.pt").touch()
    sys.exit(130)

if resumed:
    print("gone on")
else:
    signal.signal(signal.SIGTERM, save)
    run.mkdir()
    config = {"seed": int(arguments[arguments.index("--seed") + 1]), "epochs": 1}
    about = {"edgepop_kernels": "0.1.0", "torch": "2.13.0", "python": "3.11.7"}
    record = {"recipe": "", "started": "", "data": None, "config": config, "environment": about, "commit": "0" * 40}
    (run / "config.json").write_text(json.dumps(record))
    if "--at-once" not in arguments:
        time.sleep(60)
(run / "log.csv").write_text("train_accuracy,test_accuracy\\n0.5,0.75\\n")
(run / "summary.json").write_text(json.dumps({"layers": [{"name": "fc", "kept": 1, "weights": 2}]}))
"""


@pytest.fixture
def evidence(monkeypatch, tmp_path):
    """The driver's module, with a call of it on the rows of a test, in a folder of its own."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    module = importlib.import_module("evidence")
    module.call = lambda rows, *arguments: module.main(
        ["--processes", "2", *arguments], tuple(rows), tmp_path / "docs", tmp_path / "runs", None
    )
    yield module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def started(evidence, monkeypatch):
    """The names of the trainings that were begun, or gone on with."""
    names, start = [], evidence.Training.start

    def noted(training):
        names.append(training.name)
        return start(training)

    monkeypatch.setattr(evidence.Training, "start", noted)
    return names


def row(evidence, name, recipe="edge-popup-digits", **more):
    settings = more.pop("settings", {"epochs": 1})
    return evidence.Row(name, "Digits, tiny", f"a title of {name}", recipe, "something", settings=settings, **more)


def files(tmp_path):
    return {path.name: path.read_bytes() for path in (tmp_path / "docs").rglob("*") if path.is_file()}


def test_trainings_write_their_results_once_and_the_page_follows_from_these_alone(evidence, started, tmp_path, capsys):
    compared = row(
        evidence,
        "tickets",
        "bayesian-tickets-digits",
        settings={"epochs": 1, "widths": (9,)},
        seeds=1,
        training="unmasked",
        goal=importlib.import_module("evidence_rows").Goal(least=99.0),
    )
    rows = [row(evidence, "masked", seeds=1, settings={"epochs": 2, "keep": 0.3, "widths": (9,)}), compared]
    assert evidence.call(rows) == 0
    assert sorted(started) == ["masked-0", "tickets-0"]
    record = json.loads((tmp_path / "docs" / "evidence" / "masked.json").read_text())
    (run,) = record["runs"]
    assert (run["seed"], run["config"]["keep"], run["config"]["threads"]) == (0, 0.3, 1)
    assert len(run["trainings"]["network"]["test"]) == 2
    assert run["layers"][0] == ["fc1", 173, 576]
    assert run["processor_s"] > 0 and run["processor"] and run["environment"]["torch"]
    (run,) = json.loads((tmp_path / "docs" / "evidence" / "tickets.json").read_text())["runs"]
    assert run["trainings"].keys() == {"posterior", "unmasked", "keep 0.2 by low_variance"}
    page = (tmp_path / "docs" / "evidence.md").read_text()
    accuracy = f"{100 * run['trainings']['unmasked']['test'][-1]:.2f}"
    assert f"| a title of tickets | something | {accuracy} | 1 | 1 | **not met**: at least 99.0 % |" in page
    assert "| no published number |" in page
    assert "`edgepop train edge-popup-digits --epochs 2 --keep 0.3 --widths 9`" in page
    assert "![Digits, tiny: test accuracy after each epoch](evidence/digits-tiny.svg)" in page

    before = files(tmp_path)
    capsys.readouterr()
    for file in ("evidence.md", "evidence/digits-tiny.svg"):
        (tmp_path / "docs" / file).unlink()
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert evidence.call(rows) == 0
    assert len(started) == 2
    assert files(tmp_path) == before
    assert "0 trainings left" in capsys.readouterr().out


def test_two_rows_of_one_training_a_graph_and_the_authors_rule(evidence, started, tmp_path):
    lottery = {"epochs": 1, "rounds": 2, "criteria": "large_final,random", "widths": (9,)}
    rounds = dict(recipe="lottery-tickets-digits", settings=lottery, seeds=1)
    graph = {"epochs": 1, "nodes": 60, "edges": 400}
    popup = {"epochs": 2, "widths": (30,)}
    rows = [
        row(evidence, "masks", best="before", **rounds),
        row(evidence, "tickets", best="after", of="masks", **rounds),
        row(evidence, "graph", "neural-graph-static-digits", settings=graph, seeds=1),
        row(evidence, "ours", settings=popup, seeds=1),
        row(evidence, "authors", settings=popup, seeds=1, program="evidence_unfused.py"),
    ]
    assert evidence.call(rows) == 0
    assert sorted(started) == ["authors-0", "graph-0", "masks-0", "ours-0"]
    read = lambda name: json.loads((tmp_path / "docs" / "evidence" / f"{name}.json").read_text())["runs"][0]  # noqa: E731

    trainings = read("masks")["trainings"]
    best = [
        max(line) for line in zip(*((t["before"], t["test"][-1]) for t in list(trainings.values())[1:]), strict=True)
    ]
    page = (tmp_path / "docs" / "evidence.md").read_text()
    for title, accuracy in zip(("masks", "tickets"), best, strict=True):
        assert f"| a title of {title} | something | {100 * accuracy:.2f} | 1 | 1 | no published number |" in page
    assert trainings["random, round 2"]["kept"][0] < trainings["random, round 1"]["kept"][0] < 9 * 74
    told = rf"whole network reaches {100 * trainings['whole network']['test'][-1]:.2f} %, its masks\n\n"
    assert re.search(
        told + r"\| criterion .*\n.*\n\| large_final \| [\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \|\n\| random", page
    )
    assert page.count("`edgepop train lottery-tickets-digits") == 1

    wiring = read("graph")["wiring"]
    assert (wiring["nodes"], wiring["edges"]) == (60, 400) and 0 < wiring["stayed"] < 400
    for cells in (wiring["before"], wiring["after"]):
        assert len(cells) == len(cells[0]) == 25 and sum(map(sum, cells)) == 400
    assert wiring["before"] != wiring["after"]
    # An edge leads to a later block; the first two cells are the inputs, and receive nothing.
    assert not any(
        sender > receiver and row[sender] for receiver, row in enumerate(wiring["after"]) for sender in range(25)
    )

    ours, authors = (read(name) for name in ("ours", "authors"))
    assert authors["config"] == ours["config"] | {"method": "edge-popup-unfused"}
    assert authors["trainings"]["network"]["test"] == pytest.approx(ours["trainings"]["network"]["test"], abs=0.01)
    assert [kept for _, kept, _ in authors["layers"]] == [kept for _, kept, _ in ours["layers"]]
    assert "`python benchmarks/evidence_unfused.py train edge-popup-digits --epochs 2 --widths 30`" in page


def test_the_authors_rule_is_computed_without_a_kernel_of_ours(evidence, monkeypatch):
    unfused = importlib.import_module("evidence_unfused")
    monkeypatch.setattr("edgepop_kernels.recipes.edge_popup.ek.FusedSubnetLinear.forward", None)
    torch.manual_seed(0)
    network = unfused.Unfused(widths=(9,)).network((1, 8, 8), 10)
    network(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None for name, p in network.named_parameters() if name.endswith("scores"))


def test_a_sentence_beside_the_data_is_said_of_what_was_found_with_them(evidence, monkeypatch, tmp_path):
    monkeypatch.setattr(evidence.Row, "command", lambda row: ["train", "--at-once"])
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "note.txt").write_text("Of another hand.\n")
    stand_in(evidence, monkeypatch, tmp_path)
    rows = [row(evidence, "a", "dense-mnist", seeds=2), row(evidence, "b", seeds=1)]
    assert evidence.call(rows, "--data", str(tmp_path)) == 0
    records = {name: json.loads((tmp_path / "docs" / "evidence" / f"{name}.json").read_text())["runs"] for name in "ab"}
    assert [run.get("data_note") for runs in records.values() for run in runs] == ["Of another hand."] * 2 + [None]
    assert (tmp_path / "docs" / "evidence.md").read_text().count("\nOf another hand.\n") == 1


def stand_in(evidence, monkeypatch, tmp_path):
    """In the place of Python and the package."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable} -S\n{STAND_IN}")
    program.chmod(0o755)
    monkeypatch.setattr(evidence.sys, "executable", str(program))


def test_a_call_whose_time_is_over_saves_what_runs_and_the_next_goes_on(
    evidence, started, monkeypatch, tmp_path, capsys
):
    rows = [row(evidence, "first", seeds=3), row(evidence, "other", seeds=1)]
    stand_in(evidence, monkeypatch, tmp_path)
    begun = lambda: all((tmp_path / "runs" / name / "config.json").exists() for name in ("first-0", "first-1"))  # noqa: E731
    clock = SimpleNamespace(monotonic=lambda: 1.0 if begun() else 0.0, sleep=time.sleep)
    monkeypatch.setattr(evidence, "time", clock)
    assert evidence.call(rows, "--budget-s", "0.5") == 0
    assert started == ["first-0", "first-1"]
    assert not list((tmp_path / "docs").rglob("*.json"))
    assert "4 trainings left" in capsys.readouterr().out
    assert "| not yet run |" in (tmp_path / "docs" / "evidence.md").read_text()

    monkeypatch.setattr(evidence.Row, "command", lambda row: ["train", "--at-once"])
    assert evidence.call(rows) == 0
    assert sorted(started[2:]) == ["first-0", "first-1", "first-2", "other-0"]
    assert "0 trainings left" in capsys.readouterr().out
    logs = [(tmp_path / "runs" / f"first-{seed}.log").read_text() for seed in range(3)]
    assert [log.count("gone on") for log in logs] == [1, 1, 0]


def test_rows_are_chosen_by_name_and_a_signal_ends_the_driver(evidence, started, monkeypatch, tmp_path, capsys):
    rows = [row(evidence, "first", seeds=1), row(evidence, "other", seeds=2)]
    stand_in(evidence, monkeypatch, tmp_path)
    run = tmp_path / "runs" / "other-0"

    def signal_when_begun():
        while not (run / "config.json").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), 15)

    thread = threading.Thread(target=signal_when_begun)
    thread.start()
    assert evidence.call(rows, "--only", "^other$", "--processes", "1") == 130
    thread.join()
    assert started == ["other-0"]
    assert (run / "last.pt").exists()

    assert evidence.call(rows, "--only", "^other$", "--budget-s", "0") == 0
    assert started == ["other-0"]
    (run / "last.pt").unlink()  # as where a process was killed before it saved anything: begun anew
    (run / "of before").touch()
    monkeypatch.setattr(evidence.Row, "command", lambda row: ["train", "--at-once"])
    assert evidence.call(rows, "--only", "^other$", "--processes", "1") == 0
    assert started == ["other-0", "other-0", "other-1"]
    assert not (run / "of before").exists()
    record = json.loads((tmp_path / "docs" / "evidence" / "other.json").read_text())
    assert [found["seed"] for found in record["runs"]] == [0, 1]
    assert not (tmp_path / "docs" / "evidence" / "first.json").exists()


def test_a_training_that_fails_is_said_and_stops_no_other(evidence, monkeypatch, tmp_path, capsys):
    rows = [row(evidence, "bad", seeds=1), row(evidence, "good", seeds=1)]
    stand_in(evidence, monkeypatch, tmp_path)
    commands = {"bad": ["train", "--seed"], "good": ["train", "--at-once"]}
    monkeypatch.setattr(evidence.Row, "command", lambda row: commands[row.name])
    assert evidence.call(rows) == 1
    said = capsys.readouterr().out
    assert re.search(r"^bad-0: failed, exit code 1, see .*bad-0\.log$", said, re.M)
    assert "good-0: 75.00 %" in said
    assert "1 trainings left" in said


@pytest.mark.parametrize(
    ("changed", "said"), [("docs/evidence/a.json", "abc"), ("README.md", "abc"), ("setup.py", "abc-dirty")]
)
def test_results_of_other_trainings_make_no_commit_another_one(evidence, monkeypatch, tmp_path, changed, said):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / changed).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / changed).write_text("before")
    git("add", ".")
    git("commit", "-m", "a")
    (tmp_path / changed).write_text("after")
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    monkeypatch.setattr(evidence.machine, "commit", lambda: "abc-dirty")
    assert evidence.commit() == said


def test_rows_whose_data_are_not_there_are_left_out(evidence, started, tmp_path, capsys):
    assert evidence.call([row(evidence, "a", "dense-mnist", seeds=1)], "--data", str(tmp_path)) == 0
    assert f"a-0: left out, {tmp_path / 'mnist'} is no folder" in capsys.readouterr().out
    assert started == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-9], r"a\.json is damaged \(.*\): restore it, or remove it"),
        (lambda text: text.replace('"seed"', '"seat"'), r"a\.json is damaged \(it lacks seed\): restore it"),
        (lambda text: text.replace("0.75", ""), r"a\.json is damaged \(it lacks accuracies of network\)"),
        (lambda text: "[]", r"a\.json is damaged"),
        (lambda text: text.replace('"epochs": 1', '"epochs": 2', 1), r"expected settings {'epochs': 1}, .* got {'epo"),
    ],
)
def test_a_damaged_file_is_said_before_anything_runs(evidence, started, tmp_path, capsys, change, said):
    rows = [row(evidence, "a", seeds=2)]
    trainings = {"network": {"train": [0.5], "test": [0.75]}}
    of_a_run = importlib.import_module("evidence_results").OF_A_RUN
    run = dict.fromkeys(of_a_run) | {"seed": 0, "trainings": trainings, "config": {"epochs": 7}}
    record = {"row": "a", "recipe": rows[0].recipe, "settings": {"epochs": 1}, "runs": [run]}
    file = tmp_path / "docs" / "evidence" / "a.json"
    file.parent.mkdir(parents=True)
    file.write_text(change(json.dumps(record)))
    assert evidence.call(rows) == 2
    assert re.search(said, capsys.readouterr().err)
    assert started == []


@pytest.mark.parametrize(
    ("goal", "means", "said"),
    [
        (dict(least=97.0), {"a": 97.0}, "**met**: at least 97.0 %"),
        (dict(least=97.0), {"a": 96.9}, "**not met**: at least 97.0 %"),
        (dict(least=97.0), {}, "not yet run"),
        (dict(above="b"), {"a": 96.9}, "above: B: not yet run"),
        (dict(above="b"), {"a": 96.9, "b": 96.8}, "**met**: above: B"),
        (dict(above="b"), {"a": 96.9, "b": 96.9}, "**not met**: above: B"),
    ],
)
def test_a_verdict_is_by_the_mean(evidence, goal, means, said):
    rows = importlib.import_module("evidence_rows")
    asked = row(evidence, "a", goal=rows.Goal(**goal))
    assert evidence.evidence_page.verdict(asked, means, {"a": "A", "b": "B"}) == said


def test_the_list_of_rows_is_sound(evidence):
    rows = evidence.ROWS
    names = [found.name for found in rows]
    assert len(set(names)) == len(names)
    for found in rows:
        assert found.asked().compares == found.compares
        assert found.goal is None or found.goal.above in (None, *names)
        assert not found.program or (ROOT / "benchmarks" / found.program).is_file()
        if found.of:
            (trained,) = [other for other in rows if other.name == found.of]
            assert (trained.recipe, trained.settings, trained.of) == (found.recipe, found.settings, "")


def test_the_page_is_what_the_committed_results_say(evidence):
    rows, folder = evidence.ROWS, ROOT / "docs" / "evidence"
    found = {one.name: evidence.results.read(one, folder) for one in rows}
    assert {path.stem for path in folder.glob("*.json")} == {
        record["row"] for record in found.values() if record["runs"]
    }
    page, drawn = evidence.evidence_page.page(rows, found)
    assert (ROOT / "docs" / "evidence.md").read_text() == page
    readme = (ROOT / "README.md").read_text()
    assert evidence.evidence_page.in_readme(readme, rows, found, drawn) == readme
    assert {path.name for path in folder.glob("*.svg")} == drawn.keys()
    if version("matplotlib") == MATPLOTLIB:
        assert {name: (folder / name).read_bytes() for name in drawn} == drawn


def test_readme_has_the_evidence_in_twelve_lines(evidence):
    """One row by hand, so that the script is not held by itself alone."""
    text = evidence.evidence_page.IN_README.search((ROOT / "README.md").read_text())[0]
    assert text.count("\n") <= 13  # with its markers
    (line,) = re.findall(r"^\| edge-popup, keep 0\.5 \| .*$", text, re.M)
    runs = json.loads((ROOT / "docs" / "evidence" / "mnist-edge-popup-50.json").read_text())["runs"]
    mean = statistics.mean(run["trainings"]["network"]["test"][-1] for run in runs)
    assert f" {100 * mean:.2f} " in line and ("not met" in line) == (mean < 0.97)


@pytest.mark.parametrize(("last", "said"), [(0.98, "98.00 | 98.0, met |"), (0.97, "97.00 | 98.0, **not met** |")])
def test_readme_says_what_is_not_met(evidence, last, said):
    rows = [one for one in evidence.ROWS if one.name in ("mnist-dense", "mnist-wirings-10")]
    run = {"trainings": {"network": {"test": [last]}}}
    found = {"mnist-dense": {"runs": [run]}, "mnist-wirings-10": {"runs": []}}
    readme = "before\n<!-- evidence -->\nof before\n<!-- end -->\nafter\n"
    text = evidence.evidence_page.in_readme(readme, rows, found, {"over-keep.svg": b""})
    assert f"| dense | {said}\n<!-- end -->\nafter\n" in text and text.startswith("before\n<!-- evidence -->\n![")
    assert "of before" not in text and "docs/evidence/over-keep.svg" in text


def test_committed_results_hold_nothing_of_the_machine_but_its_processor(evidence):
    def texts(value):
        if isinstance(value, dict):
            yield from (text for part in value.items() for text in texts(part))
        elif isinstance(value, list | tuple):
            yield from (text for part in value for text in texts(part))
        elif isinstance(value, str):
            yield value

    for path in (ROOT / "docs" / "evidence").glob("*.json"):
        for text in texts(json.loads(path.read_text())):
            assert "/" not in text, path.name
