"""Masks of several tasks, superposed: whose task inputs are."""

from bank_rows import BankRow
from networks import fc1024, mlp, thin_resnet18

ROWS = [
    BankRow(label, template, x_shape, tasks)
    for label, template, x_shape in (
        ("LeNet", mlp, (64, 784)),
        ("FC1024", fc1024, (64, 784)),
        ("ResNet-18 of 20 channels", thin_resnet18, (16, 3, 32, 32)),
    )
    for tasks in (5, 25)
]
GPU_ROWS = ROWS


def test_bank(row, column, arena, benchmark):
    arena.enter(row, column, benchmark)
