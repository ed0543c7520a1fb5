"""The compiled module, edgepop_kernels._native: whether it is there, what it accepts, and its codes."""

import importlib

import torch

# As csrc/common numbers them, in tensor.h and keys.h: dtypes, and what a mask is of.
DTYPE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
OF = {"abs": 0, "raw": 1, "sigmoid": 1, "bits": 2}

try:
    # torch is imported above: its OpenMP runtime is in the process, and the module joins that one pool.
    kernels = importlib.import_module("edgepop_kernels._native")
    _missing = None
except ImportError as error:
    kernels = None
    _missing = f"the compiled module did not load ({error}); install with `pip install .` where a C++ compiler is"


def not_loaded() -> str | None:
    """Why there is no compiled module."""
    return _missing


def misset() -> str | None:
    """Why the instruction set that EDGEPOP_ISA names cannot be had: something to tell the user, not to work around."""
    if kernels is None:
        return None
    try:
        kernels.isa()
    except RuntimeError as error:
        return str(error)
    return None


def unavailable() -> str | None:
    return not_loaded() or misset()


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"it runs on CPU tensors and got one on {device}"
    if dtype not in DTYPE:
        return f"it computes float32, bfloat16 and float16, and got {dtype}"
    return None
