"""Triton kernels, on CUDA tensors; on CPU tensors under Triton's interpreter (TRITON_INTERPRET=1), to prove them.

Triton is imported at the first op, not here: its import takes half a second.
"""

import functools
import importlib
import importlib.util
import os

import torch

_MODULE_OF = {
    "select": "selection",
    "select_planes": "selection",
    "draw": "selection",
    "mask_bits": "selection",
    "group_bits": "selection",
    "block_sums": "blocks",
    "block_bits": "blocks",
    "masked_linear": "linear",
    "masked_linear_dx": "linear",
    "masked_linear_dw": "linear",
    "masked_conv2d": "conv",
    "masked_conv2d_dx": "conv",
    "masked_conv2d_dw": "conv",
}
_LEAST_CAPABILITY = (8, 0)


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def _interpreted():
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")  # as triton reads it


def unavailable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; torch's CUDA builds bring it (alone: `pip install triton`, Linux only)"
    if not torch.cuda.is_available() and not _interpreted():
        return "torch sees no CUDA device; TRITON_INTERPRET=1 runs the kernels on CPU tensors, to test them"
    return None


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes float32, bfloat16 and float16, and got {dtype}"
    if device.type == "cuda":
        return _refuses_device(device.index)
    if device.type == "cpu" and _interpreted():
        return None
    return f"it runs on CUDA tensors and got one on {device}"


@functools.cache
def _refuses_device(index):
    capability = torch.cuda.get_device_capability(index)
    if capability < _LEAST_CAPABILITY:
        return "it needs a GPU of compute capability 8.0, and got {}.{}".format(*capability)
    return None
