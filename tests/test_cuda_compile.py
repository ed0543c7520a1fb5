"""Every .cu, compiled by nvcc as setup.py compiles it, for GPUs that need not be here: what ptxas says is the gate."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgepop_kernels.backend import cuda

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
# A multiprocessor has 65536 registers: room for the blocks of 256 threads that keep enough reads in flight.
MOST_REGISTERS = {"select_kernel": 80, "step_kernel": 128, "derive_kernel": 64, "pack_kernel": 32}

KERNELS = {
    "select.cu": 1,
    "mask_bits.cu": 1,
    "step.cu": 6,
}  # Sgd's and Adam's: by numbers of the host, by the device's, which one derives

with_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


def reports(log):
    """(kernel, architecture, registers, bytes spilled, bytes of stack) for every kernel in ptxas' log."""
    pattern = (
        r"Compiling entry function '(\w+)' for '(sm_\w+)'\n.*\n\s*(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads\n.*Used (\d+) registers"
    )
    for name, arch, stack, stores, loads, registers in re.findall(pattern, log):
        yield (
            re.search(r"\d([a-z_]+_kernel)", name).group(1),
            arch,
            int(registers),
            int(stores) + int(loads),
            int(stack),
        )


@with_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_nothing_spills_and_enough_blocks_fit(source, tmp_path, record_property):
    build = runpy.run_path(str(ROOT / "setup.py"), run_name="build")
    flags = [
        *build["CUDA_FLAGS"],
        f"-I{ROOT / 'csrc'}",
        *build["cuda_arch_flags"](),
        "-Werror=all-warnings",
        "-Xptxas=-v",
    ]
    command = ["nvcc", *flags, "-c", str(source), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = list(reports(done.stderr))
    assert len(found) == 2 * KERNELS.get(source.name, 0)
    for kernel, arch, registers, spilled, stack in found:
        record_property(f"{kernel} {arch}", f"{registers} registers, {spilled} bytes spilled")
        assert registers <= MOST_REGISTERS[kernel] and spilled == 0 and stack == 0, (
            kernel,
            arch,
            registers,
            spilled,
            stack,
        )


@pytest.mark.skipif(cuda._cuda is None, reason="the module was built without CUDA")
class TestModule:
    def test_says_what_it_was_compiled_for(self):
        assert re.fullmatch(r"CUDA \d+\.\d+ for( sm_\d+)+", cuda._cuda.compiled)

    @pytest.mark.skipif(sys.platform != "linux", reason="reads ELF symbols")
    def test_keeps_its_cuda_runtime_to_itself(self):
        """Exported, it could be mixed with the runtime of torch, another version in the same process."""
        symbols = subprocess.run(["nm", "-D", _native_file()], check=True, capture_output=True, text=True).stdout
        assert "PyInit__native" in symbols
        assert not [line for line in symbols.splitlines() if "cuda" in line]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="checks a machine without a device")
    def test_without_a_driver_a_launch_is_refused_in_words(self):
        with pytest.raises(RuntimeError, match=r"^cuda\w+: .*(driver|device)"):
            cuda._cuda.select((0, 0, 0, 0, 0, 0, 0), 0, 0)


def _native_file():
    from edgepop_kernels import _native

    return _native.__file__
