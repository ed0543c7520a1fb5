"""Image sets held as uint8 tensors on the training device, and their batches."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ..errors import UserError

PAD = 4  # zero pixels around an image before the random crop: He et al. 2016, section 4.2


@dataclass(frozen=True)
class Split:
    """images: uint8 [N, C, H, W]; labels: int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A training and a test part, normalised by the mean and deviation per channel of the training part.

    augment: random crop (zero padding of 4 pixels) and horizontal flip of the training images.
    """

    name: str
    classes: int
    train: Split
    test: Split
    augment: bool = False

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return tuple(self.train.images.shape[1:])

    def to(self, device: torch.device) -> "Dataset":
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the training pixels, float32 [C, 1, 1], exact to rounding whatever the device."""
        values = torch.arange(256, dtype=torch.float64)
        mean, deviation = [], []
        for channel in self.train.images.unbind(1):
            counts = torch.bincount(channel.flatten().cpu(), minlength=256).double()
            m = (counts @ values) / counts.sum()
            mean.append(m)
            deviation.append(((counts @ (values - m).square()) / counts.sum()).sqrt())
        return tuple(torch.stack(s).float().view(-1, 1, 1) for s in (mean, deviation))

    def digest(self) -> str:
        """SHA-256 of every image and label: a resumed run must see the data it started with."""
        sha = hashlib.sha256()
        for split in (self.train, self.test):
            for tensor in (split.images, split.labels):
                sha.update(str(tuple(tensor.shape)).encode())
                sha.update(tensor.cpu().contiguous().numpy())
        return sha.hexdigest()


def checked(name: str, classes: int, train: Split, test: Split, augment: bool, source: str) -> Dataset:
    """The data set, once its parts are known to agree; ``source`` names the folder or file in the UserError."""
    for part, split in (("training", train), ("test", test)):
        if len(split) == 0:
            raise UserError(f"{source}: the {part} part of {name} is empty")
        if len(split.images) != len(split):
            raise UserError(f"{source}: {len(split.images)} {part} images of {name} but {len(split)} labels")
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise UserError(f"{source}: the {part} part of {name} has the label {wrong}, outside 0..{classes - 1}")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(
            f"{source}: training images of {name} are {_size(train)} pixels, test images {_size(test)}",
        )
    if train.images.min() == train.images.max():
        raise UserError(f"{source}: every training pixel of {name} is {int(train.images.flatten()[0])}")
    return Dataset(name, classes, train, test, augment)


def _size(split: Split) -> str:
    return "x".join(map(str, split.images.shape[1:]))


class Batches:
    """Batches of a data set as normalised float32 images, in an order that follows from (seed, epoch) alone.

    Permutation and augmentation are drawn on the CPU from a generator seeded per epoch and per step. So the position
    of a run in its data is (epoch, step): nothing else has to be saved to continue, and devices see the same batches.
    """

    def __init__(self, data: Dataset, batch_size: int, seed: int, *, channels_last: bool = False):
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.mean, self.deviation = (s.to(data.train.images.device) for s in data.moments())

    def steps(self) -> int:
        """Steps of one epoch; the last batch may be smaller."""
        return -(-len(self.data.train) // self.batch_size)

    def train(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches ``start``, ``start + 1``... of the epoch: float32 [B, C, H, W], int64 [B]."""
        split = self.data.train
        order = torch.randperm(len(split), generator=_generator(self.seed, epoch)).to(split.labels.device)
        for step in range(start, self.steps()):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            images = split.images.index_select(0, chosen)
            if self.data.augment:
                images = crop_and_flip(images, _generator(self.seed, epoch, step))
            yield self._normalised(images), split.labels.index_select(0, chosen)

    def test(self, size: int = 1000) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        split = self.data.test
        for images, labels in zip(split.images.split(size), split.labels.split(size), strict=True):
            yield self._normalised(images), labels

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        # A channel of one value everywhere has deviation 0: its pixels become 0, not NaN.
        scale = torch.where(self.deviation > 0, self.deviation, torch.ones_like(self.deviation))
        return images.float().sub_(self.mean).div_(scale).contiguous(memory_format=self.format)


def _generator(*key: int) -> torch.Generator:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def crop_and_flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image shifted by up to 4 pixels either way (zeros come in) and mirrored with probability 1/2, [B, C, H, W].

    One gather along the flattened pixels of the padded images serves the whole batch.
    """
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (PAD, PAD, PAD, PAD)).flatten(2)  # [B, C, (H + 8) * (W + 8)]
    top, left = torch.randint(2 * PAD + 1, (2, count, 1), generator=generator)  # each [B, 1]
    mirrored = torch.rand(count, 1, generator=generator) < 0.5  # [B, 1]
    rows = top + torch.arange(height)  # [B, H]
    columns = left + torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width))  # [B, W]
    pixels = rows[:, :, None] * (width + 2 * PAD) + columns[:, None, :]  # [B, H, W], into the flattened pixels
    pixels = pixels.view(count, 1, -1).to(images.device).expand(-1, channels, -1)
    return padded.gather(2, pixels).view(images.shape)
