"""Exports a masked network twice: as plain torch layers, and as packed masks beside the seed of its weights.

The plain file needs nothing of this package. The packed one has 1 bit a weight, the biases and a seed: random weights
that never trained are drawn again, by the same torch on the same kind of device. Prints both sizes, and that both
compute what the trained network does:

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

SEED = 7


def network():
    """Weights that follow from SEED alone."""
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    return ek.convert(model, keep=0.5, init="signed_constant")


def masked(model):
    return {name: m for name, m in model.named_modules() if hasattr(m, "packed_mask")}


def load_packed(path):
    saved = torch.load(path, weights_only=True)
    assert saved["seed"] == SEED, "drawn from another seed"
    model = network()
    for name, layer in masked(model).items():
        layer.freeze(ek.unpack_mask(saved["masks"][name], layer.weight.shape))  # the scores are dropped
        with torch.no_grad():
            layer.bias.copy_(saved["biases"][name])
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where the two files go; a temporary one if not given")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    images, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = images.float() / 16
    model = network()
    optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9)
    for _ in range(options.epochs):
        for batch in torch.randperm(1437).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    y = model(images[1437:])
    print(f"trained: {(y.argmax(1) == labels[1437:]).float().mean():.1%} of 360 unseen images right")

    with TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        plain = ek.materialize(model, copy=True)
        torch.save(plain.state_dict(), folder / "plain.pt")
        layers = masked(model).items()
        masks, biases = {n: m.packed_mask() for n, m in layers}, {n: m.bias.detach() for n, m in layers}
        torch.save({"seed": SEED, "masks": masks, "biases": biases}, folder / "packed.pt")
        again = load_packed(folder / "packed.pt")
        for name, loaded in (("plain", plain), ("packed", again)):
            apart = (loaded(images[1437:]) - y).abs().max()
            print(f"{name}.pt: {(folder / f'{name}.pt').stat().st_size:,} bytes, outputs within {apart:.0e}")


if __name__ == "__main__":
    main()
