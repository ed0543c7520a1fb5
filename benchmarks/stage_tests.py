"""The third stage of ``first_contact.py``: the tests marked gpu, shared out between its processes, without xdist."""

import sys
from collections import Counter
from pathlib import Path

import pytest
from journal import main

ROOT = Path(__file__).resolve().parent.parent


def tests(worker):
    """The tests marked gpu; without a device those of the files given, whatever their marks."""
    marked = [file for file in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in file.read_text()]
    files = worker.job["tests"] or list(map(str, marked))
    chosen = ["-m", "gpu"] if worker.job["device"] == "cuda" else []
    options = ["-q", "--no-summary", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    options += ["-p", "no:faulthandler"]  # which would take our watch over what hangs off
    place = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    status = pytest.main([*place, *options, *chosen, *files], plugins=[_Recorder(worker)])
    sys.exit(0 if status in (0, 1, 5) else int(status))  # 1: some failed, as the journal says; 5: none was left


class _Recorder:
    """pytest's plugin that leaves this process its share of the tests, and writes down what becomes of each."""

    def __init__(self, worker):
        self._worker, self._outcome = worker, {}

    def pytest_collectreport(self, report):
        if report.failed and self._worker.index == 0:
            self._worker.lost(f"{report.nodeid} was not collected: {str(report.longrepr).strip().splitlines()[-1]}")

    def pytest_collection_finish(self, session):
        """After the marks have had their say. The first tests of all files come first: one file has most of them."""
        before = Counter()

        def place(test):
            before[test.path] += 1
            return before[test.path]

        spread = enumerate(sorted(session.items, key=place))
        session.items[:] = [test for n, test in spread if self._worker.has(n, test.nodeid)]

    def pytest_runtest_logstart(self, nodeid, location):
        self._outcome = {"outcome": "passed", "said": ""}
        self._worker.begin(nodeid)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            print(report.nodeid, report.longreprtext, sep="\n", file=self._worker.log)  # pytest would at its end
            said = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr))
            self._outcome = {"outcome": "failed", "said": f"{report.when}: {said}".partition("\n")[0]}
        elif report.skipped and self._outcome["outcome"] == "passed" and not hasattr(report, "wasxfail"):
            self._outcome = {"outcome": "skipped", "said": str(report.longrepr[-1])}

    def pytest_runtest_logfinish(self, nodeid, location):
        self._worker.end(nodeid, **self._outcome)


if __name__ == "__main__":
    main(tests)
