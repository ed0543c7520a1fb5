"""``pytest benchmarks/ --benchmark-only``: every row is checked against the oracle, then its columns are timed."""

import pytest
import torch
from columns import fused_backend
from measure import interleave, replay, replayed_seconds
from report import Result, print_table, write_results
from rows import LAYER_COLUMNS, Setup

import edgepop_kernels as ek


def pytest_addoption(parser):
    group = parser.getgroup("edgepop_kernels benchmarks")
    group.addoption("--full", action="store_true", help="every shape, not only those of a five-minute run on 2 cores")
    group.addoption("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    group.addoption("--backend", help="of the fused column; default: native, and on CUDA the first that is available")
    group.addoption("--compile", action="store_true", help="add the column torch.compile(GetSubnetFaster)")
    group.addoption("--results", metavar="FILE", help="write the table, the machine and the versions as JSON")


def pytest_configure(config):
    # One table at the end instead of pytest-benchmark's, which --benchmark-verbose brings back.
    config.option.benchmark_quiet = True
    config.stash[_ARENA] = Arena(config)


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption
    cases = []
    for row in metafunc.module.ROWS:
        if row.full and not option("--full"):
            continue
        marks = pytest.mark.benchmark(group=f"{row.group}: {row}", timer=replayed_seconds)
        cases += [
            pytest.param(row, column, id=f"{row}-{column}".replace(" ", "-"), marks=marks)
            for column in _columns(row, option("--compile"))
        ]
    metafunc.parametrize(("row", "column"), cases)


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[_ARENA].results
    if not results:
        return
    setup = config.stash[_ARENA].setup
    print_table(terminalreporter, setup, results)
    if config.getoption("--results"):
        write_results(config.getoption("--results"), setup, results)


@pytest.fixture
def arena(request):
    return request.config.stash[_ARENA]


def _columns(row, with_compile):
    if row.columns != LAYER_COLUMNS:
        return row.columns
    staged = ("staged",) if ek.backends().get("staged", "not built") is None else ()
    return (*row.columns, *staged, *(("compile",) if with_compile else ()))


class Arena:
    """Holds the samples of the row in hand: the first column that asks has all columns checked and timed."""

    def __init__(self, config):
        device = torch.device(config.getoption("--device"))
        self.setup = Setup(device, config.getoption("--backend") or fused_backend(device))
        self.results = []
        self._with_compile = config.getoption("--compile")
        self._row = self._samples = None

    def enter(self, row, column, benchmark):
        """Replay the samples of ``column`` into ``benchmark``; every column of a row that failed its check fails."""
        if row is not self._row:
            self._row, self._samples = row, None
            self._samples = self._run(row)
        if self._samples is None:
            pytest.fail(f"no time for {row}: it failed before it could be measured, see its first column")
        benchmark.extra_info.update(row=str(row), column=column)
        replay(benchmark, self._samples[column])

    def _run(self, row):
        contest = row.contest(_columns(row, self._with_compile), self.setup)
        contest.check()
        samples = interleave(contest.columns, self.setup.device, row.budget_s)
        self.results.append(Result.of(row, contest, samples))
        return samples


_ARENA = pytest.StashKey[Arena]()
