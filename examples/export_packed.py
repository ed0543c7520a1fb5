"""Exports a masked network twice: as plain torch layers, and as a packed file, a bit a weight and a seed a layer.

The plain file needs nothing of this package. The packed one has of random weights that never trained a seed, from which
the same ones are drawn on any machine; beside that the masks, 1 bit a weight, and the biases. Prints both sizes, and
that both compute what the trained network does:

    python examples/export_packed.py [FOLDER]
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import edgepop_kernels as ek


def network():
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    ek.convert(model, keep=0.5)
    for layer in model[::2]:
        ek.init.packed_signed_constant_(layer)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where the two files go; a temporary one if not given")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    images, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = images.float() / 16
    torch.manual_seed(7)
    model = network()
    optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9)
    for _ in range(options.epochs):
        for batch in torch.randperm(1437).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    y = model(images[1437:])
    accuracy = (y.argmax(1) == labels[1437:]).float().mean().item()
    print(f"trained: {accuracy:.1%} of 360 unseen images right")

    with TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        plain = ek.materialize(model, copy=True)
        torch.save(plain.state_dict(), folder / "plain.pt")
        ek.save_packed(model, folder / "packed.safetensors", accuracy=accuracy)
        again = ek.load_packed(folder / "packed.safetensors", network())
        for name, loaded in (("plain.pt", plain), ("packed.safetensors", again)):
            apart = (loaded(images[1437:]) - y).abs().max()
            print(f"{name}: {(folder / name).stat().st_size:,} bytes, outputs within {apart:.0e}")


if __name__ == "__main__":
    main()
