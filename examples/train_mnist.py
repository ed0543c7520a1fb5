"""Trains edge-popup on MNIST, or on Fashion-MNIST: a network of convolutions whose weights stay random.

The folder holds the data set's four files (train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte,
t10k-labels-idx1-ubyte), with .gz or without. After each epoch it prints the loss and the accuracy on the test images:

    python examples/train_mnist.py FOLDER
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek


def read_idx(folder, name):
    """One IDX file: two zero bytes, the type (8, unsigned bytes), the number of dimensions, their sizes, the values."""
    path = folder / name
    if not path.exists():
        path = folder / f"{name}.gz"
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return torch.tensor(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape))


def read(folder, part):
    images, labels = read_idx(folder, f"{part}-images-idx3-ubyte"), read_idx(folder, f"{part}-labels-idx1-ubyte")
    return images[:, None].float() / 255, labels.long()


def network():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


@torch.no_grad()
def accuracy(model, images, labels):
    right = [(model(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return int(sum(right)) / len(labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the four IDX files of the data set")
    parser.add_argument("--keep", type=float, default=0.5, help="fraction of weights kept, in (0, 1]")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    try:
        (images, labels), test = read(options.folder, "train"), read(options.folder, "t10k")
    except FileNotFoundError as error:
        raise SystemExit(f"{error.filename}: no such file; expected the data set's four IDX files there") from error

    torch.manual_seed(0)
    model = ek.convert(network(), keep=options.keep, init="signed_constant", scale="paper")
    ek.share_selection(model)  # one selection for all layers
    optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    for epoch in range(options.epochs):
        batches = torch.randperm(len(images)).split(options.batch_size)
        for batch in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
        schedule.step()
        print(f"epoch {epoch + 1}: last loss {loss:.3f}, accuracy {accuracy(model.eval(), *test):.2%}", flush=True)
        model.train()


if __name__ == "__main__":
    main()
