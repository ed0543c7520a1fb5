"""Compiles kernels for a GPU that is not there, and reads what the assembler says of them.

``compiled(capability)`` stands a driver in for the absent one: kernels launched inside are specialised and compiled as
on that GPU, by the triton and the ptxas that are installed, and not run. The stand-in stays: the process is then good
for compiling only.
"""

import re
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

try:
    import triton
except ModuleNotFoundError as error:
    raise ImportError(f"{__name__} compiles with triton, which is not installed: pip install triton (Linux)") from error
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas

# Bytes of shared memory a block may have, by compute capability (CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability").
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
_ARCH = {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}


@dataclass(frozen=True)
class Report:
    """The cost of a kernel on a target. serialized: ptxas gave up overlapping wgmma (its remark C7515)."""

    kernel: str
    capability: int
    registers: int
    spilled: int  # bytes, stores and loads
    shared: int  # bytes
    serialized: bool
    wgmma_from_registers: int  # wgmma instructions in the PTX with A in registers
    wgmma_from_shared: int
    ptx: str


class _Driver:
    """The part of a driver that specialising and compiling ask for; each capability is a device of its own."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0


@contextmanager
def compiled(launchers: list, capability: int, options: dict):
    """Inside, what these modules launch is compiled instead of run; yields the list of Reports."""
    reports = []

    def compile_only(kernel, grid, tensor, args, **meta):
        reports.append(report(kernel.warmup(*args, grid=grid, **options, **meta), kernel.__name__, capability))

    launches = [module.launch for module in launchers]
    triton.runtime.driver.set_active(_Driver(capability))
    for module in launchers:
        module.launch = compile_only
    try:
        yield reports
    finally:
        for module, launch in zip(launchers, launches, strict=True):
            module.launch = launch


def report(binary, name: str, capability: int) -> Report:
    ptx = binary.asm["ptx"]
    log = _assembler_log(ptx, capability)
    wgmma = re.findall(r"wgmma\.mma_async[^{]*\{[^}]*\},\s*(\{|%)", ptx)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    return Report(
        kernel=name,
        capability=capability,
        registers=int(re.search(r"Used (\d+) registers", log).group(1)),
        spilled=sum(map(int, spills)),
        shared=binary.metadata.shared,
        serialized="C7515" in log,
        wgmma_from_registers=wgmma.count("{"),
        wgmma_from_shared=wgmma.count("%"),
        ptx=ptx,
    )


def _assembler_log(ptx, capability):
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [
            get_ptxas(capability).path,
            "-v",
            f"--gpu-name={_ARCH[capability]}",
            str(source),
            "-o",
            f"{folder}/kernel.cubin",
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr
