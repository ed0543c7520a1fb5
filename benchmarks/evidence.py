"""Every recipe on the data it is named after, beside what is published: ``make evidence DATA=folder``.

The folder holds one for each data set, ``mnist`` and ``cifar10``; a file note.txt beside its files, a sentence, is said
of all that is found with them. The trainings of ``evidence_rows.ROWS`` that lack results are done by ``edgepop train``,
on every core a process of one thread, in build/evidence: what stops them stops nothing that is done, the next call goes
on where this one was. Each writes its results when it ends, into the file of its row in docs/evidence; the page
docs/evidence.md, its figures and what README has of them follow from these files alone. Exit code 1 where a training
failed, 2 where a file is damaged, 130 where a signal ended it.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import evidence_page
import evidence_results as results
from accuracy import cores, positive
from evidence_rows import ROWS, Row

from edgepop_kernels.doctor import processor
from edgepop_kernels.recipes import machine
from edgepop_kernels.recipes.errors import UserError
from edgepop_kernels.recipes.files import locked, write_atomic
from edgepop_kernels.recipes.interrupt import Stop

ROOT = Path(__file__).resolve().parent.parent
DOCS, README, RUNS, PROGRAMS = ROOT / "docs", ROOT / "README.md", ROOT / "build" / "evidence", ROOT / "benchmarks"
NOTE = "note.txt"  # in a data set's folder: what is to be said of every number that was found with it
STOPPED = (130, -signal.SIGTERM)  # exit codes of a process that was told to: after it saved, or before it began
LOOK_EVERY = 0.1  # seconds between looks at what runs


@dataclass
class Training:
    """A row's training of one seed, in its run folder."""

    row: Row
    seed: int
    data: Path | None
    runs: Path
    commit: str | None = None  # at which it began, or was gone on with

    @property
    def name(self) -> str:
        return f"{self.row.name}-{self.seed}"

    @property
    def run(self) -> Path:
        return self.runs / self.name

    @property
    def about(self) -> Path:
        """What the processes that trained it took together, and the processor and the commit of the last one."""
        return self.runs / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.runs / f"{self.name}.log"

    def command(self) -> list[str]:
        """That which begins it, or goes on with it; a folder in which nothing is saved yet is made anew."""
        saved = [self.run / "config.json", self.run / "last.pt", self.run / "finished.pt"]
        place = [] if self.data is None else ["--data", str(self.data)]
        outputs = ["--no-plots", "--no-step-times"]
        if saved[0].exists() and (saved[1].exists() or saved[2].exists()):
            return ["train", "--resume", str(self.run), *place, *outputs]
        if self.run.exists():
            shutil.rmtree(self.run)
        named = ["--device", "cpu", "--threads", "1", "--out", str(self.runs), "--name", self.name]
        return [*self.row.command(), "--seed", str(self.seed), *place, *named, *outputs]

    def start(self) -> subprocess.Popen:
        self.commit = commit()
        # A session of its own: a terminal's Ctrl-C is for the driver, which tells each process once.
        own = dict(start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        with open(self.log, "ab") as log:
            program = [str(PROGRAMS / self.row.program)] if self.row.program else ["-m", "edgepop_kernels"]
            arguments = [sys.executable, *program, *self.command()]
            return subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **own)

    def took(self) -> float:
        """Seconds of processor time, of the processes that have ended."""
        return json.loads(self.about.read_text())["processor_s"] if self.about.exists() else 0.0

    def ended(self, seconds: float) -> None:
        about = {"processor_s": round(self.took() + seconds, 1), "processor": processor(), "commit": self.commit}
        write_atomic(self.about, json.dumps(about).encode())

    def results(self) -> dict:
        found = results.of_run(self.row, self.seed, self.run) | json.loads(self.about.read_text())
        note = None if self.data is None else self.data / NOTE
        return found | ({"data_note": note.read_text().strip()} if note and note.exists() else {})

    def finished(self) -> bool:
        return (self.run / "summary.json").exists() and self.about.exists()


def main(
    arguments: list[str] | None = None,
    rows: tuple[Row, ...] = ROWS,
    docs: Path = DOCS,
    runs: Path = RUNS,
    readme: Path | None = README,
) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder of the data sets' folders (default: data)"
    )
    parser.add_argument("--only", type=pattern, default="", metavar="REGEX", help="rows whose names it is found in")
    parser.add_argument("--budget-s", type=float, metavar="S", help="seconds after which trainings are saved and left")
    parser.add_argument("--processes", type=positive, default=cores(), help="at once (default: one for each core)")
    asked = parser.parse_args(arguments)
    until = float("inf") if asked.budget_s is None else time.monotonic() + asked.budget_s
    folder = docs / "evidence"
    try:
        missing = lacking(rows, folder, asked.only, asked.data, runs)
        for made in (folder, runs):
            made.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=False), Stop() as stop:  # runs' lock is for those that train there
            failed = train(missing, asked.processes, folder, until, stop)
            left = lacking(rows, folder, asked.only, asked.data, runs)
        evidence_page.write(rows, docs, readme)
    except UserError as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 2
    print(f"{len(left)} trainings left; written: {docs / 'evidence.md'}")
    return 130 if stop.requested else int(failed)


def commit() -> str | None:
    """The commit of this checkout, with "-dirty" where files differ from it on which a result can depend: not where
    they are the results of other trainings."""
    found = machine.commit()
    if found is None or not found.endswith("-dirty"):
        return found
    others = [".", *(f":(exclude){written}" for written in ("docs", "README.md"))]
    clean = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *others], cwd=ROOT, check=False).returncode == 0
    return found.removesuffix("-dirty") if clean else found


def pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"expected a regular expression, got {text!r}: {error}") from error
    return text


def lacking(rows: tuple[Row, ...], folder: Path, only: str, data: Path, runs: Path) -> list[Training]:
    """The trainings of the chosen rows that have no results. UserError for a damaged file, of whatever row."""
    missing = []
    for row in rows:
        have = {run["seed"] for run in results.read(row, folder)["runs"]}
        if row.of or re.search(only, row.name) is None:
            continue
        dataset = row.asked().dataset
        place = None if dataset == "digits" else data / dataset
        seeds = [seed for seed in range(row.seeds) if seed not in have]
        missing += [Training(row, seed, place, runs) for seed in seeds]
    return missing


def train(missing: list[Training], processes: int, folder: Path, until: float, stop: Stop) -> bool:
    """Does the trainings until the time ``until`` or a stop is requested, when what runs is saved; whether one
    failed."""
    waiting, running, failed, told = [], {}, False, False
    for training in missing:
        if training.finished():
            keep(training, folder)
        elif training.data is not None and not training.data.is_dir():
            print(f"{training.name}: left out, {training.data} is no folder")
        else:
            waiting.append(training)
    print(f"{len(waiting)} trainings, {processes} at once, each on 1 thread", flush=True)
    try:
        while running or (waiting and not told):
            if not told and (stop.requested or time.monotonic() > until):
                told = True
                for process in running:
                    os.kill(process.pid, signal.SIGTERM)  # Popen's own would reap it
            while waiting and not told and len(running) < processes:
                training = waiting.pop(0)
                running[training.start()] = training
            for process in [process for process, training in running.items() if _ended(process, training)]:
                training = running.pop(process)
                if process.returncode == 0:
                    keep(training, folder)
                elif not told or process.returncode not in STOPPED:
                    failed = True
                    print(f"{training.name}: failed, exit code {process.returncode}, see {training.log}", flush=True)
            time.sleep(LOOK_EVERY if running else 0)
    finally:
        for process in running:  # none, but where this ends in an error
            os.kill(process.pid, signal.SIGTERM)
    return failed


def _ended(process: subprocess.Popen, training: Training) -> bool:
    """Whether it has; then its processor time is noted as the training's."""
    pid, status, used = os.wait4(process.pid, os.WNOHANG)
    if pid == 0:
        return False
    process.returncode = os.waitstatus_to_exitcode(status)
    training.ended(used.ru_utime + used.ru_stime)
    return True


def keep(training: Training, folder: Path) -> None:
    found = training.results()
    results.add(training.row, folder, found)
    accuracy, seconds = results.number(training.row, found), found["processor_s"]
    print(f"{training.name}: {accuracy:.2f} %, {seconds:.0f} s of a core", flush=True)


if __name__ == "__main__":
    sys.exit(main())
