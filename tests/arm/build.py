"""Compiles kernels.cpp, and the kernels as setup.py compiles them on 64-bit ARM, with the cross-compiler CXX.

``python tests/arm/build.py FOLDER``: the program is FOLDER/kernels, linked so that an emulator of the processor alone
can run it.
"""

import os
import platform
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(folder):
    os.chdir(ROOT)
    os.environ["EDGEPOP_CUDA_ARCHS"] = ""
    platform.machine = lambda: "aarch64"
    build = runpy.run_path("setup.py", run_name="build")
    sources = [source for source in build["cpp_sources"]() if Path(source).parent.name != "module"]
    folder.mkdir(parents=True, exist_ok=True)
    text = build["ninja_file"]([*sources, "tests/arm/kernels.cpp"], folder.resolve() / "kernels")
    (folder / "build.ninja").write_text(text.replace(" -shared ", " -static "))
    subprocess.run([*build["ninja_command"](), "-C", str(folder)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
