"""``make gpu``: builds, tests, measures and tunes on a CUDA device in the minutes that one is there.

Every stage runs in processes of its own, which write down each thing that they finish, at once, in a journal of the
stage (``build/gpu/contact``). An interruption loses what was under way, no more: a second call does what is missing or
has failed. A journal is for one device, one set of versions and one content of the sources that the stage runs. Without
network, and with torch alone; what else a stage needs it says.

The exit status is 0 where all is done, 1 where something failed, 2 where nothing did but not all was reached.
"""

import argparse
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from journal import Journal

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUDGET_S = 700.0  # within 12 minutes, with what starts before and ends after it
CORES = os.cpu_count() or 1
NATIVE = ("csrc", "setup.py")


@dataclass(frozen=True)
class Stage:
    """script: beside this file, run with the stage's name and its job.
    share: of the budget, kept for it: no earlier stage gets it, and what those leave over comes on top.
    limit: seconds after which one item (a test, a row) is ended with its process and has failed.
    needs: modules of Python beside torch. reads: the stage whose journal says what there is to do.
    sources: whose content decides what is done. built: whether the native module does too, by being there."""

    name: str
    script: str
    share: float
    limit: float
    sources: tuple[str, ...]
    workers: int = 1
    needs: tuple[str, ...] = ()
    reads: str = ""
    built: bool = True


_TESTED, _TIMED = (*NATIVE, "edgepop_kernels", "tests"), (*NATIVE, "edgepop_kernels", "benchmarks")
# Each with its share, what that is of 700 s, and why.
STAGES = (
    # 154 s: a set of C++ kernels takes 27 s of a core with -O1, nvcc's compilations not yet measured; side by side.
    Stage("build", "stage_build.py", 0.22, 600, NATIVE, needs=("setuptools", "pybind11"), built=False),
    # 70 s: what is wrong from the ground up is known first. A backend a process, which compiles for most of the time:
    # a product of Triton's takes about 1 s of a core here, the selections 7 s.
    Stage("smoke", "stage_smoke.py", 0.10, 60, _TIMED, workers=4),
    # 140 s: over two thousand tests, most with kernels to compile, on all cores. What is not reached is a next call's.
    Stage("tests", "stage_tests.py", 0.20, 60, _TESTED, CORES, needs=("pytest", "hypothesis", "numpy")),
    # 84 s: compiles the kernels of all rows side by side, so that the next stage, which runs alone, has only to time.
    Stage("check", "stage_rows.py", 0.12, 75, _TIMED, workers=max(CORES // 2, 1)),
    # 154 s: about 3 s a row, the most important first: selection, linear, 23 convolutions, two networks in two thirds.
    Stage("rows", "stage_rows.py", 0.22, 75, _TIMED),
    # 98 s: what is left. A tile is a compilation, a layer some dozens of them; each product's tile is kept once found.
    Stage("tune", "stage_rows.py", 0.14, 600, _TIMED, reads="rows"),
)


class Started(NamedTuple):
    """A process, and how long the journal and its log were when it began."""

    process: subprocess.Popen
    records: int
    log: int


class Run:
    """One stage in one call: its processes, the log of each, the lines of what they finish."""

    def __init__(self, stage: Stage, journal: Journal, job: dict, environment: dict[str, str]):
        self.stage, self.journal, self.job = stage, journal, job
        self.environment = environment | {"OMP_NUM_THREADS": str(max(CORES // stage.workers, 1))}
        self.since = self.printed = len(journal.records())
        self._told: set[str] = set()
        self.running: dict[int, Started] = {}  # by worker

    def until(self, end: float) -> bool:
        """Runs until it is through or the clock says ``end``; whether it is through."""
        try:
            for worker in range(self.stage.workers):
                self._start(worker)
            while self.running and time.monotonic() < end:
                time.sleep(0.05)
                for worker, started in list(self.running.items()):
                    if started.process.poll() is not None:
                        stop([started.process])  # and the compilers that it has left
                        del self.running[worker]
                        if started.process.returncode and self._goes_on(worker, started):
                            self._start(worker)
                self._print()
            return not self.running
        finally:
            stop([started.process for started in self.running.values()])
            self._print()

    def failures(self) -> list[dict]:
        """What failed last, and which workers came to nothing."""
        lost = [r for r in self.journal.records()[self.since :] if r.get("outcome") == "failed" and not r["item"]]
        return lost + [r for r in self.journal.latest().values() if r["outcome"] == "failed"]

    def log(self, worker: int) -> Path:
        return self.journal.file.with_name(f"{self.stage.name}-{worker}.log")

    def _start(self, worker: int) -> None:
        job = {**self.job, "worker": worker, "of": self.stage.workers, "since": self.since, "limit": self.stage.limit}
        records = len(self.journal.records())
        with open(self.log(worker), "ab") as log:
            before = log.tell()
            process = subprocess.Popen(
                [sys.executable, str(HERE / self.stage.script), self.stage.name, json.dumps(job)],
                cwd=self.journal.file.parent,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a group that is stopped as a whole
                preexec_fn=_die_with_parent,
            )
        self.running[worker] = Started(process, records, before)

    def _goes_on(self, worker: int, started: Started) -> bool:
        """Writes down what a process died of; whether another takes its place. Where it came to nothing, none does."""
        mine = [r for r in self.journal.records()[started.records :] if r.get("worker") == worker]
        item = mine[-1]["item"] if mine else None
        if not mine or mine[-1]["outcome"] == "begun":
            last = last_words(self.log(worker).read_bytes()[started.log :].decode(errors="replace"))
            said = f"its process ended with status {started.process.returncode}: {last}"
            self.journal.add(item=item, outcome="failed", worker=worker, seconds=0.0, said=said)
        return item is not None  # else it gave up the device after a failure

    def _print(self) -> None:
        records = self.journal.records()
        for r in records[self.printed :]:
            told = r.get("outcome") == "skipped" and r["said"] in self._told  # a reason once, whatever it keeps out
            if r.get("said") and not told:
                self._told.add(r["said"])
                name = r["item"] or f"process {r['worker']}"
                print(f"[{self.stage.name}] {name}: {r['outcome']}, {r['seconds']:.1f} s; {r['said']}", flush=True)
        self.printed = len(records)


def _die_with_parent() -> None:
    """Linux: whoever kills this process kills those that it started too, which are in groups of their own."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def stop(processes: list[subprocess.Popen]) -> None:
    """Ends their whole groups, and waits no longer than 10 s: a device may hold a process beyond its death."""
    for number, patience in ((signal.SIGTERM, 2), (signal.SIGKILL, 8)):
        for process in processes:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
        end = time.monotonic() + patience
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0.01))


def last_words(log: str) -> str:
    """What a process said of its end: where it hung or crashed, as faulthandler writes it, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    ends = [n for n, line in enumerate(lines) if line.startswith(("Timeout (", "Fatal Python error"))]
    if not ends:
        return lines[-1] if lines else "it said nothing"
    frames = [line for line in lines[ends[-1] :] if line.startswith("File ")]
    return " ".join([lines[ends[-1]], *frames[:1]])


def drive(table, names, job: dict, environment: dict[str, str], budget: float, start: float) -> int:
    """Runs the stages of ``table`` that are named, whatever becomes of each, and prints what did; the exit status."""
    folder, stages = Path(job["folder"]), [stage for stage in table if stage.name in names]
    (folder / "contact").mkdir(parents=True, exist_ok=True)
    journals: dict[str, Journal] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    summary = {stage.name: ("not reached", 0.0) for stage in stages}
    try:
        for n, stage in enumerate(stages):
            module = sorted(path.name for path in folder.glob("lib/edgepop_kernels/_native*"))
            journals |= {s.name: Journal(folder / "contact" / _journal_name(s, job["about"], module)) for s in table}
            job = {**job, "journals": {name: str(journal.file) for name, journal in journals.items()}}
            journal, began = journals[stage.name], time.monotonic()
            end = start + budget * (1 - sum(later.share for later in stages[n + 1 :]))
            missing = [name for name in stage.needs if importlib.util.find_spec(name) is None]
            if journal.done() and (stage.built or module):
                summary[stage.name] = "done before", 0.0
            elif missing:
                summary[stage.name] = f"left out: {sys.executable} lacks {', '.join(missing)}", 0.0
            elif began < end:
                print(f"==> {stage.name}: {end - began:.0f} s at most; logs in {folder / 'contact'}", flush=True)
                summary[stage.name] = "interrupted", 0.0
                run = Run(stage, journal, job, environment)
                through = run.until(end)
                failures = run.failures()
                known = not stage.reads or journals[stage.reads].whole()  # all that there is to do
                if through and known and not job["only"] and all(f["item"] for f in failures):
                    journal.add(whole=True)
                state = ["failed"] * bool(failures) + ["cut short"] * (not through)
                summary[stage.name] = ", ".join(state) or "done", time.monotonic() - began
    except KeyboardInterrupt:
        print("==> interrupted", flush=True)
    print(f"==> {time.monotonic() - start:.0f} s of {budget:.0f}", flush=True)
    for name, (state, seconds) in summary.items():
        latest = journals[name].latest() if name in journals else {}
        counts = Counter(r["outcome"] for r in latest.values())
        counted = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
        print(f"{name:8} {state}; {seconds:.0f} s; {counted}", flush=True)
    states = [state for state, _ in summary.values()]
    if any("failed" in state for state in states):
        return 1
    return 0 if all(state in ("done", "done before") for state in states) else 2


def _journal_name(stage: Stage, about: dict, module: list[str]) -> str:
    known = _content(stage.sources) + json.dumps([about, module if stage.built else ()], sort_keys=True)
    return f"{stage.name}-{hashlib.sha256(known.encode()).hexdigest()[:12]}.jsonl"


@functools.cache
def _content(sources: tuple[str, ...]) -> str:
    """Without the results and the tables of tiles, which are written here."""
    digest = hashlib.sha256()
    for source in sources:
        for path in sorted([ROOT / source, *(ROOT / source).rglob("*")]):
            if path.is_file() and path.suffix not in (".json", ".so", ".pyc"):
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


_DEVICE = """
import json, torch
if not torch.cuda.is_available():
    raise SystemExit("make gpu needs a CUDA device, and torch sees none")
name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
print(json.dumps({"name": name, "capability": capability, "cuda": torch.version.cuda}))
"""


def about_device(device: str) -> dict:
    """The device and the versions. A CPU stands in for a device to try all this without one."""
    found = {"name": f"cpu {platform.machine()}", "capability": None}
    if device != "cpu":
        try:
            done = subprocess.run(
                [sys.executable, "-c", _DEVICE], capture_output=True, text=True, timeout=120, check=False
            )
        except subprocess.TimeoutExpired:
            sys.exit("make gpu: torch does not find out in two minutes which device there is")
        if done.returncode:
            sys.exit(done.stderr.strip().splitlines()[-1])
        found = json.loads(done.stdout)
    for package in ("torch", "triton"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found | {"python": platform.python_version()}


def link_package(lib: Path) -> None:
    """The package as it is in the sources, file by file, and the one place where its module for the device is built."""
    package = lib / "edgepop_kernels"
    package.mkdir(parents=True, exist_ok=True)
    for link in package.iterdir():
        if link.is_symlink() and not link.name.startswith("_native"):
            link.unlink()
    for path in (ROOT / "edgepop_kernels").iterdir():
        if path.name != "__pycache__" and not path.name.startswith("_native"):
            (package / path.name).symlink_to(path)


def main() -> None:
    start = time.monotonic()
    names = ", ".join(stage.name for stage in STAGES)
    options = argparse.ArgumentParser(description="Builds, tests, measures and tunes on a CUDA device.")
    options.add_argument("stages", nargs="*", metavar="STAGE", help=f"{names}; default: all")
    options.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="default: %(default)s")
    options.add_argument("--only", default="", metavar="REGEX", help="the items (tests, rows) whose name has it")
    options.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a stand-in, to try this")
    options.add_argument("--results", type=Path, help="default: benchmarks/results/ of the device's name")
    options.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu", help="default: build/gpu")
    options.add_argument("--tests", nargs="+", default=[], metavar="FILE", help="default: those with a test marked gpu")
    chosen = options.parse_args()
    unknown = set(chosen.stages) - {s.name for s in STAGES}
    if unknown:
        options.error(f"STAGE: expected some of {names}, got {', '.join(sorted(unknown))}")
    about = about_device(chosen.device)
    folder = chosen.folder.resolve()
    slug = re.sub(r"\s+", "-", about["name"].lower())
    job = {
        "about": about,
        "device": chosen.device,
        "only": chosen.only,
        "folder": str(folder),
        "results": str((chosen.results or HERE / "results" / f"{slug}.json").resolve()),
        "tests": [str(Path(file).resolve()) for file in chosen.tests],
    }
    link_package(folder / "lib")
    paths = [str(folder / "lib"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"TRITON_CACHE_DIR": str(folder / "triton"), **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"TRITON_INTERPRET": "1"} if chosen.device == "cpu" else {}
    named = chosen.stages or [stage.name for stage in STAGES]
    sys.exit(drive(STAGES, named, job, environment, chosen.budget, start))


if __name__ == "__main__":
    main()
