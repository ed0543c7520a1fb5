"""The peaks a row's floor is computed from: the data sheet of a known GPU, measured on any other device.

A CPU's floor is that of the operations alone: the operands of a row stay in its caches, whose bandwidth depends on
which. What selection costs beside a read of its scores stands in the column "reads".
"""

import statistics

import torch
import torch.nn.functional as F
from measure import interleave

from edgepop_kernels.tuning.roofline import PEAKS, Peak

_MATRIX = {"cpu": 1024, "cuda": 8192}  # of the square product that is timed
_CONVOLUTION_FLOPS = 2.0 * 16 * 16 * 16 * 128 * 128 * 9
_READ = 2**30  # bytes: past every cache


def peak_of(device: torch.device) -> Peak:
    """The data sheet's where the device has one here, else what torch's own products and sums achieve: about 2 s."""
    if device.type == "cuda" and torch.cuda.get_device_name(device) in PEAKS:
        return PEAKS[torch.cuda.get_device_name(device)]
    n = _MATRIX[device.type]
    product = 2.0 * n**3
    flops = {"float32": product / _seconds(_product(torch.float32, n, device), device)}
    flops["half"] = product / _seconds(_product(torch.bfloat16, n, device), device)
    if device.type == "cpu":
        # The library behind torch.mm may be slow on this CPU where the one behind torch.conv2d is not: half its speed
        # in float32, on an AMD Zen 5.
        for name, dtype in (("float32", torch.float32), ("half", torch.bfloat16)):
            flops[name] = max(flops[name], _CONVOLUTION_FLOPS / _seconds(_convolution(dtype), device))
        return Peak(None, flops, f"measured: the faster of torch.mm, {n} x {n}, and torch.conv2d, 16x128x16x16 128k3")
    previous = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    flops["tf32"] = product / _seconds(_product(torch.float32, n, device), device)
    torch.backends.cuda.matmul.fp32_precision = previous
    values = torch.ones(_READ // 4, device=device)
    return Peak(_READ / _seconds(values.sum, device), flops, f"measured: torch.mm, {n} x {n}; torch.sum, 1 GiB")


def _product(dtype, n, device):
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return lambda: a @ b


def _convolution(dtype):
    """The operations of padding count too: a border of one pixel in 16."""
    x = torch.randn(16, 128, 16, 16).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3).to(dtype, memory_format=torch.channels_last)
    return lambda: F.conv2d(x, weight, padding=1)


def _seconds(call, device):
    return statistics.median(interleave({"call": call}, device, budget_s=0.3)["call"])
