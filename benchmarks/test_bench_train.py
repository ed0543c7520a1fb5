"""Training steps of whole networks, and of linear layers inside of one, keep 0.5."""

from functools import partial

import torch
from networks import conv4, conv6, linear, mlp, resnet18, resnet50, transformer_block
from train_rows import TrainRow

BF16, FLOAT32 = torch.bfloat16, torch.float32
MLP = "MLP 784-300-100-10"

ROWS = [
    TrainRow("Conv4", conv4, (16, 3, 32, 32), BF16),
    TrainRow("Conv4", conv4, (128, 3, 32, 32), FLOAT32, full=True),
    TrainRow(MLP, mlp, (64, 784), FLOAT32),
    TrainRow(MLP, mlp, (512, 784), FLOAT32),
    *(
        TrainRow(f"{n}x{i}x{o}", partial(linear, i, o), (n, i), FLOAT32, inside=True)
        for n, i, o in ((128, 1024, 1024), (128, 8192, 256), (512, 2048, 2048), (32, 4096, 4096))
    ),
    TrainRow("ViT-S block, 8 images", transformer_block, (8 * 197, 384), FLOAT32, inside=True),
]
# Compiling a ResNet takes torch.compile over a minute: --compile asks for it.
GPU_ROWS = [
    TrainRow("Conv4", conv4, (128, 3, 32, 32), BF16, compiled=True),
    TrainRow("Conv6", conv6, (128, 3, 32, 32), BF16, compiled=True),
    TrainRow(MLP, mlp, (64, 784), FLOAT32, compiled=True),
    TrainRow("ResNet-18", resnet18, (128, 3, 224, 224), BF16),
    TrainRow("ResNet-50", resnet50, (128, 3, 224, 224), BF16),
]


def test_train_step(row, column, arena, benchmark):
    arena.enter(row, column, benchmark)
