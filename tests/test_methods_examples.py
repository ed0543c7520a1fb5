"""The examples in the docstrings of edgepop_kernels.methods run and show what they say."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest
import torch

from edgepop_kernels import methods
from edgepop_kernels.methods import variational

# Where users find things in another place than where they are written.
INNER = {"arguments", "variational"}
MODULES = [methods, *(importlib.import_module(f"{methods.__name__}.{name}") for name in methods.__all__)]
# What a user starts with; the others are parts of these.
SHOWN = [
    methods.bayesian.VariationalLinear,
    methods.bayesian.VariationalConv2d,
    methods.bayesian.negative_elbo,
    methods.bayesian.scores,
    methods.bayesian.initial_means,
    methods.bayesian.ticket,
    methods.criteria.scores,
    methods.criteria.sign_mask,
    methods.criteria.prune,
    methods.criteria.treat_kept,
    methods.criteria.treat_pruned,
    methods.graphs.StaticGraph,
    methods.dynamic_graphs.DiscreteGraph,
    methods.dynamic_graphs.ContinuousGraph,
    methods.ode.odeint,
]


@pytest.mark.parametrize("module", [*MODULES, variational], ids=lambda module: module.__name__)
def test_examples_show_what_happens(module):
    found = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.FAIL_FAST, report=True)
    assert found.attempted > 0 and found.failed == 0


@pytest.mark.parametrize("shown", [*MODULES, *SHOWN], ids=lambda shown: shown.__name__)
def test_what_a_user_starts_with_has_an_example(shown):
    assert doctest.DocTestParser().get_examples(inspect.getdoc(shown))


def test_the_package_brings_its_modules_and_is_brought_by_none():
    """``import edgepop_kernels`` brings no methods; ``edgepop_kernels.methods`` all of its modules, and no plotting."""
    code = (
        "import sys, edgepop_kernels\n"
        "assert 'edgepop_kernels.methods' not in sys.modules\n"
        "import edgepop_kernels.methods as methods\n"
        "print(*(name for name in vars(methods) if not name.startswith('_')))\n"
        "assert not {'matplotlib', 'typer', 'rich', 'sklearn'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {module.name for module in pkgutil.iter_modules(methods.__path__)} - INNER
    assert names == set(methods.__all__) <= set(done.stdout.split())
