"""Builds edgepop_kernels._native with ninja: C++ always, CUDA where nvcc is found.

No torch here: the module takes addresses, so it neither includes torch's headers nor depends on its version, and
pip's isolated build needs pybind11, setuptools and ninja only.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine() in ("x86_64", "AMD64")
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra", "-DNDEBUG"]
# One translation unit per instruction set, named by its file: csrc/cpu/isa_<name>.cpp.
ISA_FLAGS = {
    "isa_portable": [],
    "isa_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "isa_avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"],
    "isa_avx512bf16": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma", "-mf16c"],
}


def compiler():
    named = os.environ.get("CXX")
    for candidate in [named] if named else ["g++", "c++", "clang++"]:
        if shutil.which(shlex.split(candidate)[0]):
            return candidate
    wanted = f"CXX={named} was not found" if named else "none of g++, c++, clang++ was found"
    sys.exit(f"edgepop_kernels needs a C++17 compiler: {wanted}. Install one (Debian: apt-get install g++) or set CXX.")


class NinjaBuild(build_ext):
    """Writes one build.ninja into the build folder and runs it; ninja gives parallel and incremental builds."""

    def build_extension(self, ext):
        root = Path(__file__).resolve().parent
        temp = Path(self.build_temp).resolve()
        temp.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)

        includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
        lines = [
            f"cxx = {compiler()}",
            "rule cxx",
            "  command = $cxx -MMD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = $cxx -shared -fopenmp $in -o $out",
        ]
        objects = []
        for source in ext.sources:
            obj = Path(source).with_suffix(".o").name
            flags = CXX_FLAGS + includes + ISA_FLAGS.get(Path(source).stem, [])
            flags += shlex.split(os.environ.get("CXXFLAGS", ""))
            lines += [f"build {obj}: cxx {escape(root / source)}", f"  flags = {shlex.join(flags)}"]
            objects.append(obj)
        lines += [f"build {escape(target)}: link {' '.join(objects)}", ""]
        (temp / "build.ninja").write_text("\n".join(lines))
        subprocess.run([*ninja(), "-C", str(temp)], check=True)


def escape(path):
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def ninja():
    try:
        import ninja as package
    except ImportError:
        return ["ninja"]
    return [str(Path(package.BIN_DIR) / "ninja")]


def sources():
    found = sorted(str(p) for p in Path("csrc").rglob("*.cpp"))
    return found if X86 else [s for s in found if Path(s).stem not in ISA_FLAGS or "portable" in s]


setup(
    ext_modules=[Extension("edgepop_kernels._native", sources())],
    cmdclass={"build_ext": NinjaBuild},
)
