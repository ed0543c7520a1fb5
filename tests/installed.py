"""What an installed package does wherever it is: what the reference does, in native kernels on the threads of torch.

tests/test_build.py runs this on the package under test, and `make wheel` where there is only the wheel and torch.
"""

import sys

import torch

import edgepop_kernels as ek
from edgepop_kernels import doctor
from edgepop_kernels.testing.tolerances import assert_close, assert_same_bits

LAYERS = (
    (ek.FusedSubnetConv(5, 7, 3, padding=1), (3, 5, 9, 11)),
    (ek.FusedSubnetLinear(63, 17, keep=0.3), (31, 63)),
    (ek.FusedSupermaskLinear(33, 13), (1, 33)),
)

torch.manual_seed(0)
for layer, shape in LAYERS:
    x, gradients, masks, outputs = torch.randn(shape), {}, {}, {}
    for backend in ("reference", "native"):
        with ek.use_backend(backend):
            outputs[backend] = layer(x)
            outputs[backend].square().sum().backward()
            masks[backend] = layer.mask()
        gradients[backend], layer.scores.grad = layer.scores.grad, None
    name = type(layer).__name__
    assert_same_bits(f"{name}: mask", masks["native"], masks["reference"])
    assert_close(f"{name}: output", outputs["native"], outputs["reference"], torch.float32)
    assert_close(f"{name}: gradient of scores", gradients["native"], gradients["reference"], torch.float32)

runtimes = doctor.openmp_runtimes()
assert sys.platform != "linux" or len(runtimes) == 1, f"{len(runtimes)} pools of threads on the same cores: {runtimes}"
