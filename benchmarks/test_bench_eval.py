"""Evaluation: small batches, a layer of one output, a ranking of all layers together."""

from eval_rows import EvalRow
from networks import linear, mlp
from torch import nn

import edgepop_kernels as ek


def _linear(inputs, outputs):
    return EvalRow(f"linear {inputs}x{outputs}", lambda: linear(inputs, outputs), (1, inputs))


ROWS = [
    EvalRow("MLP", mlp, (1, 784)),
    _linear(1024, 1024),
    _linear(4096, 4096),
    EvalRow("linear 32x1", lambda: linear(32, 1), (4096, 32)),
    EvalRow(
        "12 linear 64x64, GlobalTopK",
        lambda: nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(12))),
        (8, 64),
        ek.GlobalTopK(0.5),
        one_by_one=True,
    ),
]
GPU_ROWS = ROWS


def test_eval(row, column, arena, benchmark):
    arena.enter(row, column, benchmark)
