"""Trains a masked network with Lightning: a LightningModule as ever, over a converted model and a score optimizer.

Needs lightning. Prints the accuracy on digits it has not seen:

    python examples/lightning_module.py
"""

import argparse

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgepop_kernels as ek


class Digits(L.LightningModule):
    def __init__(self, keep=0.5):
        super().__init__()
        self.save_hyperparameters()
        body = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
        self.network = ek.convert(body, keep=keep, init="signed_constant", scale="paper")
        ek.share_selection(self.network)

    def training_step(self, batch, index):
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    def test_step(self, batch, index):
        x, y = batch
        self.log("accuracy", (self.network(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return ek.optim.ScoreSGD(self.network, lr=0.1, momentum=0.9)


def loader(part, **options):
    images, labels = (torch.from_numpy(a[part]) for a in load_digits(return_X_y=True))
    return DataLoader(TensorDataset(images.float() / 16, labels), **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--keep", type=float, default=0.1, help="fraction of weights kept, in (0, 1]")
    options = parser.parse_args()
    L.seed_everything(0, verbose=False)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(max_epochs=options.epochs, accelerator="auto", devices=1, **quiet)
    module = Digits(options.keep)
    trainer.fit(module, loader(slice(0, 1437), batch_size=64, shuffle=True))
    (result,) = trainer.test(module, loader(slice(1437, None), batch_size=360), verbose=False)
    print(f"{result['accuracy']:.1%} of 360 unseen images right, with {ek.summary(module).kept:,} weights")


if __name__ == "__main__":
    main()
