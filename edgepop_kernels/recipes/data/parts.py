"""The images of a data set that a run uses: some are held out to choose an epoch by, a smoke test takes the first
few."""

from dataclasses import replace

import torch

from ..errors import ConfigError
from .batches import generator
from .dataset import Dataset
from .folder import ImageFolder

HELD_OUT = 5000  # images where the training set has LARGE and more: what MNIST and CIFAR-10 are usually split into
LARGE = 50_000


def usual_validation(images: int) -> int:
    """Images held out of a training set of so many, where nobody says how many."""
    return HELD_OUT if images >= LARGE else 0


def limited(data: Dataset | ImageFolder, count: int) -> Dataset | ImageFolder:
    """The first ``count`` images of the training part and of the test part; all of them where ``count`` is 0."""
    if count == 0:
        return data
    train, test = (split.take(torch.arange(min(count, len(split)))) for split in (data.train, data.test))
    return replace(data, train=train, test=test)


def hold_out(data: Dataset | ImageFolder, count: int) -> Dataset | ImageFolder:
    """``count`` training images become the validation part; 0: there is none. The others keep their order.

    Which ones depends on the number of training images alone, not on a seed: runs that differ in nothing but their
    seeds are chosen by the same images, and fewer images are some of the more. Raises ConfigError where none would be
    left to train on.
    """
    if count == 0:
        return data
    images = len(data.train)
    if count >= images:
        raise ConfigError(f"expected fewer than the {images} training images, got {count}", "validation")
    order = torch.randperm(images, generator=generator("validation", images))
    held, left = (indices.sort().values for indices in (order[:count], order[count:]))
    return replace(data, train=data.train.take(left), validation=data.train.take(held))
