"""Kills training with SIGKILL at random moments, resumes it to its end, and compares it with a run left in peace.

``python tests/kill_runs.py 20``; test_recipes_resume runs a few. Each run may be killed up to three times, while it
starts, trains, writes or resumes. After every kill all files are read; at the end all are compared, bit for bit.
Nothing here computes before it forks, so that the children can make their own threads.
"""

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

import torch
import torch._dynamo
from recipe_runs import NAME, RECIPE, assert_same_run, resume, start, state

from edgepop_kernels.recipes import data
from edgepop_kernels.recipes.files import read_csv
from edgepop_kernels.recipes.runs import EPOCH_COLUMNS, RESULT_COLUMNS

KILLS = 3
SETTINGS = RECIPE.override(epochs=6, backend="auto")


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
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"a process ended with status {status}"
    return status != 0


def check_files(folder: Path) -> None:
    """Reads every file under ``folder``; what a writer had not finished is hidden, and is no file of a run."""
    readers = {".json": lambda file: json.loads(file.read_text()), ".pt": lambda file: state(file.parent, file.stem)}
    readers[".csv"] = lambda file: read_csv(file, EPOCH_COLUMNS if file.name == "log.csv" else RESULT_COLUMNS)
    for file in folder.rglob("*"):
        if file.is_file() and not file.name.endswith(".tmp"):
            readers[file.suffix](file)


def one(folder: Path, straight: Path, seconds: float, moments: random.Random) -> str:
    """Trains in ``folder``, disturbed; a line that says when."""
    story, run = [], None
    child = forked(lambda: start(folder, SETTINGS))
    for _ in range(moments.randint(1, KILLS)):
        after = moments.uniform(0, seconds)
        if not killed(child, after):
            break
        finished(forked(lambda: check_files(folder)))
        # Killed before its first checkpoint there is nothing to go on from: begin again, beside what is left.
        run = next((last.parent for last in sorted(folder.glob("*/last.pt"))), None)
        story.append(f"{after:.2f} s ({'nothing yet' if run is None else told(run)})")
        child = forked((lambda: start(folder, SETTINGS)) if run is None else (lambda run=run: resume(run)))
    else:
        finished(child)
    (run,) = (summary.parent for summary in folder.glob("*/summary.json"))
    assert {file.name for file in run.iterdir()} == {file.name for file in straight.iterdir()}
    finished(forked(lambda: assert_same_run(run, straight)))
    return f"killed after {', '.join(story) or 'its end'}: the same"


def told(run: Path) -> str:
    log = run / "log.csv"
    return f"{len(read_csv(log, EPOCH_COLUMNS)) if log.exists() else 0} epochs"


def main(runs: int, seed: int) -> None:
    torch.set_num_threads(1)
    data.load("digits", None)  # what takes seconds to import is imported once, not in every child
    place = Path(tempfile.mkdtemp(prefix="kill_runs-"))
    started = time.monotonic()
    finished(forked(lambda: start(place / "straight", SETTINGS)))
    seconds = time.monotonic() - started
    print(f"seed {seed}; undisturbed {seconds:.2f} s, in {place}", flush=True)
    for number in range(runs):
        moments = random.Random(f"{seed} {number}")
        print(number, one(place / str(number), place / "straight" / NAME, seconds, moments), flush=True)
    shutil.rmtree(place)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time()))
