"""Kills training with SIGKILL at random moments, resumes it to its end, and compares it with a run left in peace.

``python tests/kill_runs.py 20``, or ``... 20 SEED comparison`` for recipes of several trainings; the tests of resuming
run a few. Each run may be killed up to three times, while it
starts, trains, writes or resumes. After every kill all files are read; at the end all are compared, bit for bit.
Nothing here computes before it forks, so that the children can make their own threads.
"""

import csv
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import comparison_runs
import torch
import torch._dynamo
from recipe_runs import NAME, RECIPE, assert_same_run, resume, rows, start, state

from edgepop_kernels.recipes import comparison, data

KILLS = 3
SETTINGS = RECIPE.override(epochs=6, backend="auto", validation=200)
COMPARED = "lottery-tickets-digits"


class Kind(NamedTuple):
    """start: trains in a folder of run folders; first: the file from which on a run can be resumed; same: asserts that
    two run folders are; told: how far one is."""

    name: str
    start: Callable[[Path], object]
    first: str
    same: Callable[[Path, Path], None]
    told: Callable[[Path], str]


def rows_in(table: Path, what: str) -> str:
    return f"{len(rows(table)) if table.exists() else 0} {what}"


KINDS = {
    "run": Kind(
        NAME,
        lambda folder: start(folder, SETTINGS),
        "last.pt",
        assert_same_run,
        lambda run: rows_in(run / "log.csv", "epochs"),
    ),
    "comparison": Kind(
        COMPARED,
        lambda folder: comparison_runs.start(folder, COMPARED, epochs=2, batch_size=64, backend="auto"),
        "config.json",
        comparison_runs.assert_same_comparison,
        lambda run: rows_in(run / "trainings.csv", "trainings"),
    ),
}


def forked(action: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        action()
        code = 0
    except BaseException:  # a child must not return into what its parent was doing
        traceback.print_exc()
    finally:
        os._exit(code)


def finished(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert status == 0, f"a process ended with status {status}"


def killed(child: int, after: float) -> bool:
    """Whether the child still lived ``after`` seconds, and was killed."""
    end = time.monotonic() + after
    while (left := end - time.monotonic()) > 0:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"a process ended with status {status}"
            return False
        time.sleep(min(left, 0.05))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"a process ended with status {status}"
    return status != 0


def check_files(folder: Path) -> None:
    """Reads every file under ``folder``; what a writer had not finished is hidden, and is no file of a run."""
    readers = {".json": lambda file: json.loads(file.read_text()), ".pt": lambda file: state(file.parent, file.stem)}
    readers[".csv"] = whole_rows
    for file in folder.rglob("*"):
        if file.is_file() and not file.name.endswith(".tmp"):
            readers[file.suffix](file)


def whole_rows(table: Path) -> None:
    header, *lines = csv.reader(io.StringIO(table.read_text()), strict=True)
    assert lines and all(len(line) == len(header) for line in lines), table


def one(kind: Kind, folder: Path, straight: Path, seconds: float, moments: random.Random) -> str:
    """Trains in ``folder``, disturbed; a line that says when."""
    story, run = [], None
    child = forked(lambda: kind.start(folder))
    for _ in range(moments.randint(1, KILLS)):
        after = moments.uniform(0, seconds)
        if not killed(child, after):
            break
        finished(forked(lambda: check_files(folder)))
        # Killed before its first checkpoint there is nothing to go on from: begin again, beside what is left.
        run = next((file.parent for file in sorted(folder.glob(f"*/{kind.first}"))), None)
        story.append(f"{after:.2f} s ({'nothing yet' if run is None else kind.told(run)})")
        child = forked((lambda: kind.start(folder)) if run is None else (lambda run=run: resume(run)))
    else:
        finished(child)
    (run,) = (summary.parent for summary in folder.glob("*/summary.json"))
    assert {file.name for file in run.iterdir()} == {file.name for file in straight.iterdir()}
    finished(forked(lambda: kind.same(run, straight)))
    return f"killed after {', '.join(story) or 'its end'}: the same"


def main(runs: int, seed: int, kind: Kind) -> None:
    torch.set_num_threads(1)
    data.load("digits", None)  # what takes seconds to import is imported once, not in every child
    comparison.SAVE_EVERY = 0.05  # seconds; a training takes a few times as long
    place = Path(tempfile.mkdtemp(prefix="kill_runs-"))
    started = time.monotonic()
    finished(forked(lambda: kind.start(place / "straight")))
    seconds = time.monotonic() - started
    print(f"seed {seed}; undisturbed {seconds:.2f} s, in {place}", flush=True)
    for number in range(runs):
        moments = random.Random(f"{seed} {number}")
        print(number, one(kind, place / str(number), place / "straight" / kind.name, seconds, moments), flush=True)
    shutil.rmtree(place)


if __name__ == "__main__":
    runs, seed, kind = [*sys.argv[1:], *(str(int(time.time())), "run")[len(sys.argv) - 2 :]]
    main(int(runs), int(seed), KINDS[kind])
