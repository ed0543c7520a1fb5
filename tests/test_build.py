"""The build: what is compiled with which flags, what a wheel and an sdist hold, what is said where a tool is missing.

Compilers are stand-ins that write down their arguments, so that the whole build takes a second. Nothing here needs
network: the build requirements belong to the extra `test`.
"""

import json
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from source_tree import ROOT, Tree

import edgepop_kernels as ek

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="checks the instruction sets of x86-64")


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def compiled(commands):
    """Source file name -> its command; of what each instruction set compiles anew, under the name of its object."""
    found = {}
    for c in commands:
        if "-c" in c:
            source, obj = Path(c[c.index("-c") + 1]), Path(c[c.index("-o") + 1])
            isa = obj.stem.partition(".")[2]
            found[f"{source.parent.name}.{isa}" if isa else source.name] = c
    return found


def linked(commands):
    (command,) = [c for c in commands if "-shared" in c]
    return command


def files(*folders, under):
    return {str(p.relative_to(under)) for f in folders for p in (under / f).rglob("*") if p.is_file()}


def unpacked_sdist(tree, folder):
    """Builds it, unpacks it into ``folder``; returns its root."""
    tree.hook("build_sdist('dist')")
    (archive,) = (tree.root / "dist").iterdir()
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # not in Python before 3.10.12 and 3.11.4
        tar.extractall(folder)
    return folder / archive.name.removesuffix(".tar.gz")


def test_sdist_holds_every_source_and_nothing_that_was_built(tree, tmp_path):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    # Where this is no clone, as in an unpacked sdist, whatever git would not ignore.
    wanted = files(".", under=tree.root) if listed.returncode else set(listed.stdout.splitlines())
    held = files(".", under=unpacked_sdist(tree, tmp_path))
    assert wanted <= held, wanted - held
    assert not [name for name in held if name.endswith((".so", ".o", ".pyc"))]


def test_sdist_holds_every_file_and_folder_that_its_makefile_and_continuous_integration_name(tree, tmp_path):
    text = (tree.root / "Makefile").read_text() + (tree.root / ".ci" / "run").read_text()
    words = {word.rstrip("/.") for word in re.findall(r"(?<![\w./$-])[\w.][\w./-]*", text)}
    named = {word for word in words if word and (tree.root / word).exists()}
    assert {"constraints.txt", "csrc", "pyproject.toml", "setup.py", "benchmarks/accuracy.py"} <= named
    root = unpacked_sdist(tree, tmp_path)
    assert not {word for word in named if not (root / word).exists()}


def test_a_wheel_holds_no_module_that_the_sources_have_lost(tree):
    """setuptools packs all of build/lib, so also what an earlier build left there."""
    lost = tree.root / "edgepop_kernels" / "lost.py"
    lost.write_text("")
    tree.hook("build_wheel('before')")
    lost.unlink()
    tree.hook("build_wheel('after')")
    names = {}
    for folder in ("before", "after"):
        (wheel,) = (tree.root / folder).iterdir()
        with zipfile.ZipFile(wheel) as zipped:
            names[folder] = set(zipped.namelist())
    assert names["before"] - names["after"] == {"edgepop_kernels/lost.py"}


def test_wheel_from_the_sdist_holds_the_package_and_nothing_else(tree, tmp_path):
    package = files("edgepop_kernels", under=tree.root)
    tree.root = unpacked_sdist(tree, tmp_path)
    tree.hook("build_wheel('dist')")
    (wheel,) = (tree.root / "dist").iterdir()
    with zipfile.ZipFile(wheel) as zipped:
        held = {name for name in zipped.namelist() if ".dist-info/" not in name}
        info = {
            name.partition("/")[2]: zipped.read(name).decode() for name in zipped.namelist() if ".dist-info/" in name
        }
    (module,) = held - package
    assert held >= package
    assert module.startswith("edgepop_kernels/_native.")
    assert module.endswith(".so")
    assert f"Version: {ek.__version__}" in info["METADATA"]
    assert "Requires-Dist: torch>=2.11" in info["METADATA"].splitlines()
    assert "edgepop = edgepop_kernels.__main__:main" in info["entry_points.txt"]
    assert "licenses/LICENSE" in info


@X86
def test_every_source_is_compiled_once_with_the_flags_of_its_instruction_set(tree):
    commands = tree.build(CXX=tree.compiler("g++"))
    sources = {path for path in (ROOT / "csrc").rglob("*.cpp") if path.name not in ("unit.cpp", "tiles.cpp")}
    by_source = compiled(commands)
    whole = {
        f"{room}.{isa}" for room in ("forward", "wgrad", "select", "optim") for isa in ("portable", "avx2", "avx512")
    }
    units = whole | {"forward.avx512bf16", "wgrad.avx512bf16", "forward.amx", "wgrad.amx"}
    assert set(by_source) == {path.name for path in sources} | units
    assert len(commands) == len(sources) + len(units) + 1
    for source, command in by_source.items():
        sets = {flag for flag in command if flag.startswith("-m")}
        assert bool(sets) == (source in units and not source.endswith(".portable")), f"{source}: {sets}"
        assert (f"-DEDGEPOP_ISA={source.partition('.')[2]}" in command) == (source in units)
        assert not any(flag.startswith(("-march", "-g")) for flag in command)
        assert "-fvisibility=hidden" in command
        assert "torch" not in " ".join(command[: command.index("-c")]).replace(str(ROOT), "")
    assert "-mavx512bf16" in by_source["wgrad.avx512bf16"]
    assert "-mavx512bf16" not in by_source["wgrad.avx512"]
    assert {"-mamx-tile", "-mamx-bf16"} <= set(by_source["forward.amx"])
    assert "-mamx-bf16" not in by_source["forward.avx512bf16"]
    for isa in ("AVX2", "AVX512", "AVX512BF16", "AMX"):
        assert f"-DEDGEPOP_HAS_{isa}" in by_source["isa.cpp"]


@X86
@pytest.mark.parametrize(
    ("chosen", "isas"),
    [("avx2", "portable avx2"), ("amx", "portable avx512 avx512bf16 amx"), ("portable", "portable")],
)
def test_chosen_instruction_sets_come_with_those_they_stand_on(tree, chosen, isas):
    by_source = compiled(tree.build(CXX=tree.compiler("g++"), EDGEPOP_ISAS=chosen))
    assert {name.partition(".")[2] for name in by_source} - {"cpp"} == set(isas.split())
    has = {flag for flag in by_source["isa.cpp"] if flag.startswith("-DEDGEPOP_HAS_")}
    assert has == {f"-DEDGEPOP_HAS_{isa.upper()}" for isa in isas.split()}


@X86
def test_an_unknown_instruction_set_is_one_sentence(tree):
    done = tree.run("setup.py", "--quiet", "build_ext", CXX=tree.compiler("g++"), EDGEPOP_ISAS="avx2,neon")
    assert done.returncode != 0
    assert 'EDGEPOP_ISAS: expected names of portable, avx2, avx512, avx512bf16, amx, got "neon"' in done.stdout


@pytest.mark.parametrize(("machine", "isas"), [("aarch64", ["portable", "neon"]), ("riscv64", ["portable"])])
def test_other_processors_get_their_own_sets(tree, machine, isas):
    tree.compiler("g++")
    script = (
        "import platform, runpy, sys; platform.machine = lambda: sys.argv.pop(1); "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    (tree.root / "elsewhere.py").write_text(script)
    done = tree.run("elsewhere.py", machine, "build_ext")
    assert done.returncode == 0, done.stdout
    by_source = compiled([json.loads(line) for line in tree.log.read_text().splitlines()])
    assert {name for name in by_source if not name.endswith(".cpp")} == {
        f"{room}.{isa}" for room in ("forward", "wgrad", "select", "optim") for isa in isas
    }
    assert not [flag for command in by_source.values() for flag in command if flag.startswith("-m")]


@pytest.mark.parametrize("has_openmp", [True, False])
def test_apples_compiler_builds_without_openmp(tree, has_openmp):
    compiler = tree.bin / "clang++"
    compiler.write_text(f"#!/bin/sh\nexit {int(not has_openmp)}\n")
    compiler.chmod(0o755)
    script = "import runpy, sys, setuptools.command.build_ext, setuptools.command.build_py; sys.platform = 'darwin'; "
    script += "build = runpy.run_path('setup.py', run_name='build'); "
    script += "print(build['ninja_file'](build['cpp_sources'](), 'module.so'))"
    done = tree.run("-c", script, CXX=str(compiler), EDGEPOP_CUDA_ARCHS="")
    assert done.returncode == 0, done.stdout
    assert ("-fopenmp" in done.stdout) == has_openmp
    assert ("-Wno-unknown-pragmas" in done.stdout) != has_openmp
    assert "-undefined dynamic_lookup" in done.stdout


def test_the_users_flags_go_before_ours_and_the_projects_after(tree):
    cxx = tree.compiler("my-c++")
    commands = tree.build(CXX=f"{cxx} -m64", CXXFLAGS="-O2 -g0", EDGEPOP_CXXFLAGS="-O1 -fsanitize=address,undefined")
    for command in compiled(commands).values():
        assert command[:2] == ["my-c++", "-m64"]
        assert [flag for flag in command if flag.startswith("-O")] == ["-O2", "-O3", "-O1"]
    assert "-fsanitize=address,undefined" in linked(commands)


class TestCuda:
    @pytest.fixture
    def tree(self, tmp_path):
        tree = Tree(tmp_path)
        (tree.root / "csrc" / "cuda").mkdir(exist_ok=True)
        (tree.root / "csrc" / "cuda" / "probe.cu").write_text("")
        tree.compiler("g++")
        return tree

    def test_left_out_where_nvcc_is_not(self, tree):
        commands = tree.build()
        assert "probe.cu" not in compiled(commands)
        assert not any("-DEDGEPOP_CUDA" in command for command in commands)
        assert linked(commands)[0] == "g++"

    def test_compiled_for_the_default_architectures(self, tree):
        tree.compiler("nvcc")
        commands = tree.build(EDGEPOP_CXXFLAGS="-fsanitize=address,undefined")
        by_source = compiled(commands)
        assert [flag for flag in by_source["probe.cu"] if flag.startswith("-gencode")] == [
            "-gencode=arch=compute_80,code=sm_80",
            "-gencode=arch=compute_90,code=[sm_90,compute_90]",
        ]
        assert all("-DEDGEPOP_CUDA" in command for name, command in by_source.items() if name.endswith(".cpp"))
        assert linked(commands)[0] == "nvcc"
        assert r"-Xcompiler=-fsanitize=address\,undefined" in linked(commands)

    def test_architectures_are_chosen_by_the_environment(self, tree):
        tree.compiler("nvcc")
        commands = tree.build(EDGEPOP_CUDA_ARCHS="90a")
        assert "-gencode=arch=compute_90a,code=sm_90a" in compiled(commands)["probe.cu"]
        assert "probe.cu" not in compiled(tree.build(EDGEPOP_CUDA_ARCHS=""))

    def test_cuda_home_goes_before_path(self, tree, tmp_path):
        home = tmp_path / "toolkit"
        (home / "bin").mkdir(parents=True)
        shutil.move(tree.compiler("nvcc"), home / "bin" / "nvcc")
        assert "probe.cu" in compiled(tree.build(CUDA_HOME=str(home)))

    def test_asked_for_where_nvcc_is_not_is_one_sentence(self, tree):
        done = tree.run("setup.py", "--quiet", "build_ext", EDGEPOP_CUDA_ARCHS="90")
        assert done.returncode != 0
        assert "EDGEPOP_CUDA_ARCHS=90 asks for CUDA, and nvcc is not on PATH" in done.stdout
        assert "Traceback" not in done.stdout

    @pytest.mark.parametrize(
        ("environment", "sentence"),
        [
            ({"EDGEPOP_CUDA_ARCHS": "sm_90"}, 'expected entries like 80, 90a or 90+PTX, got "sm_90"'),
            ({"CUDA_HOME": "/nonexistent"}, "CUDA_HOME=/nonexistent has no bin/nvcc"),
        ],
    )
    def test_a_bad_setting_is_one_sentence(self, tree, environment, sentence):
        tree.compiler("nvcc")
        done = tree.run("setup.py", "--quiet", "build_ext", **environment)
        assert done.returncode != 0
        assert sentence in done.stdout
        assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [({"CXX": "/nonexistent"}, "CXX=/nonexistent was not found"), ({}, "none of g++, c++, clang++ is on PATH")],
)
def test_a_missing_compiler_is_one_sentence(tree, environment, sentence):
    done = tree.run("setup.py", "--quiet", "build_ext", **environment)
    assert done.returncode != 0
    assert sentence in done.stdout
    assert "Traceback" not in done.stdout


def test_a_failing_compiler_is_heard_and_is_no_traceback(tree):
    compiler = tree.bin / "failing"
    compiler.write_text("#!/bin/sh\necho kernel.cpp:3: no such thing\nexit 1\n")
    compiler.chmod(0o755)
    done = tree.run("setup.py", "--quiet", "build_ext", CXX=str(compiler))
    assert done.returncode != 0
    assert "kernel.cpp:3: no such thing" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("edgepop_kernels: the native module was not built")
    assert "Traceback" not in done.stdout


def test_a_build_in_place_compiles_only_what_has_changed(tree):
    """An editable install too, which pip builds in a folder of its own; and each says how far it is."""
    first = tree.run("setup.py", "--quiet", "build_ext", "--inplace", CXX=tree.compiler("g++"))
    assert first.returncode == 0, first.stdout
    assert re.search(r"^\[1/\d+, \d+\.\d+ s\] compile cpu/[\w./]+\.o$", first.stdout, re.MULTILINE)
    (tree.root / "csrc" / "cpu" / "select" / "read.cpp").write_text("int changed;")
    tree.log.write_text("")
    tree.hook("build_editable('dist')")
    commands = [json.loads(line) for line in tree.log.read_text().splitlines()]
    assert set(compiled(commands)) == {"read.cpp"}
    assert len(commands) == 2


@X86
def test_a_unit_shares_no_code_with_units_of_other_instruction_sets(tmp_path):
    """A symbol that the linker may merge with another unit's could bring AVX-512 to a machine without it."""
    build = runpy.run_path(str(ROOT / "setup.py"), run_name="build")
    (tmp_path / "build.ninja").write_text(build["ninja_file"]([], tmp_path / "unused.so"))
    units = [f"cpu/{room}/unit.avx512.o" for room in ("forward", "wgrad", "select", "optim")]
    units += ["cpu/forward/tiles.amx.o", "cpu/wgrad/tiles.amx.o"]
    subprocess.run([*build["ninja_command"](), "-C", str(tmp_path), *units], check=True, cwd=ROOT)
    nm = subprocess.run(["nm", "-C", *units], check=True, capture_output=True, text=True, cwd=tmp_path)
    mergeable = re.findall(r"^[0-9a-f]+ W (.*)$", nm.stdout, re.MULTILINE)
    assert not [name for name in mergeable if not re.search(r"edgepop::cpu::(avx512|amx)::", name)]


def test_imports_from_any_folder_into_torchs_own_openmp_pool(tmp_path):
    command = [sys.executable, ROOT / "tests" / "installed.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
