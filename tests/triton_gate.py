"""Compiles the Triton kernels of typical layers for one GPU, prints a JSON line for each. Run by test_triton_compile.

``python triton_gate.py 90``: in a process of its own, for Triton must not be interpreted in it. With a table's file as
a second argument, the entries of that table instead, on the workloads that they were tuned on.
"""

import dataclasses
import json
import sys
from pathlib import Path

import torch

from edgepop_kernels import tune
from edgepop_kernels.backend import triton
from edgepop_kernels.backend.triton import blocks, conv, depthwise, grads, launch, linear, product, selection, stage
from edgepop_kernels.masks import packed_bytes
from edgepop_kernels.tuning import H200, Device, offline
from edgepop_kernels.tuning.table import read_table
from edgepop_kernels.tuning.workloads import WORKLOADS

DEVICES = {
    80: Device("NVIDIA A100-SXM4-80GB", multiprocessors=108, shared=offline.SHARED_LIMIT[80]),
    90: H200,
    100: Device("NVIDIA B200", multiprocessors=148, shared=offline.SHARED_LIMIT[100]),
}
BF16, FP32 = torch.bfloat16, torch.float32


def cut():
    return torch.zeros(2, dtype=torch.int64)


def packed(numel):
    return torch.empty(packed_bytes(numel), dtype=torch.uint8)


def weight_and_mask(shape, weight_dtype=FP32, layout=torch.contiguous_format, of="abs", signed=False):
    """((weight, scores, cut, of), signs) as the ops take them."""
    weight, scores = (torch.empty(shape, dtype=d, memory_format=layout) for d in (weight_dtype, FP32))
    signs = None
    if signed:
        weight, signs = torch.ones((), dtype=weight_dtype).expand(shape), packed(weight.numel())
    mask = (weight, packed(weight.numel()), None, of) if of == "bits" else (weight, scores, cut(), of)
    return mask, signs


def run_linear(rows, inputs, outputs, dtype, weight_dtype=FP32, of="abs", signed=False, planes=False):
    x, dy = torch.empty(rows, inputs, dtype=dtype), torch.empty(rows, outputs, dtype=dtype)
    mask, signs = weight_and_mask((outputs, inputs), weight_dtype, of=of, signed=signed)
    linear.masked_linear(x, *mask, torch.empty(outputs), signs)
    linear.masked_linear_dx(dy, *mask, signs)
    if of != "bits":
        linear.masked_linear_dw(dy, x, *mask, True, "none", signs, packed(outputs * inputs) if planes else None)
    elif not signed:
        linear.masked_linear_dw(dy, x, *mask, False, "kept")


def run_conv(
    batch,
    channels,
    size,
    out,
    kernel,
    stride,
    groups=1,
    dtype=BF16,
    layout=torch.channels_last,
    of="abs",
    signed=False,
    planes=False,
):
    shape = (out, channels // groups, kernel, kernel)
    images = {"dtype": dtype, "memory_format": layout}
    x = torch.empty(batch, channels, size, size, **images)
    padding = kernel // 2
    spatial = (size + 2 * padding - kernel) // stride + 1
    dy = torch.empty(batch, out, spatial, spatial, **images)
    mask, signs = weight_and_mask(shape, layout=layout, of=of, signed=signed)
    geometry = ((stride, stride), (padding, padding), (1, 1), groups)
    conv.masked_conv2d(x, *mask, None, *geometry, True, signs)
    conv.masked_conv2d_dx(dy, *mask, x.shape, *geometry, True, signs)
    if of != "bits":
        score_signs = packed(mask[1].numel()) if planes else None
        conv.masked_conv2d_dw(dy, x, *mask, True, "none", *geometry, signs, score_signs)


def run_selection():
    scores, kinds = [torch.empty(512, 512, 3, 3), torch.empty(64, 64)], ["abs", "raw"]
    for hint in (None, torch.zeros(2, 2, dtype=torch.int64)):
        selection.select(scores, [1000, 100], kinds, hint)
    with torch.enable_grad():
        selection.planes(2 * scores[:1], torch.zeros(2, 2, dtype=torch.int64), kinds, [True, True])
    selection.draw(scores[0], torch.zeros((), dtype=torch.int64))
    for of in ("abs", "raw"):
        selection.mask_bits(scores[0], cut(), of)
    for kept, group, of in ((2, 4, "abs"), (8, 16, "raw")):
        selection.group_bits(scores[0], kept, group, 1, of)
    for block, of in (((1, 4, 1, 1), "abs"), ((1, 512, 3, 3), "raw"), ((512, 1, 3, 3), "abs"), ((4, 4, 1, 1), "raw")):
        sums = blocks.block_sums(scores[0], block, of)
        blocks.block_bits(sums, cut(), block)
    blocks.block_sums(torch.empty(16, 8192), (1, 8192), "abs")


def run_stage():
    shape = (512, 512, 3, 3)
    for of, signed in (("abs", False), ("bits", True)):
        mask, signs = weight_and_mask(shape, of=of, signed=signed)
        stage.stage(*mask, torch.empty(shape, dtype=BF16), signs)


def tf32(function, *args, **options):
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    function(*args, **options)
    torch.backends.cuda.matmul.fp32_precision = "ieee"


CASES = {
    "linear": lambda: run_linear(1024, 4096, 4096, BF16),
    "linear, small batch": lambda: run_linear(32, 4096, 4096, BF16),
    "linear, half weight": lambda: run_linear(1024, 4096, 4096, BF16, BF16),
    "linear, frozen": lambda: run_linear(1024, 4096, 4096, BF16, of="bits"),
    "linear, signs": lambda: run_linear(1024, 4096, 4096, BF16, signed=True),
    "linear, planes": lambda: run_linear(1024, 4096, 4096, BF16, planes=True),
    "linear, small batch, signs and planes": lambda: run_linear(32, 4096, 4096, BF16, signed=True, planes=True),
    "linear, small batch, bits": lambda: run_linear(32, 4096, 4096, BF16, of="bits"),
    "linear, signs and bits": lambda: run_linear(1024, 4096, 4096, BF16, of="bits", signed=True),
    "linear, small batch, signs and bits": lambda: run_linear(32, 4096, 4096, BF16, of="bits", signed=True),
    "linear, signs and bits in two words": lambda: run_linear(128, 784, 304, BF16, of="bits", signed=True),
    "linear, odd, signs and bits": lambda: run_linear(77, 301, 101, BF16, of="bits", signed=True),
    "linear, float32, signs and bits": lambda: run_linear(128, 784, 300, FP32, of="bits", signed=True),
    "linear, tf32, signs and bits": lambda: tf32(run_linear, 1024, 4096, 4096, FP32, of="bits", signed=True),
    "linear, odd": lambda: run_linear(77, 301, 101, BF16),
    "linear, float32": lambda: run_linear(128, 784, 300, FP32),
    "linear, tf32": lambda: tf32(run_linear, 1024, 4096, 4096, FP32),
    "3x3": lambda: run_conv(32, 64, 56, 64, 3, 1),
    "3x3, contiguous": lambda: run_conv(32, 128, 28, 128, 3, 1, layout=torch.contiguous_format),
    "3x3, stride 2": lambda: run_conv(32, 128, 56, 256, 3, 2),
    "1x1, wider": lambda: run_conv(32, 64, 56, 256, 1, 1),
    "1x1": lambda: run_conv(32, 256, 56, 64, 1, 1),
    "7x7 of an image": lambda: run_conv(32, 3, 224, 64, 7, 2),
    "3x3, planes": lambda: run_conv(32, 64, 56, 64, 3, 1, planes=True),
    "3x3, signs": lambda: run_conv(32, 64, 56, 64, 3, 1, signed=True),
    "3x3, bits": lambda: run_conv(32, 64, 56, 64, 3, 1, of="bits"),
    "3x3, stride 2, signs and bits": lambda: run_conv(32, 128, 56, 256, 3, 2, of="bits", signed=True),
    "1x1, signs and bits": lambda: run_conv(32, 256, 56, 64, 1, 1, of="bits", signed=True),
    "7x7 of an image, signs and bits": lambda: run_conv(32, 3, 224, 64, 7, 2, of="bits", signed=True),
    "grouped, signs and bits": lambda: run_conv(32, 128, 28, 128, 3, 1, groups=4, of="bits", signed=True),
    "depthwise, signs and bits": lambda: run_conv(32, 96, 28, 96, 3, 1, groups=96, of="bits", signed=True),
    "grouped": lambda: run_conv(32, 128, 28, 128, 3, 1, groups=4),
    "depthwise": lambda: run_conv(32, 96, 28, 96, 3, 1, groups=96),
    "selection": run_selection,
    "staged": run_stage,
}
# What differs between architectures: tensor cores, their absence, pointers by the element, shared memory.
ELSEWHERE = {
    "linear",
    "linear, small batch",
    "linear, odd",
    "linear, float32",
    "linear, tf32",
    "linear, signs and bits",
    "linear, odd, signs and bits",
    "3x3, stride 2, signs and bits",
    "3x3",
    "3x3, contiguous",
    "1x1, wider",
    "7x7 of an image",
    "depthwise",
    "selection",
    "staged",
}
LAUNCHERS = [product, conv, grads, depthwise, selection, blocks, stage]


def of_cases(capability):
    """(name, function that launches) of typical layers."""
    return [(name, run) for name, run in CASES.items() if capability == 90 or name in ELSEWHERE]


def of_table(file):
    """The calls of the workloads in which an entry of the table is asked for. Raises where some entry never is."""
    entries = read_table(file)
    unasked = set(entries)
    found = []
    for workload in WORKLOADS:
        for dtype in (BF16, FP32):
            for op, args in tune.calls(workload, dtype, torch.device("meta")):
                problems = set(asked_without_compiling(op, args)) & set(entries)
                if problems & unasked:
                    found.append((f"{workload} {op}", lambda op=op, args=args: getattr(triton, op)(*args)))
                unasked -= problems
    if unasked:
        raise ValueError(f"{file}: no workload asks for {unasked}")
    return found, entries


def asked_without_compiling(op, args):
    launches = [module.launch for module in LAUNCHERS]
    for module in LAUNCHERS:
        module.launch = lambda kernel, grid, tensor, args, **meta: None
    with launch.trial() as trial:
        getattr(triton, op)(*args)
    for module, function in zip(LAUNCHERS, launches, strict=True):
        module.launch = function
    return trial.tiles


def main(capability, table=None):
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    launch.device_of = lambda device: DEVICES[capability]
    runs, tiles = (of_cases(capability), {}) if table is None else of_table(Path(table))
    for name, run in runs:
        with offline.compiled(LAUNCHERS, capability, launch.OPTIONS) as reports, launch.trial(tiles):
            run()
        for report in reports:
            facts = dataclasses.asdict(report)
            del facts["ptx"]
            print(json.dumps({"case": name, **facts}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
