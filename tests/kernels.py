"""The backends that run here, and where: what the tests of a single kernel have in common."""

import pytest
import torch

import edgepop_kernels as ek

AVAILABLE = [name for name, reason in ek.backends().items() if reason is None]
ON_GPU = torch.cuda.is_available()
# All but the reference, which they are compared with.
KERNELS = [
    pytest.param(name, marks=pytest.mark.gpu if ON_GPU and name in ("triton", "cuda") else [])
    for name in AVAILABLE
    if name != "reference"
]
ON_CPU = [name for name in AVAILABLE if name not in ("triton", "cuda")]
without_native = pytest.mark.skipif("native" not in AVAILABLE, reason="the compiled module did not load")


def device_of(name: str) -> torch.device:
    return torch.device("cuda" if ON_GPU and name in ("triton", "cuda") else "cpu")
