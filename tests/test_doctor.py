"""`python -m edgepop_kernels doctor`, and the command line where the extra `train` is missing."""

import subprocess
import sys

import pytest
import torch
from isa import INSTRUCTION_SETS

import edgepop_kernels as ek
from edgepop_kernels import _native, doctor

# Hides what the extra `train` brings, as on a machine where only torch is installed.
WITHOUT_EXTRAS = """
import runpy, sys
for name in ("typer", "rich", "sklearn", "matplotlib", "safetensors"):
    sys.modules[name] = None
sys.argv = ["edgepop", *{arguments!r}]
runpy.run_module("edgepop_kernels", run_name="__main__", alter_sys=True)
"""


def run_without_extras(*arguments):
    code = WITHOUT_EXTRAS.format(arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def fact(name, report=None):
    lines = [line for line in (report or doctor.report()).splitlines() if line.startswith(name + "  ")]
    assert len(lines) == 1, f"expected one line for {name!r}, got {lines}"
    return lines[0].removeprefix(name).strip()


def test_reports_this_process():
    assert fact("edgepop_kernels").startswith(ek.__version__)
    assert fact("torch") == torch.__version__
    assert fact("native module") == f"kernels for {_native.isa()}, built with {_native.compiler}"
    assert fact("threads").startswith(f"{torch.get_num_threads()} on")


def test_every_backend_has_a_line():
    for name, reason in ek.backends().items():
        assert fact(f"backend {name}") == (reason or "available")


def test_an_unknown_instruction_set_is_reported_and_not_raised(monkeypatch):
    code = "from edgepop_kernels import doctor; print(doctor.report())"
    monkeypatch.setenv("EDGEPOP_ISA", "sse9")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "EDGEPOP_ISA=sse9" in fact("native module", done.stdout)


@pytest.mark.parametrize("rule", ["Bernoulli()", "Threshold(0.5)", "TopK(0.5)"])
def test_an_unknown_instruction_set_is_an_error_in_whatever_comes_first(monkeypatch, rule):
    code = f"import torch, edgepop_kernels as ek; ek.mask(torch.randn(99_999), ek.{rule})"
    monkeypatch.setenv("EDGEPOP_ISA", "sse9")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "RuntimeError: EDGEPOP_ISA=sse9: allowed are" in done.stderr


def test_an_empty_instruction_set_names_none(monkeypatch):
    monkeypatch.setenv("EDGEPOP_ISA", "")
    code = "from edgepop_kernels import _native; print(_native.isa())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] in INSTRUCTION_SETS


def test_doctor_needs_no_extra():
    done = run_without_extras("doctor")
    assert done.returncode == 0, done.stderr
    assert fact("edgepop_kernels", done.stdout).startswith(ek.__version__)


def test_other_commands_name_the_extra_they_need():
    done = run_without_extras("train")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "pip install 'edgepop_kernels[train]'" in done.stderr


@pytest.mark.gpu
def test_names_the_gpu():
    assert torch.cuda.get_device_name() in doctor.report()
