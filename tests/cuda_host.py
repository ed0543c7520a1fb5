"""csrc/cuda/ without a GPU: its templates run by simulated threads (tests/cuda/), in the compiled module's place."""

import contextlib
import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from edgepop_kernels.backends import cuda

SOURCES = Path(__file__).with_name("cuda")


def compile_host(source, folder):
    """The shared library of tests/cuda/<source>, by the first compiler on PATH."""
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = folder / f"{source}.so"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, str(SOURCES / f"{source}.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


class HostSelection:
    """Stands in for ``_native.cuda``: the same functions on CPU tensors, by blocks that run in a random order.

    select_chunk: 4096 is the kernel's shape, 256 and 128 are small ones. passes: of the latest call.
    """

    def __init__(self, library, select_chunk, blocks=3, seed=0):
        self.select_chunk = select_chunk
        self.blocks = blocks
        self.seeds = itertools.count(seed)
        self.passes = None
        self._library = library
        library.select_on_host.restype = library.scratch_words.restype = ctypes.c_int64

    def select_scratch(self, layers):
        return self._library.scratch_words(ctypes.c_int64(layers))

    def select(self, scores, layers, layer_count, chunk_count, hints, cuts, candidates, scratch, stream):
        message = ctypes.create_string_buffer(200)
        words = (scores, layers, layer_count, chunk_count, hints, cuts, candidates, scratch)
        self.passes = self._library.select_on_host(
            ctypes.c_int64(self.select_chunk),
            *(ctypes.c_void_p(word) for word in words),
            ctypes.c_int(self.blocks),
            ctypes.c_uint64(next(self.seeds)),
            message,
        )
        assert self.passes > 0, message.value.decode()

    def misbehave(self, fault):
        message = ctypes.create_string_buffer(200)
        self._library.misbehave(ctypes.c_int(fault), message)
        return message.value.decode()

    def install(self, monkeypatch):
        """Makes ``backends.cuda`` run on this, on CPU tensors."""
        monkeypatch.setattr(cuda, "_cuda", self)
        monkeypatch.setattr(cuda, "_stream", lambda device: contextlib.nullcontext(0))
        cuda._plan.cache_clear()  # it holds chunks of another size
        return self


def as_cuts(cuts: torch.Tensor):
    return [tuple(cut) for cut in cuts.tolist()]
