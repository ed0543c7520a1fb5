"""The AMX micro-kernels: their sources with C++ in place of the tile instructions, and the choice of instruction set.

Few machines have AMX, and none of those the tests run on has to: convolutions and weight gradients are compiled anew
with amx_emulation.h and put where the native module is, under the tests of the other instruction sets.
"""

import ctypes
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import test_native_conv as conv
import test_native_wgrad as wgrad
import torch

from edgepop_kernels import doctor
from edgepop_kernels.backend import native

TESTS = Path(__file__).parent
BF16 = torch.bfloat16


class Emulated:
    """The convolutions of ``_native`` in a library with a C interface."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))

    def conv_forward(self, geometry, x, w, mask, bias, y, threads):
        self.library.conv_forward(*map(_words, (geometry, x, w, mask)), ctypes.c_void_p(bias), _words(y), threads)

    def conv_backward_input(self, geometry, dy, w, mask, dx, threads):
        self.library.conv_backward_input(*map(_words, (geometry, dy, w, mask, dx)), threads)

    def conv_backward_weight(self, geometry, dy, x, w, mask, score_map, ds, weight_grad, dw, threads):
        operands = map(_words, (geometry, dy, x, w, mask))
        self.library.conv_backward_weight(*operands, score_map, _words(ds), weight_grad, _words(dw), threads)


def _words(values):
    """(1, (2, 3), 4) as four int64."""
    flat = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
    return (ctypes.c_int64 * len(flat))(*flat)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if "avx512_bf16" not in doctor.report():
        pytest.skip("outside its tiles the amx instruction set is AVX512-BF16, which this CPU lacks")
    build = runpy.run_path(str(TESTS.parent / "setup.py"), run_name="build")
    path = tmp_path_factory.mktemp("amx") / "amx_emulated.so"
    csrc = TESTS.parent / "csrc"
    flags = [flag for flag in build["CXX_FLAGS"] if flag != "-fvisibility=hidden"]
    flags += ["-O1", "-fopenmp", "-ftree-vectorize", "-Werror", f"-I{csrc}", f"-I{TESTS}"]
    cxx, objects = build["cxx_command"](), []
    below = (csrc / "cpu/forward/unit.cpp", csrc / "cpu/wgrad/unit.cpp")
    for isa, source in (*(("avx512", unit) for unit in below), ("avx512bf16", TESTS / "amx_emulated.cpp")):
        objects.append(str(path.with_suffix(f".{source.parent.name}.{isa}.o")))
        own = [*build["ISAS"][isa][0], f"-DEDGEPOP_ISA={isa}"]
        subprocess.run([*cxx, *flags, *own, "-c", str(source), "-o", objects[-1]], check=True)
    subprocess.run([*cxx, "-fopenmp", "-shared", *objects, "-o", str(path)], check=True)
    return Emulated(path)


@pytest.fixture
def emulated(library, monkeypatch):
    monkeypatch.setattr(native.compiled, "kernels", library)


def test_named_cases(emulated):
    """Odd channels, every layout, borders, strides, dilations, groups, ties."""
    for case in conv.NAMED:
        pixels = min(torch.Size(case.out_size).numel(), torch.Size(case.size).numel())
        depthwise = case.groups == min(case.channels)  # no tiles there
        # A norm over a handful of cancelling outputs says nothing.
        if not depthwise and case.batch * min(case.channels) * pixels >= 64:
            conv.check(replace(case, dtype=BF16))


def test_drawn_cases(emulated):
    for case in conv.drawn(40):
        if case.dtype is BF16:
            conv.check(case)


@pytest.mark.parametrize("layout", ["rows", "columns", "gaps"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 31, 64), (15, 33, 17), (17, 65, 49), (47, 64, 130)])
def test_linear(emulated, rows, inputs, outputs, layout):
    """Blocks of 1 to 32 rows, one to four vectors of columns, depths on either side of a tile's 32."""
    conv.test_linear(rows, inputs, outputs, BF16, layout)


def test_drawn_weight_gradients(emulated):
    """Every layout, stride, dilation and group, and whatever becomes of the sums."""
    for seed in range(60):
        case = wgrad.drawn_case(seed)
        if case.dtype is BF16:
            wgrad.check(case)


@pytest.mark.parametrize("rows", [19, 20, 31, 33, 257])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 16), (33, 47), (17, 100), (130, 49)])
def test_weight_gradient_of_linear(emulated, rows, inputs, outputs):
    """Runs on either side of a tile's 16 pairs, an odd row, one to four vectors of lanes, tiles of fewer rows."""
    wgrad.check(wgrad.Case(rows, inputs, outputs, 1, (1, 1), (1, 1), dtype=BF16, weight_grad="all"))


@pytest.mark.parametrize("size", [(5, 16), (4, 17), (9, 33)])
def test_weight_gradient_of_convolutions(emulated, size):
    """Runs that a border shortens, several blocks, and rows of more than a panel."""
    case = wgrad.Case(4, 24, 70, 1, size, (3, 3), padding=(1, 1), dtype=BF16, weight_dtype=BF16)
    wgrad.check(case)
    wgrad.check(replace(case, channels=100, out=17, x_layout="contiguous", dy_layout="contiguous"))


def test_a_weight_gradient_reads_nothing_beside_its_runs(emulated):
    """Not-a-numbers that no tap but some meets: the other taps' sums stay numbers."""
    x, dy = torch.randn(4, 16, 9, 9).to(BF16), torch.randn(4, 16, 9, 9).to(BF16)
    x[:, :, 0] = float("nan")
    weight, scores = torch.randn(16, 16, 3, 3), torch.randn(16, 16, 3, 3)
    given, cut, _ = wgrad.mask_arguments(scores, "abs", kept=9)
    geometry = dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
    ds, _ = native.masked_conv2d_dw(dy, x, weight, given, cut, "abs", True, "none", **geometry)
    assert not ds[:, :, 2].isnan().any()  # the last row of taps meets the image from its second row on
    assert ds[:, :, :2].isnan().all()


def test_any_number_of_threads_gives_the_same_bits(emulated):
    case = replace(conv.BASE, batch=3, channels=(48, 80), size=(9, 11), dtype=BF16)
    conv.test_any_number_of_threads_gives_the_same_bits(case)


def test_named_by_the_environment():
    """It runs, or the error says what is missing; nothing narrower takes its place."""
    code = "import torch; from edgepop_kernels import _native; print(_native.isa())"
    env = {**os.environ, "EDGEPOP_ISA": "amx", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    if run.returncode == 0:
        assert run.stdout == "amx\n"
    else:
        reasons = ("this CPU does not have it", "the operating system does not save", "the operating system refuses")
        assert any(f"EDGEPOP_ISA=amx: {reason}" in run.stderr for reason in reasons), run.stderr


def test_is_the_first_choice_where_it_can_run():
    """The doctor reads the processor's flags; the choice is the module's own."""
    if "EDGEPOP_ISA" in os.environ:
        pytest.skip("EDGEPOP_ISA names another instruction set")
    report = doctor.report()
    if "amx_bf16" in report:
        assert "kernels for amx," in report or "(not amx: the operating system" in report
    else:
        assert "kernels for amx" not in report
