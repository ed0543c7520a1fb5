"""Small comparisons on digits, one of each kind, shared by the tests that interrupt them."""

from recipe_runs import NOTHING, assert_same, quiet, rows

from edgepop_kernels.recipes import checkpoint, job, registry

SETTINGS = dict(epochs=2, batch_size=480, device="cpu", backend="reference", threads=1)  # 3 steps an epoch
RECIPES = {
    "bayesian-tickets-digits": dict(widths=(8,), criterion="random"),
    # Its lr falls after every epoch that is no best; its images are moved at random.
    "supermask-init-digits": dict(widths=(16,), patience=1, augment=True, lr=0.1, epochs=3),
    # Begins with the masks of the tasks before, and evaluates between its trainings.
    "supsup-digits": dict(widths=(8,), tasks=3, infer_batch=120),
    # Draws in its criteria and in what it resets weights to.
    "lottery-tickets-digits": dict(widths=(8,), rounds=2, criteria="snip,random", kept="rewind,random_reinit"),
}


def recipe(name, **settings):
    return registry.find(name).recipe.override(**SETTINGS | RECIPES[name] | settings)


def start(folder, name, report=None, **settings):
    return job.experiment(name, recipe(name, **settings), None, folder, NOTHING, report or quiet())


def finished(run):
    state = checkpoint.load(checkpoint.path(run, "finished"))
    return {name: value for name, value in state.items() if name != "seconds"}


def assert_same_comparison(run, other):
    """All files the same; but for when they were started, and how long they took."""
    assert {file.name for file in run.iterdir()} == {file.name for file in other.iterdir()}
    assert_same(finished(run), finished(other), "finished")
    for file in other.glob("*.csv"):
        assert (run / file.name).read_bytes() == file.read_bytes(), file.name
    assert (run / "summary.json").read_bytes() == (other / "summary.json").read_bytes()
    assert rows(run.parent / "results.csv") == rows(other.parent / "results.csv")
