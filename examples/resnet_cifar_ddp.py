"""Trains a masked ResNet-20 on CIFAR-10 in several processes, by DistributedDataParallel as any other network.

FOLDER is cifar-10-batches-py, unpacked. Prints loss and test accuracy after each epoch:

    torchrun --nproc-per-node 2 examples/resnet_cifar_ddp.py FOLDER
"""

import argparse
import pickle
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import edgepop_kernels as ek


class Block(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.short = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        return (self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())) + self.short(x)).relu()


def resnet20():
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in pairwise([16] * 4 + [32] * 3 + [64] * 3)]
    start = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(*start, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def read(files):  # pickles, as the data set comes: read only those that you trust
    parts = [pickle.loads(file.read_bytes(), encoding="bytes") for file in files]
    images = torch.cat([torch.from_numpy(p[b"data"]) for p in parts]).view(-1, 3, 32, 32)
    return (images.float() - 121) / 64, torch.tensor([label for p in parts for label in p[b"labels"]])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="cifar-10-batches-py")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes")
    options = parser.parse_args()
    if not (options.folder / "test_batch").exists():
        parser.error(f"folder: {options.folder} has no test_batch; expected cifar-10-batches-py")
    images, labels = read(sorted(options.folder.glob("data_batch_*")))
    test_images, test_labels = read([options.folder / "test_batch"])
    dist.init_process_group("gloo")  # on GPUs "nccl", and a device of its own for each process
    rank, world = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)
    model = DistributedDataParallel(ek.convert(resnet20(), keep=0.5, init="signed_constant", norm="non-affine"))
    optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    for epoch in range(options.epochs):
        for batch in torch.randperm(len(images)).split(options.batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[batch[rank::world]]), labels[batch[rank::world]])
            loss.backward()
            optimizer.step()
        schedule.step()
        if rank == 0:
            with torch.no_grad():
                y = torch.cat([model.module.eval()(part).argmax(1) for part in test_images.split(500)])
            print(f"epoch {epoch + 1}: loss {loss:.3f}, accuracy {(y == test_labels).float().mean():.2%}", flush=True)
            model.train()


if __name__ == "__main__":
    main()
    dist.destroy_process_group()  # once the model is gone: what DistributedDataParallel holds must not go last
