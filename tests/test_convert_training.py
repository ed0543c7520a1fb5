"""Converted networks learn as ``convert`` documents it: its table of methods, on real handwritten digits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.recipes import data


def accuracy(seed, optimizer, rule=None, **options):
    """In percent, of 360 images, after 15 epochs of batches of 64; an MLP 64-300-100-10 with biases."""
    torch.manual_seed(seed)
    layers = nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    model = ek.share_selection(ek.convert(nn.Sequential(nn.Flatten(), *layers), rule, **options))
    optimizer = optimizer(model)
    batches = data.Batches(data.load("digits", None), 64, seed)
    masks = [layer.mask() for layer in model if hasattr(layer, "mask")]
    for epoch in range(15):
        for images, labels in batches.train(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    changed = [not torch.equal(mask, m.mask()) for mask, m in zip(masks, (model[1], model[3], model[5]), strict=True)]
    assert all(changed)
    with torch.no_grad():
        right = sum((model.eval()(images).argmax(1) == labels).sum().item() for images, labels in batches.test())
    return 100 * right / 360


def sgd(model):
    return ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9)


def adam(lr):
    return lambda model: ek.optim.ScoreAdam(model, lr=lr)


@pytest.mark.parametrize(
    ("options", "optimizer"),
    [
        (dict(init="signed_constant"), sgd),
        (dict(keep=0.1, init="signed_constant", scale="paper"), sgd),
        (dict(method="supermask", init="signed_constant"), adam(0.01)),
        (dict(rule=ek.Bernoulli(), method="supermask", init="signed_constant"), adam(0.1)),
        (dict(method="sparse", init="kaiming_normal"), sgd),
    ],
    ids=["subnet", "a tenth kept", "supermask", "Bernoulli", "sparse"],
)
def test_the_documented_settings_learn_the_digits(options, optimizer):
    assert accuracy(0, optimizer, **options) > 85
