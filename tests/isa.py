"""Code under another instruction set: the choice is made once in a process, so each runs in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INSTRUCTION_SETS = ["portable", "avx2", "avx512", "avx512bf16", "amx"]


def run_on(isa: str, code: str) -> None:
    """Runs ``code``, which finds the test modules, with EDGEPOP_ISA=``isa``; skips where this machine lacks it."""
    code = f"from edgepop_kernels import _native\nassert _native.isa() == {isa!r}\n{code}\nprint('passed')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "EDGEPOP_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    if "does not have it" in run.stderr or "allowed are" in run.stderr:
        pytest.skip(run.stderr.splitlines()[-1])
    assert run.stdout == "passed\n", run.stderr
