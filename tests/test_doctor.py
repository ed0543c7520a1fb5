"""`python -m edgepop_kernels doctor`, and the command line where the extra `train` is missing."""

import os
import subprocess
import sys

import pytest
import torch
from isa import INSTRUCTION_SETS

import edgepop_kernels as ek
from edgepop_kernels import _native, doctor
from edgepop_kernels.backend import triton

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


@pytest.fixture
def unknown_set(monkeypatch):
    monkeypatch.setenv("EDGEPOP_ISA", "sse9")


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_an_unknown_instruction_set_is_reported_and_not_raised(unknown_set):
    done = python("from edgepop_kernels import doctor; print(doctor.report())")
    assert done.returncode == 0, done.stderr
    for name in ("native module", "backend native", "backend staged"):
        assert fact(name, done.stdout).startswith("EDGEPOP_ISA=sse9: allowed are ")
    assert fact("backend reference", done.stdout) == "available"
    assert "EDGEPOP_ISA" not in fact("backend cuda", done.stdout)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_doctor_offers_the_native_backend_where_its_instruction_set_is_here(monkeypatch, isa):
    monkeypatch.setenv("EDGEPOP_ISA", isa)
    done = python("from edgepop_kernels import doctor; print(doctor.report())")
    usable = fact("native module", done.stdout).startswith(f"kernels for {isa}, ")
    assert (fact("backend native", done.stdout) == "available") == usable
    assert usable or fact("backend native", done.stdout) == fact("native module", done.stdout)


def test_a_backend_that_cannot_have_its_instruction_set_is_not_available_and_the_reference_is(unknown_set):
    code = """
import torch, edgepop_kernels as ek
for name in ("native", "staged", "auto"):
    try:
        ek.use_backend(name)
    except RuntimeError as error:
        print(error)
with ek.use_backend("reference"):
    print(int(ek.mask(torch.randn(99), ek.TopK(0.5)).sum()))
ek.mask(torch.randn(99), ek.TopK(0.5))
"""
    done = python(code)
    native, staged, auto, kept = done.stdout.splitlines()
    assert native.startswith("backend 'native' is not available: EDGEPOP_ISA=sse9: allowed are ")
    assert staged.startswith("backend 'staged' is not available: EDGEPOP_ISA=sse9: allowed are ")
    assert auto.startswith("EDGEPOP_ISA=sse9: allowed are ")
    assert kept == "50"
    assert done.stderr.splitlines()[-1].startswith("RuntimeError: EDGEPOP_ISA=sse9: allowed are ")


@pytest.mark.parametrize("command", [["train", "--backend", "reference"], ["export", "nothing"]])
def test_a_command_ends_in_one_sentence_before_it_does_anything(unknown_set, tmp_path, command):
    done = subprocess.run(
        [sys.executable, "-m", "edgepop_kernels", *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("edgepop: EDGEPOP_ISA=sse9: allowed are ")
    assert not list(tmp_path.iterdir())


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
    assert "needs typer, which is not installed: pip install typer; or" in done.stderr
    assert "pip install '.[train]'" in done.stderr
    assert "edgepop_kernels[" not in done.stderr, "there is no distribution of this name to install"


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
import edgepop_kernels as ek
from edgepop_kernels import doctor, tune
"""


def test_without_triton_everything_else_works_and_what_needs_it_says_so():
    code = """
layer = ek.FusedSubnetLinear(40, 30)
layer(torch.randn(8, 40)).sum().backward()
print(ek.backends()["native"], tune.unavailable(), ek.backends()["triton"], sep="\\n")
"""
    done = python(WITHOUT_TRITON + code)
    native, *reasons = done.stdout.splitlines()
    assert native == "None", done.stderr
    assert len(reasons) == 2
    assert all(reason.startswith("triton is not installed") for reason in reasons)


def test_without_triton_what_needs_it_raises_and_says_so():
    code = """
for call in (lambda: ek.use_backend("triton"), tune.tune):
    try:
        call()
    except RuntimeError as error:
        print(error)
from edgepop_kernels.tuning import offline
"""
    done = python(WITHOUT_TRITON + code)
    backend, tuning = done.stdout.splitlines()
    assert backend.startswith("backend 'triton' is not available: triton is not installed")
    assert tuning.startswith("tune: triton is not installed")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: edgepop_kernels.tuning.offline compiles with triton, which is not installed")


@pytest.mark.parametrize("value", ["1", "TRUE", "on", "y", "0", "2", ""])
def test_the_interpreter_is_on_where_triton_says_so(monkeypatch, value):
    knobs = pytest.importorskip("triton.knobs", reason="triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert (triton.refuses(torch.device("cpu"), torch.float32) is None) == knobs.runtime.interpret


@pytest.mark.gpu
def test_names_the_gpu():
    assert torch.cuda.get_device_name() in doctor.report()
