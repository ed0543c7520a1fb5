"""``pytest benchmarks/ --benchmark-only``: every row is checked against the oracle, then its columns are timed."""

import functools
import shlex
import sys
from dataclasses import asdict

import pytest
import torch
from columns import fused_backend
from measure import replay, replayed_seconds
from peaks import peak_of
from report import measured, print_table, write_results
from rows import Setup, columns_of


def pytest_addoption(parser):
    group = parser.getgroup("edgepop_kernels benchmarks")
    group.addoption("--full", action="store_true", help="every shape, not only those of a five-minute run on 2 cores")
    group.addoption("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    group.addoption("--backend", help="of the fused column; default: native, and on CUDA the first that is available")
    group.addoption("--compile", action="store_true", help="add the column torch.compile(GetSubnetFaster)")
    group.addoption("--check", action="store_true", help="check every row and time none; with -n auto, side by side")
    group.addoption("--results", metavar="FILE", help="write the table, the machine and the versions as JSON")


def pytest_configure(config):
    # One table at the end instead of pytest-benchmark's, which --benchmark-verbose brings back.
    config.option.benchmark_quiet = True
    config.option.benchmark_disable |= config.option.check
    config.stash[_ARENA] = Arena(config)


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption
    cases = []
    for row in metafunc.module.ROWS if torch.device(option("--device")).type == "cpu" else metafunc.module.GPU_ROWS:
        if row.full and not option("--full"):
            continue
        marks = pytest.mark.benchmark(group=f"{row.group}: {row}", timer=replayed_seconds)
        cases += [
            pytest.param(row, column, id=f"{row}-{column}".replace(" ", "-"), marks=marks)
            for column in (("fused",) if option("--check") else _columns(row, metafunc.config))
        ]
    metafunc.parametrize(("row", "column"), cases)


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[_ARENA].results
    if not results:
        return
    arena = config.stash[_ARENA]
    print_table(terminalreporter, arena.setup, arena.peak, results)
    if config.getoption("--results"):
        command = shlex.join(["pytest", *sys.argv[1:]])
        write_results(config.getoption("--results"), arena.setup, arena.peak, list(map(asdict, results)), command)


@pytest.fixture
def arena(request):
    return request.config.stash[_ARENA]


def _columns(row, config):
    device = torch.device(config.getoption("--device"))
    return columns_of(row, device, config.getoption("--compile") or (device.type != "cpu" and row.compiled))


class Arena:
    """Holds the samples of the row in hand: the first column that asks has all columns checked and timed."""

    def __init__(self, config):
        device = torch.device(config.getoption("--device"))
        self.setup = Setup(device, config.getoption("--backend") or fused_backend(device))
        self.results = []
        self._config = config
        self._row = self._samples = None

    def enter(self, row, column, benchmark):
        """Replay the samples of ``column`` into ``benchmark``; every column of a row that failed its check fails."""
        if self._config.getoption("--check"):
            benchmark(row.contest(_columns(row, self._config), self.setup).check)
            return
        if row is not self._row:
            self._row, self._samples = row, None
            self._samples = self._run(row)
        if self._samples is None:
            pytest.fail(f"no time for {row}: it failed before it could be measured, see its first column")
        benchmark.extra_info.update(row=str(row), column=column)
        replay(benchmark, self._samples[column])

    def _run(self, row):
        result, samples = measured(row, _columns(row, self._config), self.setup, self.peak)
        self.results.append(result)
        return samples

    @functools.cached_property
    def peak(self):
        return peak_of(self.setup.device)


_ARENA = pytest.StashKey[Arena]()
