"""What test_recipes_parallel has two processes do together: ``torchrun ... two_ranks.py FOLDER``.

Runs land in FOLDER; what each rank saw, in FOLDER/rank0.json and rank1.json; the threads that it had in the end, in
FOLDER/threads0.json and threads1.json.
"""

import json
import sys
from pathlib import Path

from recipe_runs import SignalAt, quiet, resume, start

from edgepop_kernels.recipes import data, job, parallel, registry
from edgepop_kernels.recipes.errors import Interrupted, UserError

# Batches of 33, the last of 18: uneven halves too, and none of so few rows that a kernel of another order sums them.
HALVES = dict(epochs=1, batch_size=33, threads=1, device="cpu")
EDGE_POPUP = registry.find("edge-popup-digits").recipe.override(**HALVES)
BERNOULLI = registry.find("supermask-bernoulli-digits").recipe.override(**HALVES)


def refused(action):
    try:
        action()
    except (UserError, Interrupted) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was wrong"


def main(folder: Path) -> None:
    saw = {"leads": parallel.leads()}
    start(folder / "edge-popup", EDGE_POPUP)
    start(folder / "bernoulli", BERNOULLI, name="supermask-bernoulli-digits")

    signalled = SignalAt(7) if not parallel.leads() else quiet()  # rank 1 alone is asked to stop
    saw["stopped"] = refused(lambda: start(folder / "stopped", EDGE_POPUP, signalled))
    summary = resume(folder / "stopped" / "edge-popup-digits")
    saw["accuracy"] = summary.accuracy

    saw["too small"] = refused(lambda: start(folder / "refused", EDGE_POPUP.override(batch_size=4, accumulate=3)))
    saw["missing run"] = refused(lambda: resume(folder / "nowhere"))
    load = data.load
    if not parallel.leads():
        data.load = lambda *_: fail("this file is here alone")
    saw["one rank's error"] = refused(lambda: start(folder / "refused", EDGE_POPUP))
    data.load = load
    job.runs.create = lambda *_: fail("no room")
    saw["the leader's error"] = refused(lambda: start(folder / "refused", EDGE_POPUP))
    rank = 0 if parallel.leads() else 1
    (folder / f"rank{rank}.json").write_text(json.dumps(saw))


def fail(words):
    raise UserError(words)


def threads():
    """The names of this process's threads, where the system tells."""
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with parallel.join() as world:
        main(folder)
    (folder / f"threads{world.rank}.json").write_text(json.dumps(threads()))
