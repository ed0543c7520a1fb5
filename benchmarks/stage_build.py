"""The first stage of ``first_contact.py``: the native module, for the device's architecture alone."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from journal import main

ROOT = Path(__file__).resolve().parent.parent


def build(worker):
    """One item; ninja compiles what has changed."""
    worker.run({"native module": partial(_build, Path(worker.job["folder"]), worker.job["about"]["capability"])})


def _build(folder, capability):
    for module in (folder / "lib" / "edgepop_kernels").glob("_native*"):
        module.unlink()  # linked anew in a second; a build that fails leaves none of older sources
    # Its kernels for CPUs are not what is measured: one set of them, which takes half as long as with -O3.
    environment = {"EDGEPOP_CXXFLAGS": "-O1", "EDGEPOP_ISAS": "portable", **os.environ}
    home = next(
        (h for h in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if h and Path(h, "bin/nvcc").exists()), None
    )
    if home and not shutil.which("nvcc"):
        environment["CUDA_HOME"] = home
    nvcc = (shutil.which("nvcc") or home) and capability
    environment["EDGEPOP_CUDA_ARCHS"] = architecture(capability) if nvcc else ""
    command = [sys.executable, "setup.py", "--quiet", "build_ext"]
    command += ["--build-temp", str(folder / "objects"), "--build-lib", str(folder / "lib")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return f"for sm_{environment['EDGEPOP_CUDA_ARCHS']}" if nvcc else "without CUDA: there is no nvcc", None


def architecture(capability):
    """As EDGEPOP_CUDA_ARCHS names it: from Hopper on with what that architecture alone has."""
    major, minor = capability
    return f"{major}{minor}{'a' if major >= 9 else ''}"


if __name__ == "__main__":
    main(build)
