"""Small digits runs shared by the tests of the recipes."""

import csv
import io
import os
import signal

import torch
from rich.console import Console

from edgepop_kernels.recipes import checkpoint, job, registry
from edgepop_kernels.recipes.report import Report

NAME = "edge-popup-digits"
RECIPE = registry.find(NAME).recipe.override(epochs=4, widths=(16,), backend="reference", threads=1)
STEPS = 23  # of an epoch: 1437 images in batches of 64
NOTHING = job.Outputs(plots=False, step_times=False)


class SignalAt(Report):
    """Sends this process a signal after some number of steps."""

    def __init__(self, step, number=signal.SIGTERM):
        super().__init__(Console(file=io.StringIO()))
        self.left, self.number = step, number

    def progress(self, trainer):
        def count():
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)

        return _Yields(count)


class _Yields:
    def __init__(self, value):
        self.value = value

    def __enter__(self):
        return self.value

    def __exit__(self, *exception):
        return None


def quiet():
    return Report(Console(file=io.StringIO()))


def start(folder, recipe=RECIPE, report=None, name=NAME):
    return job.start(name, recipe, None, folder, NOTHING, report or quiet())


def resume(place, asked=None, report=None):
    return job.resume(place, asked or {}, None, NOTHING, report or quiet())


def rows(file, without=("run", "started")):
    with open(file, newline="") as text:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(text)]


def state(run, name="last"):
    return checkpoint.load(checkpoint.path(run, name))


def assert_same_run(run, other, names=("last", "best", "first")):
    for name in names:
        assert_same(state(run, name), state(other, name), name)
    assert (run / "log.csv").read_bytes() == (other / "log.csv").read_bytes()
    assert rows(run.parent / "results.csv")[-1] == rows(other.parent / "results.csv")[-1]


def assert_same(a, b, where):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where
