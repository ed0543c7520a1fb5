"""A copy of the sources in which things can be built with stand-ins for what takes minutes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What git ignores, by the names of .gitignore: what was built, downloaded or trained, and no source.
IGNORED = shutil.ignore_patterns(".git", *(line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()))

RECORDER = """#!{python} -S
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
open(sys.argv[sys.argv.index("-o") + 1], "w").close()
"""


class Tree:
    """Compilers in it write down their arguments, so that the whole build takes a second; runs setup.py in it."""

    def __init__(self, folder):
        self.root = folder / "tree"
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.bin.mkdir()
        shutil.copytree(ROOT, self.root, ignore=IGNORED, symlinks=True)

    def compiler(self, name):
        path = self.bin / name
        path.write_text(RECORDER.format(python=sys.executable, log=str(self.log)))
        path.chmod(0o755)
        return str(path)

    def run(self, *python, **environment):
        """Python in the tree's root, with a PATH that holds the stand-ins only; returns what it wrote, both streams."""
        kept = {k: v for k, v in os.environ.items() if k not in ("CXX", "CXXFLAGS", "CUDA_HOME") and "EDGEPOP" not in k}
        return subprocess.run(
            [sys.executable, *python],
            cwd=self.root,
            env=kept | {"PATH": str(self.bin)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def build(self, **environment):
        """Builds the module; returns the compilers' command lines, one list of words each."""
        self.log.write_text("")
        done = self.run("setup.py", "build_ext", **environment)
        assert done.returncode == 0, done.stdout
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def hook(self, call):
        """Runs one hook of the build backend, as pip does."""
        done = self.run("-c", f"from setuptools import build_meta; build_meta.{call}", CXX=self.compiler("g++"))
        assert done.returncode == 0, done.stdout
