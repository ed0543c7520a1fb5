"""Builds edgepop_kernels._native with ninja: C++ always, CUDA where nvcc is found.

No torch here: the module takes addresses, so it neither includes torch's headers nor depends on its version, and
pip's isolated build needs setuptools, pybind11 and ninja only. What is built never depends on a GPU being visible.

Environment:
  CXX                 the C++17 compiler (GCC 11, clang 12 or newer); g++, c++ or clang++ on PATH where unset
  CXXFLAGS            goes before the flags chosen here, so that a distribution's -O2 does not undo -O3
  EDGEPOP_CXXFLAGS    goes after them, and to the linker: sanitizers, -O0, -Werror
  EDGEPOP_ISAS        the instruction sets beside the portable one, as in "avx2 amx", with those they build on; all that
                      the processor's family has where unset
  CUDA_HOME           the CUDA toolkit; nvcc on PATH where unset
  EDGEPOP_CUDA_ARCHS  what nvcc compiles for, as in "80 90a 90+PTX"; empty leaves CUDA out
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-DNDEBUG"]
CUDA_FLAGS = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", "-DNDEBUG"]
# What each instruction set adds to the compiler's flags, the units that it compiles, and the set that has the others.
_ALL = ["forward/unit", "wgrad/unit", "select/unit", "optim/unit"]
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
_BF16 = [*_AVX512, "-mavx512bf16"]
ISAS = {
    "portable": ([], _ALL, None),
    "avx2": (["-mavx2", "-mfma", "-mf16c"], _ALL, None),
    "avx512": (_AVX512, _ALL, None),
    "avx512bf16": (_BF16, ["forward/unit", "wgrad/unit"], "avx512"),
    "amx": ([*_BF16, "-mamx-tile", "-mamx-bf16"], ["forward/tiles", "wgrad/tiles"], "avx512bf16"),
    "neon": (["-DEDGEPOP_NEON"], _ALL, None),  # compilers for 64-bit ARM have it on
}
_FAMILIES = {"x86_64": ["avx2", "avx512", "avx512bf16", "amx"], "aarch64": ["neon"]}
_FAMILIES |= {"AMD64": _FAMILIES["x86_64"], "arm64": _FAMILIES["aarch64"]}
APPLE = sys.platform == "darwin"
FAMILY = ["portable", *_FAMILIES.get(platform.machine(), [])]
UNITS = {Path("csrc/cpu", f"{unit}.cpp") for _, units, _ in ISAS.values() for unit in units}
RULES = """\
rule cxx
  command = {cxx} -MMD -MF $out.d $flags -c $in -o $out
  description = compile $out
  depfile = $out.d
  deps = gcc
rule nvcc
  command = {nvcc} -MMD -MF $out.d $flags -c $in -o $out
  description = compile $out
  depfile = $out.d
  deps = gcc
rule link
  command = {link} -shared $in -o $out
  description = link $out
"""


class FreshPackage(build_py):
    """Copies the package into an empty folder: all that lies there is packed, modules that were removed since too."""

    def run(self):
        earlier = Path(self.build_lib, "edgepop_kernels").resolve()
        if earlier != ROOT / "edgepop_kernels" and not self.editable_mode:
            shutil.rmtree(earlier, ignore_errors=True)
        super().run()


class NinjaBuild(build_ext):
    """Writes one build.ninja into the build folder and runs it; ninja compiles in parallel."""

    def finalize_options(self):
        super().finalize_options()
        if self.inplace:  # editable too, for which setuptools names a folder that it throws away: all compiled again
            self.build_temp = "build/inplace"

    def build_extension(self, ext):
        temp = Path(self.build_temp).resolve()
        temp.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        (temp / "build.ninja").write_text(ninja_file(ext.sources, target))
        progress = {"NINJA_STATUS": "[%f/%t, %e s] "}
        if subprocess.run([*ninja_command(), "-C", str(temp)], check=False, env=progress | os.environ).returncode:
            sys.exit("edgepop_kernels: the native module was not built, what is written above says why")


def ninja_file(sources, target):
    cxx = cxx_command()
    cuda_sources = [str(path) for path in sorted(Path("csrc").rglob("*.cu"))]
    nvcc = nvcc_command(cxx) if cuda_sources else None
    user_flags = shlex.split(os.environ.get("EDGEPOP_CXXFLAGS", ""))
    openmp = openmp_flags(cxx)
    cxx_flags = shlex.split(os.environ.get("CXXFLAGS", "")) + CXX_FLAGS + openmp + include_flags()
    # Apple's linker wants to be told that Python's symbols are the interpreter's.
    link = [
        *cxx,
        *(["-undefined", "dynamic_lookup"] if APPLE else []),
        *(f for f in openmp if f == "-fopenmp"),
        *user_flags,
    ]
    if nvcc:
        sources = sources + cuda_sources
        cxx_flags += ["-DEDGEPOP_CUDA"]
        # nvcc links its static runtime, so that the wheel loads on machines without CUDA.
        link = nvcc + ["-Xcompiler=" + flag.replace(",", "\\,") for flag in link[len(cxx) :]]

    edges, objects = [], []

    def compile_one(source, obj, rule, flags):
        edges.extend([f"build {escape(obj)}: {rule} {escape(ROOT / source)}", f"  flags = {shlex.join(flags)}"])
        objects.append(escape(obj))

    isas = chosen_isas()
    for isa in isas:  # first: they take longest
        own, units, _ = ISAS[isa]
        for unit in units:
            flags = [*cxx_flags, f"-DEDGEPOP_ISA={isa}", *own, *user_flags]
            compile_one(f"csrc/cpu/{unit}.cpp", Path("cpu", unit).with_suffix(f".{isa}.o"), "cxx", flags)
    cxx_flags += [f"-DEDGEPOP_HAS_{isa.upper()}" for isa in isas]
    for source in map(Path, sources):
        obj = Path(*source.parts[source.parts[0] == "csrc" :]).with_suffix(".o")
        if source.suffix == ".cu":
            compile_one(source, obj, "nvcc", [*CUDA_FLAGS, f"-I{ROOT / 'csrc'}", *cuda_arch_flags()])
        elif source not in UNITS:
            compile_one(source, obj, "cxx", cxx_flags + user_flags)
    edges += [f"build {escape(target)}: link {' '.join(objects)}", ""]
    rules = RULES.format(cxx=shlex.join(cxx), nvcc=shlex.join(nvcc or ["nvcc"]), link=shlex.join(link))
    return rules + "\n".join(edges)


def chosen_isas():
    """The instruction sets to compile: of EDGEPOP_ISAS or the processor's family, with what they stand on; portable."""
    named = os.environ.get("EDGEPOP_ISAS", "").replace(",", " ").split() or FAMILY
    chosen = {"portable"}
    for isa in named:
        if isa not in FAMILY:
            sys.exit(f'EDGEPOP_ISAS: expected names of {", ".join(FAMILY)}, got "{isa}"')
        while isa is not None:
            chosen.add(isa)
            isa = ISAS[isa][2]
    return [isa for isa in FAMILY if isa in chosen]


def cxx_command():
    named = os.environ.get("CXX")
    for candidate in [named] if named else ["g++", "c++", "clang++"]:
        command = shlex.split(candidate)
        if shutil.which(command[0]):
            return command
    missing = f"CXX={named} was not found" if named else "none of g++, c++, clang++ is on PATH"
    sys.exit(f"edgepop_kernels needs a C++17 compiler, and {missing}. Debian: apt-get install g++; or set CXX.")


def openmp_flags(cxx):
    """Apple's clang comes without OpenMP: there kernels run on one thread, and `edgepop doctor` says so."""
    if APPLE:
        probe = [*cxx, "-fopenmp", "-x", "c++", "-fsyntax-only", "-"]
        if subprocess.run(probe, input=b"#include <omp.h>\n", capture_output=True, check=False).returncode:
            return ["-Wno-unknown-pragmas"]
    return ["-fopenmp"]


def nvcc_command(cxx):
    """nvcc with `cxx` as its host compiler; None where CUDA is left out."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)
    if home and not nvcc:
        sys.exit(f"edgepop_kernels: CUDA_HOME={home} has no bin/nvcc. Correct it, or unset it to build without CUDA.")
    wanted = os.environ.get("EDGEPOP_CUDA_ARCHS", "").strip()
    if wanted and not nvcc:
        sys.exit(f"EDGEPOP_CUDA_ARCHS={wanted} asks for CUDA, and nvcc is not on PATH. Set CUDA_HOME, or unset it.")
    if not nvcc or not cuda_arch_flags():
        return None
    host = [word for word in cxx if not word.startswith("-")][-1]  # g++ in "ccache g++ -m64"
    return [nvcc, "-ccbin", host]


def cuda_arch_flags():
    flags = []
    for arch in os.environ.get("EDGEPOP_CUDA_ARCHS", "80 90+PTX").replace(",", " ").split():
        match = re.fullmatch(r"(\d{2,3}[af]?)(\+PTX)?", arch)
        if not match:
            sys.exit(f'EDGEPOP_CUDA_ARCHS: expected entries like 80, 90a or 90+PTX, got "{arch}"')
        number, ptx = match.groups()
        code = f"[sm_{number},compute_{number}]" if ptx else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return flags


def include_flags():
    python = sysconfig.get_path("include")
    if not Path(python, "Python.h").exists():
        sys.exit(f"edgepop_kernels needs Python.h, and {python} has none. Debian: apt-get install python3-dev.")
    return [f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}", f"-I{python}"]


def ninja_command():
    try:
        import ninja
    except ImportError:
        if not shutil.which("ninja"):
            sys.exit("edgepop_kernels is built with ninja: pip install ninja")
        return ["ninja"]
    return [str(Path(ninja.BIN_DIR) / "ninja")]


def escape(path):
    return re.sub(r"([$ :])", r"$\1", str(path))


def cpp_sources():
    return [str(path) for path in sorted(Path("csrc").rglob("*.cpp"))]


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("edgepop_kernels._native", cpp_sources())],
        cmdclass={"build_ext": NinjaBuild, "build_py": FreshPackage},
    )
