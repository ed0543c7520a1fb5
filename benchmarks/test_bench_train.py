"""Training steps of two small networks, keep 0.5."""

import torch
from rows import TrainRow, conv4, mlp

ROWS = [
    TrainRow("Conv4", conv4, (16, 3, 32, 32), torch.bfloat16),
    TrainRow("Conv4", conv4, (128, 3, 32, 32), torch.float32, full=True),
    TrainRow("MLP 784-300-100-10", mlp, (64, 784), torch.float32),
]


def test_train_step(row, column, arena, benchmark):
    arena.enter(row, column, benchmark)
