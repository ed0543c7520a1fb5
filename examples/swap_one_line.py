"""Swaps one line of a network: nn.Conv2d for a layer that learns which of its random weights to use.

Trains the dense network and the masked one on the same digits, and prints both accuracies:

    python examples/swap_one_line.py
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import edgepop_kernels as ek


def network(Conv):
    return nn.Sequential(
        Conv(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        Conv(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        Conv(64, 128, 2), nn.ReLU(),
        Conv(128, 10, 1), nn.Flatten(),
    )  # fmt: skip


def accuracy(model, epochs):
    images, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = images.float().view(-1, 1, 8, 8) / 16
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(1437).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return (model(images[1437:]).argmax(1) == labels[1437:]).float().mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs

    torch.manual_seed(0)
    dense = network(nn.Conv2d)
    torch.manual_seed(0)
    masked = network(partial(ek.FusedSubnetConv, keep=0.5))  # the line that is swapped

    for layer in masked:
        if isinstance(layer, ek.FusedSubnetConv):
            ek.init.signed_constant_(layer.weight)  # weights that never train want another start
    for name, model in (("dense", dense), ("masked", masked)):
        trained = sum(p.numel() for n, p in model.named_parameters() if n.endswith("weight") and p.requires_grad)
        print(f"{name}: {accuracy(model, epochs):.1%} of 360 unseen images right, {trained:,} weights trained")


if __name__ == "__main__":
    main()
