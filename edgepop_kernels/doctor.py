"""The report of ``python -m edgepop_kernels doctor``: this machine, its software, and which backends run on it."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import torch

from . import __version__
from .backend import backends

# Those that kernels here or in torch are chosen by, in the words of Linux's /proc/cpuinfo.
INSTRUCTION_SETS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_bf16")


def report() -> str:
    """Plain text, one fact a line, its name in the first column."""
    facts = [
        ("edgepop_kernels", f"{__version__}, {Path(__file__).parent}"),
        ("native module", _native_module()),
        ("CUDA kernels", _cuda_kernels()),
        ("python", f"{platform.python_version()}, {platform.platform()}"),
        ("torch", torch.__version__),
        ("triton", installed("triton")),
        ("cpu", _cpu()),
        ("threads", f"{torch.get_num_threads()} on {os.cpu_count()} CPUs"),
        ("OpenMP", _openmp()),
        *(("gpu", gpu) for gpu in _gpus()),
        *((f"backend {name}", reason or "available") for name, reason in backends().items()),
    ]
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:{width}}  {text}" for name, text in facts)


def _native_module() -> str:
    try:
        from . import _native  # type: ignore[attr-defined]  # compiled

        passed_over = _native.isa_passed_over()
        threads = "" if _native.threads else ", which has no OpenMP: one thread"
        isa = f"{_native.isa()}{passed_over and f' ({passed_over})'}"
        return f"kernels for {isa}, built with {_native.compiler}{threads}"
    except ImportError as error:
        return f"does not load: {error}"
    except RuntimeError as error:  # EDGEPOP_ISA names a set that this machine or this build lacks
        return str(error)


def _cuda_kernels() -> str:
    try:
        from . import _native  # type: ignore[attr-defined]  # compiled
    except ImportError:
        return "none"
    return _native.cuda.compiled if hasattr(_native, "cuda") else "none: the module was built without nvcc"


def installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The CPU's name as Linux gives it; its architecture elsewhere."""
    model = re.search(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return model.group(1).strip() if model else platform.machine()


def _cpu() -> str:
    flags = re.search(r"^flags\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    words = flags.group(1).split() if flags else []
    sets = " ".join(name for name in INSTRUCTION_SETS if name in words)
    return f"{processor()}, {sets or 'instruction sets unknown'}"


def openmp_runtimes() -> list[str]:
    """Paths of the OpenMP runtimes mapped into this process, as Linux names them; empty elsewhere."""
    return sorted(set(re.findall(r" (/.*/lib(?:gomp|iomp5|omp)[-.].*)$", _read("/proc/self/maps"), re.MULTILINE)))


def _openmp() -> str:
    runtimes = openmp_runtimes()
    if not runtimes:
        return "runtime unknown"
    text = ", ".join(runtimes)
    return text if len(runtimes) == 1 else f"{len(runtimes)} runtimes, whose threads compete: {text}"


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        built = "torch is built without CUDA" if torch.version.cuda is None else "torch sees no device"
        return [f"none: {built}"]
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [
        f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.multi_processor_count} multiprocessors, "
        f"{gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        for gpu in found
    ]


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""
