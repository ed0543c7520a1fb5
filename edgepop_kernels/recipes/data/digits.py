"""Handwritten digits, 8x8 pixels of 0..16, bundled with scikit-learn: real data without a download."""

import torch

from ..errors import UserError
from .dataset import Dataset, Split, checked

TRAIN = 1437  # the first 80 % of the 1797 images; the last 360 are the test part


def load() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn, or give a folder "
            "with --data"
        ) from error
    bundle = load_digits()
    images = torch.from_numpy(bundle.images).to(torch.uint8).unsqueeze(1)  # [1797, 1, 8, 8]
    labels = torch.from_numpy(bundle.target).long()
    train, test = Split(images[:TRAIN], labels[:TRAIN]), Split(images[TRAIN:], labels[TRAIN:])
    names = tuple(map(str, range(10)))
    return checked("digits", names, train, test, augment=False, source="scikit-learn's digits", highest=16)
