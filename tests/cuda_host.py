"""csrc/cuda/ without a GPU: its templates run by simulated threads (tests/cuda/), in the compiled module's place."""

import contextlib
import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from edgepop_kernels.backend import cuda

SOURCES = Path(__file__).with_name("cuda")


def compile_host(folder):
    """The shared library of tests/cuda/, by the first compiler on PATH."""
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = folder / "on_host.so"
    flags = ["-std=c++17", f"-I{SOURCES.parents[1] / 'csrc'}", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, str(SOURCES / "on_host.cpp"), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    for name in ("scratch_words", "select_on_host", "step_on_host", "mask_bits_on_host"):
        getattr(loaded, name).restype = ctypes.c_int64
    return loaded


class Host:
    """Stands in for ``_native.cuda``: the same functions on CPU tensors, by blocks that run in a random order.

    chunk: 0 for the kernels' shapes, 256 and 128 for small ones. passes: of the latest call.
    """

    most_parameters, most_sets = 64, 8

    def __init__(self, library, chunk, blocks=3, seed=0):
        self.select_chunk, self.step_chunk = chunk or 4096, chunk or 2048
        self.blocks = blocks
        self.seeds = itertools.count(seed)
        self.passes = None
        self._library = library

    def scratch_words(self, layers):
        return self._library.scratch_words(ctypes.c_int64(layers))

    def select(self, selection, hints, stream):
        self._call("select_on_host", selection, self.select_chunk, ctypes.c_void_p(hints))

    def step(self, selection, parameters, sets, following, stream):
        rows = np.array([[grad, *moments, hint, i] for grad, moments, hint, i in parameters], dtype=np.uint64)
        kinds = {kind for kind, _ in sets}
        coefficients = np.array([values for _, values in sets], dtype=np.float32)
        sources, rates = np.array(following[0], dtype=np.uint64), np.array(following[1], dtype=np.float64)
        given = [rows.ctypes.data, len(sets), sources.ctypes.data if sources.size else 0, rates.ctypes.data]
        given = np.array([*given, following[2]], dtype=np.uint64)
        addresses = [ctypes.c_void_p(a.ctypes.data) for a in (given, coefficients)]
        self._call("step_on_host", selection, self.step_chunk, *addresses, ctypes.c_int(kinds == {"adam"}))

    def mask_bits(self, scores, size, stride, of, cut, bits, stream):
        mask = np.array([scores, *size, *stride, of, cut, bits], dtype=np.int64)
        message = ctypes.create_string_buffer(200)
        threads, seed = ctypes.c_int(256 if self.select_chunk == 4096 else 32), ctypes.c_int64(next(self.seeds))
        blocks = self._library.mask_bits_on_host(ctypes.c_void_p(mask.ctypes.data), threads, seed, message)
        assert blocks > 0, message.value.decode()

    def _call(self, function, selection, chunk, *arguments):
        call = np.array([chunk, *selection, self.blocks, next(self.seeds)], dtype=np.int64)
        message = ctypes.create_string_buffer(200)
        self.passes = getattr(self._library, function)(ctypes.c_void_p(call.ctypes.data), *arguments, message)
        assert self.passes > 0, message.value.decode()

    def misbehave(self, fault):
        message = ctypes.create_string_buffer(200)
        self._library.misbehave(ctypes.c_int(fault), message)
        return message.value.decode()

    def install(self, monkeypatch):
        """Makes ``backend.cuda`` run on this, on CPU tensors."""
        monkeypatch.setattr(cuda, "_cuda", self)
        monkeypatch.setattr(cuda, "_stream", lambda device: contextlib.nullcontext(0))
        cuda._plan.cache_clear()
        return self


def as_cuts(cuts: torch.Tensor):
    return [tuple(cut) for cut in cuts.tolist()]
