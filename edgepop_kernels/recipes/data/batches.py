"""Batches of a data set: their order, and the parts of them that a process computes."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Share:
    """The parts of every batch that one process computes: of ``parts`` even ones, ``count`` beginning at ``first``."""

    parts: int = 1
    first: int = 0
    count: int = 1

    def of(self, size: int) -> list[slice]:
        """Its parts of ``size`` images. Where they cannot be equal, they differ by one."""
        edges = [size * i // self.parts for i in range(self.first, self.first + self.count + 1)]
        return [slice(a, b) for a, b in pairwise(edges)]


WHOLE = Share()


class Part(NamedTuple):
    """images: float32 [B, C, H, W], normalised; labels: int64 [B]; weight: B over the images of the whole batch."""

    images: torch.Tensor
    labels: torch.Tensor
    weight: float


class Request(NamedTuple):
    """Images to read: ``indices`` int64 [B] into the split, which are the ``rows`` of a batch of ``size``.

    draw: what their augmentation follows from, (seed, epoch, step); None where there is none.
    """

    indices: torch.Tensor
    rows: slice
    size: int
    draw: tuple[int, int, int] | None


class Batches:
    """Batches of a ``Dataset`` or ``ImageFolder``: normalised float32 images in an order that (seed, epoch) determine.

    Permutation and augmentation are drawn on the CPU from generators seeded per epoch and step. So the position of a
    run in its data is (epoch, step): nothing else has to be saved to continue, devices see the same batches, and
    processes that share a batch agree on it without a word.
    """

    def __init__(
        self,
        data,
        batch_size: int,
        seed: int,
        *,
        channels_last: bool = False,
        workers: int = 0,
        moments: tuple[torch.Tensor, torch.Tensor] | None = None,
    ):
        """workers: processes that read and decode, where images are in files; 0 reads in this one. moments: mean and
        deviation of the pixels, float32 [C, 1, 1], other than those of ``data``."""
        self.data, self.batch_size, self.seed, self.workers = data, batch_size, seed, workers
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.mean, deviation = (s.to(data.device) for s in moments or data.moments())
        # A channel of one value everywhere has deviation 0: its pixels become 0, not NaN.
        self.deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))

    def preprocessing(self) -> dict:
        """The steps that turn a test image into the network's input, as plain data: pixels, whole numbers in
        ``values``, minus mean, over deviation, per channel."""
        return {
            "layout": "NCHW",
            "image": list(self.data.image),
            **self.data.preparation,
            "values": [0, self.data.highest],
            "mean": self.mean.flatten().tolist(),
            "deviation": self.deviation.flatten().tolist(),
        }

    def steps(self) -> int:
        """Steps of one epoch; the last batch may be smaller."""
        return -(-len(self.data.train) // self.batch_size)

    def smallest(self) -> int:
        """Images of the smallest batch of an epoch."""
        return len(self.data.train) % self.batch_size or self.batch_size

    def parts(self, epoch: int, start: int = 0, share: Share = WHOLE) -> Iterator[list[Part]]:
        """The parts in ``share`` of the epoch's batches ``start``, ``start + 1``..."""
        order = torch.randperm(len(self.data.train), generator=generator(self.seed, epoch)).to(self.data.device)
        requests = []
        for step in range(start, self.steps()):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            draw = (self.seed, epoch, step)
            requests += [Request(batch[rows], rows, len(batch), draw) for rows in share.of(len(batch))]
        return _grouped(self._parts(self.data.train, requests), share.count)

    def train(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Whole batches ``start``, ``start + 1``... of the epoch: float32 [B, C, H, W], int64 [B]."""
        for (part,) in self.parts(epoch, start):
            yield part.images, part.labels

    def test(self, share: Share = WHOLE) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The test part as ``in_order`` gives it."""
        return self.in_order(self.data.test, share)

    def in_order(self, split, share: Share = WHOLE) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """A part of the data to evaluate on: float32 [B, C, H, W], int64 [B]; of each batch the parts in ``share``."""
        order = torch.arange(len(split), device=self.data.device)
        requests = [
            Request(batch[rows], rows, len(batch), None)
            for batch in order.split(self.data.test_batch or self.batch_size)
            for rows in share.of(len(batch))
        ]
        for part in self._parts(split, requests):
            yield part.images, part.labels

    def _parts(self, split, requests: list[Request]) -> Iterator[Part]:
        for request, (images, labels) in zip(requests, self.data.read(split, requests, self.workers), strict=True):
            yield Part(self._normalised(images), labels, len(labels) / request.size)

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().sub_(self.mean).div_(self.deviation).contiguous(memory_format=self.format)


def _grouped(parts: Iterable[Part], count: int) -> Iterator[list[Part]]:
    parts = iter(parts)
    while group := list(islice(parts, count)):
        yield group


def generator(*key: int | str) -> torch.Generator:
    """A generator on the CPU that follows from ``key`` alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
