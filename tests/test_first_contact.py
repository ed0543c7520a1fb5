"""`make gpu` with a CPU in the device's place: stages that fail, hang, die, are cut short; and the real ones, tiny."""

import importlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from source_tree import Tree

import edgepop_kernels as ek
from edgepop_kernels import tune
from edgepop_kernels.tuning import search

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
# A stage of four items. What becomes of each stands in a file beside it, and so does which were begun.
FAKE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from journal import Skipped, Worker

worker = Worker(sys.argv[1], json.loads(sys.argv[2]))
here, wanted = Path(__file__).parent, json.loads(Path(__file__).with_name("wanted").read_text()).get(sys.argv[1], {})

def call(item):
    with open(here / "tried", "a") as tried:
        tried.write(f"{sys.argv[1]}-{item} ")
    exec(wanted.get(item, ""))
    return f"{item} is well", None

exec(wanted.get("before", ""))
worker.run({item: lambda item=item: call(item) for item in "abcd"})
"""
DRIVER = """
import json, os, sys, time
import first_contact
stages, job, budget = map(json.loads, sys.argv[1:])
table = [first_contact.Stage(**{**stage, "sources": tuple(stage["sources"])}) for stage in stages]
sys.exit(first_contact.drive(table, [s.name for s in table], job, dict(os.environ), budget, time.monotonic()))
"""
WITH_BENCHMARKS = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(ROOT)])}


class Contact:
    """first_contact's driver on fake stages, in a process of its own."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "fake.py").write_text(FAKE)

    def start(self, wanted, budget, *names, **stage):
        (self.folder / "wanted").write_text(json.dumps(wanted))
        (self.folder / "tried").write_text("")
        stages = [{"share": 0.4, "limit": 60, "sources": [], **stage, "name": name} for name in names]
        stages = [{"script": str(self.folder / "fake.py"), **s} for s in stages]
        job = {"folder": str(self.folder), "about": {}, "only": ""}
        arguments = map(json.dumps, (stages, job, budget))
        # Where the tests run in a shell's background SIGINT is ignored, by all that they start too.
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        command = [sys.executable, "-c", DRIVER, *arguments]
        return subprocess.Popen(command, env=WITH_BENCHMARKS, stdout=subprocess.PIPE, text=True, preexec_fn=heard)

    def run(self, wanted, *names, budget=50, **stage):
        """(exit status, what it printed, what was begun)"""
        process = self.start(wanted, budget, *names, **stage)
        said = process.communicate(timeout=60)[0]
        return process.returncode, said, self.tried()

    def tried(self):
        return (self.folder / "tried").read_text().split()

    def wait_for(self, item):
        end = time.monotonic() + 30
        while item not in self.tried():
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def contact(tmp_path):
    return Contact(tmp_path)


def gone(pid):
    """Whether the process ends within seconds."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_failure_stops_nothing_and_is_what_a_second_call_does(contact):
    ill = {"first": {"b": "raise ValueError('b is ill')", "c": "raise Skipped('no c here')"}}
    status, said, tried = contact.run(ill, "first", "second")
    assert status == 1
    assert "[first] b: failed, 0.0 s; ValueError: b is ill\n" in said
    assert "[first] c: skipped, 0.0 s; no c here\n" in said
    assert "\nfirst    failed; 0 s; 2 passed, 1 failed, 1 skipped\nsecond   done; 0 s; 4 passed," in said
    assert tried == [f"{stage}-{item}" for stage in ("first", "second") for item in "abcd"]
    status, said, tried = contact.run({}, "first", "second")
    assert (status, tried) == (0, ["first-b"])
    assert "\nfirst    done; 0 s; 3 passed, 0 failed, 1 skipped\nsecond   done before; 0 s; 4 passed," in said
    status, said, tried = contact.run({"first": {"before": "raise SystemExit(1)"}}, "first", "second")
    assert (status, tried) == (0, [])
    assert "==> first" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stage_over_its_share_is_cut_short_with_what_it_started_and_goes_on(contact):
    child = "open(here / 'child', 'w').write(str(subprocess.Popen(['sleep', '600']).pid)); time.sleep(600)"
    status, said, tried = contact.run({"first": {"b": child}}, "first", "second", budget=10, share=0.8)
    assert status == 2
    assert "\nfirst    cut short; " in said and "\nsecond   done; " in said
    assert tried == ["first-a", "first-b", *(f"second-{item}" for item in "abcd")]
    assert gone((contact.folder / "child").read_text())
    status, said, tried = contact.run({}, "first", "second")
    assert (status, tried) == (0, ["first-b", "first-c", "first-d"])


def test_where_the_budget_is_used_up_a_stage_is_not_reached(contact):
    status, said, tried = contact.run({}, "first", budget=0)
    assert (status, tried) == (2, [])
    assert "\nfirst    not reached; 0 s; 0 passed" in said


@pytest.mark.parametrize(
    ("ill", "last"),
    [
        ("time.sleep(600)", "status 1: Timeout (0:00:01)! File "),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "status -11: Fatal Python error: Segmentation fault"),
        ("os._exit(7)", "status 7: it said nothing"),
        ("print('the device is lost', file=sys.stderr); os._exit(7)", "status 7: the device is lost"),
    ],
    ids=["hangs", "crashes", "ends", "ends and says why"],
)
def test_an_item_that_takes_its_process_along_has_failed_and_the_others_go_on(contact, ill, last):
    status, said, tried = contact.run({"first": {"b": ill}}, "first", limit=1)
    assert status == 1
    assert f"[first] b: failed, 0.0 s; its process ended with {last}" in said
    assert "\nfirst    failed; " in said and " s; 3 passed, 1 failed, 0 skipped" in said
    assert tried == ["first-a", "first-b", "first-c", "first-d"]
    assert contact.run({}, "first", limit=1)[::2] == (0, ["first-b"])


def test_a_process_that_comes_to_nothing_is_not_tried_again_and_again(contact):
    status, said, tried = contact.run({"first": {"before": "raise SystemExit('no module named x')"}}, "first", "second")
    assert status == 1
    assert "[first] process 0: failed, 0.0 s; its process ended with status 1: no module named x\n" in said
    assert tried == [f"second-{item}" for item in "abcd"]
    assert contact.run({}, "first")[::2] == (0, [f"first-{item}" for item in "abcd"])


@pytest.mark.skipif(sys.platform != "linux", reason="processes die with their parent on Linux")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_call_that_is_killed_loses_what_was_under_way_alone(contact, number):
    pid = "open(here / 'pid', 'w').write(str(os.getpid())); "
    process = contact.start({"first": {"b": pid + "time.sleep(600)"}}, 50, "first", "second")
    contact.wait_for("first-b")
    time.sleep(0.05)
    os.kill(process.pid, number)
    said = process.communicate(timeout=30)[0]
    assert gone((contact.folder / "pid").read_text())
    if number != signal.SIGKILL:
        assert process.returncode == 2
        assert "\nfirst    interrupted; 0 s; 1 passed, 0 failed, 0 skipped\nsecond   not reached; " in said
    (journal,) = (contact.folder / "contact").glob("first-*.jsonl")
    with open(journal, "ab") as file:
        file.write(b'\n{"item": "b", "outco')  # as of a process that is killed in the middle of a line
    status, said, tried = contact.run({}, "first", "second")
    assert status == 0
    assert tried == ["first-b", "first-c", "first-d", *(f"second-{item}" for item in "abcd")]


def test_items_are_shared_out_and_what_is_missing_is_said(contact):
    status, said, tried = contact.run({}, "first", workers=3)
    assert status == 0
    assert sorted(tried) == ["first-a", "first-b", "first-c", "first-d"]
    assert len(list((contact.folder / "contact").glob("first-*.log"))) == 3
    status, said, tried = contact.run({}, "other", needs=["torch", "no_such_module"])
    assert (status, tried) == (2, [])
    assert f"\nother    left out: {sys.executable} lacks no_such_module; 0 s" in said


@pytest.fixture
def benchmarks(monkeypatch):
    """Imports modules of benchmarks/, which are forgotten afterwards: others have names like theirs."""
    names = [path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "conftest"]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def precision():
    """What a stage sets for its process is set back."""
    before = torch.backends.cudnn.conv.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture
def worker(benchmarks, tmp_path):
    """The process of a stage on the CPU, that is this one."""
    journal = benchmarks("journal")

    def make(stage, only=""):
        journals = {name: str(tmp_path / f"{name}.jsonl") for name in ("smoke", "rows", "tune")}
        job = {"worker": 0, "of": 1, "since": 0, "limit": 60, "only": only, "device": "cpu", "folder": str(tmp_path)}
        return journal.Worker(stage, {**job, "journals": journals, "results": str(tmp_path / "results" / "cpu.json")})

    return make


def outcomes(worker):
    return {name: record["outcome"] for name, record in worker.journal.latest().items()}


def test_every_stage_has_its_share_and_its_script(benchmarks):
    stages = benchmarks("first_contact").STAGES
    assert [stage.name for stage in stages] == ["build", "smoke", "tests", "check", "rows", "tune"]
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    for stage in stages:
        text = (BENCHMARKS / stage.script).read_text()
        assert f"\ndef {stage.name}(worker):\n" in text
        assert all((ROOT / source).exists() for source in stage.sources)


def test_a_journal_is_of_one_device_its_versions_the_sources_and_the_module(benchmarks, monkeypatch):
    first = benchmarks("first_contact")
    build, smoke, *_ = first.STAGES
    name = first._journal_name(smoke, {"name": "x"}, [])
    assert name == first._journal_name(smoke, {"name": "x"}, [])
    others = [first._journal_name(smoke, {"name": "y"}, []), first._journal_name(smoke, {"name": "x"}, ["_native.so"])]
    monkeypatch.setattr(first, "_content", lambda sources: "another content")
    assert len({name, *others, first._journal_name(smoke, {"name": "x"}, [])}) == 4
    assert first._journal_name(build, {}, []) == first._journal_name(build, {}, ["_native.so"])


def test_smoke_holds_every_part_to_float64(benchmarks, worker, precision, monkeypatch):
    smoke = benchmarks("stage_smoke")
    small = "^(select|linear|conv), (native|staged|reference)$"
    smoke.smoke(worker("smoke", small))
    assert outcomes(worker("smoke")) == {
        f"{part}, {backend}": "passed"
        for part in ("select", "linear", "conv")
        for backend in ("native", "staged", "reference")
    }
    linear = ek.reference.masked_linear
    monkeypatch.setattr(ek.reference, "masked_linear", lambda *args: 1.02 * linear(*args))
    (Path(worker("smoke").job["journals"]["smoke"])).unlink()
    smoke.smoke(worker("smoke", "^linear, (native|reference)$"))
    found = worker("smoke").journal.latest()
    assert found["linear, native"]["outcome"] == "passed"
    assert found["linear, reference"]["outcome"] == "failed"
    assert found["linear, reference"]["said"].startswith("AssertionError: y: relative error 0.02")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_step_is_held_to_float64_layer_by_layer(benchmarks, monkeypatch, backend, dtype):
    smoke, setup = benchmarks("stage_smoke"), benchmarks("rows").Setup(torch.device("cpu"), backend)

    def network():
        layers = [torch.nn.Conv2d(3, 8, 3, 2, padding=1, bias=False), torch.nn.ReLU(), torch.nn.Flatten()]
        return torch.nn.Sequential(*layers, torch.nn.Linear(8 * 256, 10, bias=False))

    smoke.step_of_conv4(setup, dtype, 2, network)
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (step(self), step(self)))
    with pytest.raises(AssertionError, match="layer 0, scores after the step"):
        smoke.step_of_conv4(setup, dtype, 2, network)


def test_rows_are_all_there_the_most_important_first(benchmarks):
    stage = benchmarks("stage_rows")
    rows = stage.rows_of("cuda")
    groups = ("select", "linear", "conv", "train", "optim", "eval")
    every = [row for group in groups for row in benchmarks(f"test_bench_{group}").GPU_ROWS if not row.full]
    assert len(rows) == len(every) and set(rows.values()) == set(every)
    first = list(rows)[:6]
    assert first[:2] == ["select ResNet-50 normal cold", "select ResNet-50 normal warm"]
    assert first[2:] == [f"linear {n}x4096x4096 bf16 fwd+bwd" for n in (32, 128, 1024, 8192)]
    before_the_rest = list(rows)[: list(rows).index("linear 32x4096x4096 bf16 fwd")]
    assert sum(name.startswith("conv 256x") for name in before_the_rest) == 23
    assert before_the_rest[-2:] == ["train Conv4 batch 128 bf16 fwd+bwd", "train ResNet-18 batch 128 bf16 fwd+bwd"]
    columns = benchmarks("rows").columns_of(rows[before_the_rest[-1]], torch.device("cuda"))
    assert {"fused", "graphed", "dense", "staged", "GetSubnet"} < set(columns) and "compile" not in columns


def test_a_row_is_in_the_results_once_it_is_measured_and_stays(benchmarks, worker, monkeypatch):
    stage = benchmarks("stage_rows")
    peak = benchmarks("peaks").Peak(None, {"float32": 1e11, "half": 1e11}, "made up")
    monkeypatch.setattr(stage, "peak_of", lambda device: peak)
    names = ["linear 4096x32x1 f32 fwd", "select 1000 normal cold"]
    results = Path(worker("rows").job["results"])
    for n, name in enumerate(names, 1):
        stage.rows(worker("rows", f"^{name}$"))
        written = json.loads(results.read_text())
        assert written["command"] == "make gpu" and len(written["rows"]) == n
    assert outcomes(worker("rows")) == dict.fromkeys(names, "passed")
    figures = benchmarks("figures")
    rows = figures.rows_of(written)
    assert {row.name for row in rows} == set(names)
    columns = next(row.seconds for row in rows if row.group == "linear")
    assert {"fused", "GetSubnet", "GetSubnetFaster", "dense", "staged", "packed"} <= columns.keys()
    assert all(seconds > 0 for row in rows for seconds in row.seconds.values())
    assert "| select 1000 normal cold |" in figures.table(rows)
    # A row that a tile was found for is measured anew, in the old one's place.
    again = worker("tune")
    again.run({names[0]: lambda: ("", {**written["rows"][0], "row": "anew"})})
    stage.rows(worker("rows", "^eval linear 32x1"))
    assert {row["row"] for row in json.loads(results.read_text())["rows"]} == {
        "anew",
        "1000 normal cold",
        "linear 32x1 batch 4096 f32 fwd",
    }


def test_figures_and_tables_take_the_results_of_a_gpu(benchmarks, tmp_path, monkeypatch):
    """All of its layers' rows are of bfloat16; and perhaps nobody knew the commit there."""
    figures = benchmarks("figures")
    (shown,) = (path for path in figures.RESULTS if path.stem == figures.SHOWN)
    known = json.loads(shown.read_text())
    rows = [r for r in known["rows"] if r["group"] == "linear" and " bf16 " in r["row"]]
    file = tmp_path / "nvidia-h200.json"
    file.write_text(json.dumps({**known, "rows": rows, "commit": None, "uncommitted_changes": False}))
    monkeypatch.setattr(figures, "RESULTS", [file])
    assert list(figures.figures()) == ["nvidia-h200-bf16.svg"]
    texts = figures.texts()
    assert texts["nvidia-h200 machine"].endswith("; commit unknown.")
    assert texts["nvidia-h200 linear"].count("\n") == len(rows) + 1


def test_rows_that_lost_are_tuned_those_that_lost_most_first(benchmarks, tmp_path):
    stage, journal = benchmarks("stage_rows"), benchmarks("journal").Journal(tmp_path / "rows.jsonl")
    for item, ratio in {
        "even": {"dense": 1.0, "staged": 1.0},
        "a little": {"dense": 0.97, "staged": 2.0, "packed": 0.5},
        "no dense": {"read": 0.5},
        "much": {"dense": 1.1, "staged": 0.4},
    }.items():
        journal.add(item=item, outcome="passed", result={"ratio": ratio})
    journal.add(item="failed", outcome="failed", result=None)
    assert stage.lost_rows(journal) == ["much", "a little"]

    rows = stage.rows_of("cuda")
    assert stage.workloads_of(rows["linear 32x4096x4096 bf16 fwd"]) == [stage.Linear(32, 4096, 4096)]
    assert stage.workloads_of(rows["conv 256x3x224x224 64k7 s2 bf16 fwd+bwd"]) == [stage.Conv(256, 3, 224, 64, 7, 2)]
    assert stage.workloads_of(rows["select ResNet-50 normal warm"]) == []
    conv4 = stage.workloads_of(rows["train Conv4 batch 128 bf16 fwd+bwd"])
    assert conv4[:2] == [stage.Conv(128, 3, 32, 64, 3), stage.Conv(128, 64, 32, 64, 3)]
    assert conv4[-3:] == [stage.Linear(128, 8192, 256), stage.Linear(128, 256, 256), stage.Linear(128, 256, 10)]
    assert set(conv4) <= set(stage.WORKLOADS)


def test_tuning_writes_the_table_and_measures_the_row_anew(benchmarks, worker, monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("on a GPU `make gpu` itself is what is run")
    stage, LinearRow = benchmarks("stage_rows"), benchmarks("rows").LinearRow
    steps = {f"linear {n}": LinearRow(torch.float32, n > 0, (9, 70, 40)) for n in range(3)}
    monkeypatch.setattr(stage, "rows_of", lambda device: steps)
    monkeypatch.setattr(stage, "WORKLOADS", [stage.Linear(9, 70, 40)])
    monkeypatch.setattr(stage, "peak_of", lambda device: benchmarks("peaks").Peak(None, {"float32": 1e11}, "made up"))
    monkeypatch.setattr(search, "STEPS", {"k": (16, 32)})
    tuned, whole = [], stage.tuning.tune
    monkeypatch.setattr(stage.tuning, "tune", lambda *a, **o: (tuned.append(o["workloads"]), whole(*a, **o)))
    ratios = zip(steps, (0.5, 0.7, 2.0), strict=True)
    worker("rows").run({name: lambda ratio=ratio: ("", {"ratio": {"dense": ratio}}) for name, ratio in ratios})
    stage.tune(worker("tune"))
    assert outcomes(worker("tune")) == {"linear 0": "passed", "linear 1": "passed"}
    assert tuned == [[stage.Linear(9, 70, 40)], []]  # both rows are of that layer
    table = tune.read_table(Path(worker("tune").job["folder"]) / "table.json")
    assert {problem.kernel for problem in table} == {"product", "grad"} and len(table) == 3
    written = json.loads(Path(worker("tune").job["results"]).read_text())["rows"]
    assert [r.get("row") for r in written] == ["9x70x40 f32 fwd", "9x70x40 f32 fwd+bwd", None]


CASES = """
import os, time
import pytest

@pytest.mark.parametrize("n", range(3))
def test_well(n):
    pass

def test_ill():
    assert os.environ.get("CURED"), "not cured"

def test_ends():
    os.environ.get("CURED") or os._exit(9)

@pytest.mark.skip(reason="not here")
def test_left_out():
    pass
"""


def test_tests_are_shared_out_and_those_that_failed_are_run_again(tmp_path, monkeypatch):
    file = tmp_path / "test_cases.py"
    file.write_text(CASES)

    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # whose import is most of the time

    def first_contact(*arguments, **environment):
        command = [sys.executable, str(BENCHMARKS / "first_contact.py"), *arguments]
        command += ["--device", "cpu", "--folder", str(tmp_path), "--tests", str(file)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    status, said = first_contact("tests")
    assert status == 1
    assert re.search(r"::test_ill: failed, \d+\.\d s; call: AssertionError: not cured\n", said)
    assert "::test_ends: failed, 0.0 s; its process ended with status 9: " in said
    assert re.search(r"::test_left_out: skipped, \d+\.\d s; Skipped: not here\n", said)
    logs = "".join(log.read_text() for log in (tmp_path / "contact").glob("tests-*.log"))
    assert logs.count('>       assert os.environ.get("CURED"), "not cured"') == 1
    assert "; 3 passed, 2 failed, 1 skipped\n" in said
    status, said = first_contact("tests", CURED="1")
    assert status == 0 and "; 5 passed, 0 failed, 1 skipped\n" in said
    assert first_contact("tests")[0] == 0
    links = [path for path in (tmp_path / "lib" / "edgepop_kernels").iterdir() if path.name.startswith("_native")]
    assert not links and (tmp_path / "lib" / "edgepop_kernels" / "tuning").resolve() == ROOT / "edgepop_kernels/tuning"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "first_contact.py"), "bild"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.endswith("STAGE: expected some of build, smoke, tests, check, rows, tune, got bild\n")


def test_the_first_tests_of_every_file_come_before_the_second_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name, count in (("long", 4), ("short", 1), ("shorter", 2)):
        (tmp_path / f"test_{name}.py").write_text("".join(f"def test_{name}_{n}(): pass\n" for n in range(count)))
    job = {"worker": 0, "of": 1, "since": 0, "limit": 60, "only": "", "device": "cpu", "tests": [str(tmp_path)]}
    job["journals"] = {"tests": str(tmp_path / "tests.jsonl")}
    subprocess.run([sys.executable, str(BENCHMARKS / "stage_tests.py"), "tests", json.dumps(job)], check=True)
    records = map(json.loads, filter(None, (tmp_path / "tests.jsonl").read_text().splitlines()))
    order = [r["item"].rpartition("::test_")[2] for r in records if r["outcome"] == "passed"]
    assert order == ["long_0", "short_0", "shorter_0", "long_1", "shorter_1", "long_2", "long_3"]


TORCH = """
class version:
    cuda = "13.0"

class cuda:
    is_available = staticmethod(lambda: {available})
    get_device_name = staticmethod(lambda: "NVIDIA H200")
    get_device_capability = staticmethod(lambda: (9, 0))
"""


def test_the_device_is_torchs_and_without_one_it_says_so(benchmarks, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text(TORCH.format(available=True))
    about = benchmarks("first_contact").about_device("cuda")
    assert (about["name"], about["capability"], about["cuda"]) == ("NVIDIA H200", [9, 0], "13.0")
    assert about["torch"] == importlib.metadata.version("torch") and "python" in about
    (tmp_path / "torch.py").write_text(TORCH.format(available=False))
    done = subprocess.run([sys.executable, str(BENCHMARKS / "first_contact.py")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "make gpu needs a CUDA device, and torch sees none\n"


@pytest.mark.parametrize(("capability", "architecture"), [((8, 0), "80"), ((9, 0), "90a"), ((10, 0), "100a")])
def test_an_architecture_is_named_as_nvcc_has_all_of_it(benchmarks, capability, architecture):
    assert benchmarks("stage_build").architecture(capability) == architecture


def test_the_module_is_built_for_the_devices_architecture_alone(tmp_path):
    tree = Tree(tmp_path)
    tree.compiler("g++")
    nvcc = tree.compiler("nvcc")
    folder = tmp_path / "gpu"
    folder.mkdir()

    def build(call):
        job = {"worker": 0, "of": 1, "since": 99 * call, "limit": 60, "only": "", "folder": str(folder)}
        job |= {"about": {"capability": [9, 0]}, "journals": {"build": str(folder / f"{call}.jsonl")}}
        tree.log.write_text("")
        done = tree.run("benchmarks/stage_build.py", "build", json.dumps(job))
        last = json.loads((folder / f"{call}.jsonl").read_text().splitlines()[-1])
        assert done.returncode == 0, done.stdout
        return [json.loads(line) for line in tree.log.read_text().splitlines()], last

    commands, last = build(1)
    device = [c for c in commands if c[0] == "nvcc" and "-c" in c]
    host = [c for c in commands if c[0] == "g++" and "-c" in c]
    assert device and all(
        [w for w in c if w.startswith("-gencode")] == ["-gencode=arch=compute_90a,code=sm_90a"] for c in device
    )
    assert host and all(c.index("-O1") > c.index("-O3") for c in host)
    assert (last["outcome"], last["said"]) == ("passed", "for sm_90a")
    assert len(list(folder.glob("lib/edgepop_kernels/_native*"))) == 1
    again, _ = build(2)
    assert [c for c in again if "-c" in c] == []  # all compiled before is used
    # What does not compile leaves no module of before.
    Path(nvcc).write_text("#!/bin/sh\nexit 1\n")
    source = tree.root / "csrc" / "cuda" / "select.cu"
    source.write_text(source.read_text() + "\n")
    _, last = build(3)
    assert last["outcome"] == "failed" and not list(folder.glob("lib/edgepop_kernels/_native*"))
