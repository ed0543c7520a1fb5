"""Small digits runs shared by the tests of the recipes."""

import csv
import io
import os
import signal

from rich.console import Console

from edgepop_kernels.recipes import checkpoint, job, registry
from edgepop_kernels.recipes.report import Report

NAME = "edge-popup-digits"
RECIPE = registry.find(NAME).recipe.override(epochs=4, widths=(16,), backend="reference", threads=1)
STEPS = 23  # of an epoch: 1437 images in batches of 64
NOTHING = job.Outputs(plots=False)


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


def rows(file, without=("run", "started", "step_ms", "reference_step_ms", "reference_over_fused")):
    with open(file, newline="") as text:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(text)]


def state(run, name="last"):
    return checkpoint.load(checkpoint.path(run, name))
