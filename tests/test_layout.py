"""The architecture, held by a test: which file may import which."""

import ast
import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import edgepop_kernels as ek

PACKAGE = Path(ek.__file__).parent
CSRC = Path(__file__).resolve().parent.parent / "csrc"

# A module imports only what stands before it.
ORDER = [
    "files",
    "torch_private",
    "capture",
    "reference",
    "masks",
    "mixing",
    "cut",
    "rules",
    "checks",
    "tuning",
    "backend",
    "flops",
    "ops",
    "autograd",
    "selecting",
    "functional",
    "effective",
    "init",
    "nn",
    "optim",
    "sharing",
    "first_forward",
    "overview",
    "adapters",
    "interop",
    "candidates",
    "refusals",
    "swap",
    "schedules",
    "bank",
    "conversion",
    "attention",
    "packing",
    "phases",
    "graphed",
    "export",
    "compat",
]
# Users of the public API, who import the package itself; `also` is what else of it they may name.
USERS = {
    "recipes": {"files", "methods"},
    "methods": set(),
    "testing": {"rules"},
    "doctor": {"backend"},
    "tune": {"backend", "reference", "rules", "testing", "tuning"},
    "__main__": {"doctor", "recipes", "tune"},
}
INTERFACE_LIBRARIES = {"typer", "rich", "click"}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path):
    """The first component under the package: what ORDER and USERS name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Dotted names of what a file imports, relative ones resolved; `from . import a` counts as importing `a`."""
    package = ("edgepop_kernels", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def own_modules(path):
    """First components under the package that a file imports; "" for the package itself."""
    for name in imported(path):
        root, *rest = name.split(".")
        if root == "edgepop_kernels":
            module = rest[0] if rest else ""
            yield module if (PACKAGE / module).is_dir() or (PACKAGE / f"{module}.py").exists() else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    module = module_of(path)
    if module == "__init__":
        return
    others = set(own_modules(path)) - {module}
    if module in USERS:
        assert others <= USERS[module] | {""}
    else:
        assert module in ORDER, f"{module} is new: give it a place in ORDER or USERS"
        assert others <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", sorted({module_of(path) for path in FILES} - {"__init__", "__main__"}))
def test_no_name_of_the_package_hides_a_module(module):
    loaded = importlib.import_module(f"edgepop_kernels.{module}")
    assert getattr(ek, module) is loaded


def test_the_reference_imports_nothing_of_ours():
    assert not set(own_modules(PACKAGE / "reference.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_recipes_speak_to_a_terminal(path):
    roots = {name.partition(".")[0] for name in imported(path)}
    assert module_of(path) == "recipes" or not roots & INTERFACE_LIBRARIES


def test_native_sources_know_neither_torch_nor_python():
    includes = {
        path.relative_to(CSRC): re.findall(r'^\s*#\s*include\s*[<"](.+?)[>"]', path.read_text(), re.MULTILINE)
        for path in CSRC.rglob("*")
        if path.is_file()
    }
    assert includes
    for path, names in includes.items():
        assert not [name for name in names if name.startswith(("torch/", "ATen/", "c10/"))], path
        if path.parts[0] != "module":
            assert not [name for name in names if name.startswith(("pybind11/", "Python.h"))], path
        if path.parts[0] == "common":
            assert not [name for name in names if name.startswith("../")], path


CPU_SOURCES = sorted(path.relative_to(CSRC) for path in (CSRC / "cpu").rglob("*") if path.suffix in (".h", ".inl"))
# One file for each set of vector registers, of which simd/vec.h includes one, and the tiles of AMX.
OF_ONE_SET = {Path(f"cpu/simd/vec_{name}.h") for name in ("avx2", "avx512", "neon", "portable")}
OF_ONE_SET |= {Path("cpu/simd/amx.h"), Path("cpu/forward/amx.inl"), Path("cpu/wgrad/amx.inl")}


def test_every_cpu_source_includes_what_it_uses(tmp_path):
    """Each compiles alone, in whatever order others are included."""
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    command = [compiler, "-std=c++17", "-fopenmp", "-DEDGEPOP_ISA=portable", f"-I{CSRC}", "-fsyntax-only", "-x", "c++"]
    for path in CPU_SOURCES:
        if path not in OF_ONE_SET:
            alone = tmp_path / "alone.cpp"
            alone.write_text(f'#include "{path}"\n')
            done = subprocess.run([*command, str(alone)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{path}: {done.stderr}"


def test_instruction_sets_are_asked_about_in_one_room():
    """Elsewhere there are constants: kLanes, kRegisters, kDotBf16. The choice of a set asks the processor."""
    asks = re.compile(r"\b__(AVX|AMX|FMA|F16C|SSE|ARM|aarch64|x86_64|m\d)|\b_mm\d*_|\b_tile_")
    for path in (path for path in (CSRC / "cpu").rglob("*") if path.is_file()):
        room = path.parent.name
        if room != "simd" and path.name != "isa.cpp" and path.relative_to(CSRC) not in OF_ONE_SET:
            assert not asks.search(path.read_text()), path


def test_no_two_types_of_the_cpu_have_one_name():
    named = {}
    for path in CPU_SOURCES:
        if path not in OF_ONE_SET:
            for name in re.findall(r"^(?:struct|class) (\w+)(?= [:{]| final)", (CSRC / path).read_text(), re.MULTILINE):
                named.setdefault(name, []).append(str(path))
    assert len(named) > 40
    assert not {name: paths for name, paths in named.items() if len(paths) > 1}


def test_each_room_of_the_cpu_has_a_namespace():
    for path in CPU_SOURCES:
        if path.suffix == ".inl":
            (opened,) = re.findall(r"^namespace (edgepop\S+) \{$", (CSRC / path).read_text(), re.MULTILINE)
            assert opened == f"edgepop::cpu::EDGEPOP_ISA::{path.parent.name}", path
