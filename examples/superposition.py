"""Keeps several tasks in one set of random weights: a packed mask for each, and the task found where nobody tells it.

Task t is the digits with their pixels in an order of its own. Training a task finds a mask over weights that never
change, kept at 1 bit a weight. For images of an unknown task all masks are superposed, each with a share alpha, and
the task is the one whose share, raised, makes the output surest, as the gradient of its entropy tells in one backward
(Wortsman et al. 2020, "Supermasks in Superposition": one-shot, with more outputs than classes):

    python examples/superposition.py
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import edgepop_kernels as ek

RULE = ek.TopK(0.3)


def forward(x, weights, masks, rule):
    """masks: of each weight its scores under ``rule``, or packed bits under ``Frozen()``."""
    for i, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
        x = ek.masked_linear(x.relu() if i else x, weight, mask, rule)
    return x


def superposed(x, weights, tasks, alphas):
    """The same with the weight W * sum(alpha_t * M_t): one product a layer, however many tasks."""
    for i, weight in enumerate(weights):
        mixed = ek.mixed_weight(weight, torch.stack([bits[i] for bits in tasks]), alphas)
        x = F.linear(x.relu() if i else x, mixed)
    return x


def train(images, labels, weights, epochs):
    """The packed masks of one task."""
    scores = [ek.init.scores_(torch.empty_like(w)).requires_grad_() for w in weights]
    optimizer = torch.optim.SGD(scores, lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(forward(images[batch], weights, scores, RULE), labels[batch]).backward()
            optimizer.step()
    return [ek.pack_mask(ek.mask(s, RULE)) for s in scores]


def found_task(x, weights, tasks):
    alphas = torch.full((len(tasks),), 1 / len(tasks), requires_grad=True)
    p = superposed(x, weights, tasks, alphas).log_softmax(1)
    (slope,) = torch.autograd.grad(-(p.exp() * p).sum(1).mean(), alphas)
    return int(slope.argmin())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    images, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = images.float() / 16
    sizes = (500, 64), (500, 500), (100, 500)  # 100 outputs, of which 10 are classes
    weights = [ek.init.signed_constant_(torch.empty(size), 0.3, scale="paper") for size in sizes]
    orders = [torch.randperm(64) for _ in range(options.tasks)]
    tasks = [train(images[:1437, order], labels[:1437], weights, options.epochs) for order in orders]

    for t, order in enumerate(orders):
        x, y = images[1437:, order], labels[1437:]
        told = (forward(x, weights, tasks[t], ek.Frozen()).argmax(1) == y).float().mean()
        found = [found_task(part, weights, tasks) == t for part in x.split(60)]
        print(f"task {t}: {told:.1%} of 360 unseen images right; task found in {sum(found)} of {len(found)} batches")
    size, weight_size = sum(bits.nbytes for bits in tasks[0]), sum(w.nbytes for w in weights)
    print(f"a task takes {size:,} bytes beside the {weight_size:,} of the weights")


if __name__ == "__main__":
    main()
