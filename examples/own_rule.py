"""Writes a mask rule of one's own: the best-scored weights of every output, where TopK ranks a whole layer.

A rule is a frozen dataclass over ``ek.Rule``; its ``select`` says what is kept. Products, gradients, optimizers,
``torch.compile`` and files take it as they take the package's own. Prints what each rule keeps and how well it learns:

    python examples/own_rule.py
"""

import argparse
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import edgepop_kernels as ek


@dataclass(frozen=True)
class PerOutput(ek.Rule):
    """Keeps the fraction ``keep`` of every output's weights, those of largest |s|."""

    keep: float = 0.5
    of: ClassVar[str] = "abs"  # dS = dW_eff * W * sign(S)
    selects: ClassVar[type] = ek.Bits  # a packed mask; ek.Cut is for rules that one threshold stands for

    def __post_init__(self):
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: the fraction of weights KEPT must be in (0, 1], got {self.keep}")

    def select(self, scores, ops):
        rows = scores.abs().flatten(1)  # [outputs, weights of each]
        best = rows.topk(ek.kept_count(rows.shape[1], self.keep)).indices
        mask = torch.zeros_like(rows, dtype=torch.bool).scatter(1, best, True)
        return ek.Bits(ek.pack_mask(mask.view_as(scores)), self.of)

    def share(self, scores):
        return ek.kept_count(scores[0].numel(), self.keep) / scores[0].numel()


def train(rule, epochs):
    torch.manual_seed(0)
    images, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = images.float() / 16
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    ek.convert(model, rule, init="signed_constant")
    optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(1437).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model, (model(images[1437:]).argmax(1) == labels[1437:]).float().mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    for rule in (ek.TopK(0.3), PerOutput(0.3)):
        model, accuracy = train(rule, epochs)
        kept = model[0].mask().sum(1)
        print(f"{rule}: {accuracy:.1%}; each of 300 units hears {kept.min()} to {kept.max()} of 64 pixels")
    again = ek.convert(nn.Sequential(*(nn.Linear(*s) for s in ((64, 300), (300, 100), (100, 10)))))
    again.load_state_dict({f"{int(k[0]) // 2}{k[1:]}": v for k, v in model.state_dict().items()})
    print(f"a state_dict brought {again[0].rule}")


if __name__ == "__main__":
    main()
