"""Image sets held as uint8 tensors on the training device, gathered and augmented there."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..errors import UserError
from .batches import Request, generator

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

    def take(self, indices: torch.Tensor) -> "Split":
        """Some of its images, int64 [M] of them."""
        return Split(self.images[indices], self.labels[indices])


class Parts:
    """The parts of a data set: ``train``, ``test``, and ``validation``, None where nothing is held out."""

    @property
    def evaluated(self) -> dict:
        """The parts to evaluate after each epoch, by name; an epoch is picked by its accuracy on the first of them."""
        held = {} if self.validation is None else {"validation": self.validation}
        return held | {"test": self.test}


@dataclass(frozen=True)
class Dataset(Parts):
    """A training and a test part, normalised by the mean and deviation per channel of the training part.

    augment: random crop (zero padding of 4 pixels) and horizontal flip of the training images. class_names: in the
    order of the labels, where they are known. highest: pixels are whole numbers from 0 to this. validation: what was
    held out of the training part, which then is the rest; None where nothing was.
    """

    name: str
    classes: int
    train: Split
    test: Split
    augment: bool = False
    class_names: tuple[str, ...] | None = None
    highest: int = 255
    validation: Split | None = None
    preparation: ClassVar[dict] = {}
    test_batch: ClassVar[int] = 1000  # images; without gradients, more fit than in a training step

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return tuple(self.train.images.shape[1:])

    def to(self, device: torch.device) -> "Dataset":
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), validation=validation)

    @property
    def device(self) -> torch.device:
        return self.train.images.device

    def read(self, split: Split, requests: list[Request], workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """uint8 [B, C, H, W] and labels int64 [B] of each request, which are in memory: no work for ``workers``."""
        for request in requests:
            images = split.images.index_select(0, request.indices)
            if self.augment and request.draw is not None:
                shifts = draw_shifts(request.size, generator(*request.draw))[:, request.rows]
                images = crop_and_flip(images, shifts.to(images.device))
            yield images, split.labels.index_select(0, request.indices)

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the pixels trained on, float32 [C, 1, 1], exact to rounding whatever the device."""
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
        for split in (self.train, *self.evaluated.values()):
            for tensor in (split.images, split.labels):
                sha.update(str(tuple(tensor.shape)).encode())
                sha.update(tensor.cpu().contiguous().numpy())
        return sha.hexdigest()


def checked(
    name: str, class_names: tuple[str, ...], train: Split, test: Split, augment: bool, source: str, highest: int = 255
) -> Dataset:
    """The data set, once its parts are known to agree; ``source`` names the folder or file in the UserError."""
    classes = len(class_names)
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
    return Dataset(name, classes, train, test, augment, class_names, highest)


def _size(split: Split) -> str:
    return "x".join(map(str, split.images.shape[1:]))


def draw_shifts(count: int, random: torch.Generator) -> torch.Tensor:
    """Draws for each image the crop's first row, its first column, and whether it is mirrored: int64 [3, count]."""
    corners = torch.randint(2 * PAD + 1, (2, count), generator=random)
    return torch.cat([corners, (torch.rand(1, count, generator=random) < 0.5).long()])


def crop_and_flip(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to 4 pixels either way (zeros come in) and mirrored as ``shifts`` says, [B, C, H, W].

    One gather along the flattened pixels of the padded images serves the whole batch.
    """
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (PAD, PAD, PAD, PAD)).flatten(2)  # [B, C, (H + 8) * (W + 8)]
    top, left, mirrored = shifts.unsqueeze(2)  # each [B, 1]
    across = torch.arange(width, device=images.device)  # [W]
    rows = top + torch.arange(height, device=images.device)  # [B, H]
    columns = left + torch.where(mirrored > 0, across.flip(0), across)  # [B, W]
    pixels = rows[:, :, None] * (width + 2 * PAD) + columns[:, None, :]  # [B, H, W], into the flattened pixels
    pixels = pixels.view(count, 1, -1).expand(-1, channels, -1)
    return padded.gather(2, pixels).view(images.shape)
