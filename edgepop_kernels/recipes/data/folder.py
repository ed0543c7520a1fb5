"""Image folders as ImageNet's: train/CLASS/IMAGE and val/CLASS/IMAGE, decoded by Pillow when their batch is due."""

import hashlib
import importlib.util
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy
import torch
from torch.utils.data import DataLoader

from ..errors import UserError, reason
from .batches import Request, generator
from .crops import middle_crop, prepared, random_crop
from .dataset import Parts

SUFFIXES = (".jpg", ".jpeg", ".png")
# Of ImageNet's training pixels, in 0..255: what every published network of it is trained with.
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class FileSplit:
    """names: bytes, relative to ``folder``, in one array [N] (a list of a million str would be copied by every worker
    that counts a reference); labels: int64 [N].
    """

    folder: Path
    names: numpy.ndarray
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: torch.Tensor) -> "FileSplit":
        """Some of its images, int64 [M] of them."""
        return replace(self, names=self.names[indices.numpy()], labels=self.labels[indices])


@dataclass(frozen=True)
class ImageFolder(Parts):
    """A data set of images in files, as ``Dataset`` is one of images in memory: 3 channels of ``side`` x ``side``
    pixels, cut from files."""

    name: str
    classes: int
    train: FileSplit
    test: FileSplit
    side: int
    class_names: tuple[str, ...] | None = None
    validation: FileSplit | None = None
    test_batch: ClassVar[None] = None  # as many as to train on
    highest: ClassVar[int] = 255
    device: torch.device = CPU

    @property
    def image(self) -> tuple[int, int, int]:
        return 3, self.side, self.side

    @property
    def preparation(self) -> dict:
        return prepared(self.side)

    def to(self, device: torch.device) -> "ImageFolder":
        return replace(self, device=device)

    def read(
        self, split: FileSplit, requests: list[Request], workers: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """uint8 [B, 3, S, S] and labels int64 [B] of each request. Raises UserError naming an image it cannot decode.

        What is cut from an image follows from (seed, epoch, its index) alone: it is the same for any number of workers
        and of processes, and after a resume.
        """
        loader = DataLoader(
            _Reader(split, self.side),
            sampler=[(request.indices.tolist(), request.draw) for request in requests],
            batch_size=None,
            num_workers=min(workers, len(os.sched_getaffinity(0))),  # more would only take turns
            worker_init_fn=_ignore_signals,
            pin_memory=self.device.type == "cuda",
            # Its own: a loader seeds its workers by a draw, which the global generator must not see.
            generator=torch.Generator(),
        )
        for request, images in zip(requests, loader, strict=True):
            if isinstance(images, UserError):
                raise images
            labels = split.labels[request.indices.cpu()]
            yield tuple(t.to(self.device, non_blocking=True) for t in (images, labels))

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))

    def digest(self) -> str:
        """SHA-256 of every file's name and label. Not of its content: ImageNet's would take an hour to read, and a run
        that met a damaged image shall go on once it is repaired."""
        sha = hashlib.sha256(str(self.side).encode())
        for split in (self.train, *self.evaluated.values()):
            for values in (split.names, split.labels.numpy()):
                sha.update(values.tobytes())
        return sha.hexdigest()


def present(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "val").is_dir()


def load(folder: Path, side: int) -> ImageFolder:
    """The set in ``folder``; classes are numbered in the order of their names. Raises UserError."""
    check_pillow()
    if not present(folder):
        raise UserError(f"{folder} holds no image folder: expected train/CLASS/IMAGE and val/CLASS/IMAGE in it")
    classes = _classes(folder / "train")
    for name in sorted(set(classes) ^ set(_classes(folder / "val"))):
        here, there = ("train", "val") if name in classes else ("val", "train")
        raise UserError(f"{folder}: the class {name} is in {here} but not in {there}")
    splits = [_split(folder / part, classes) for part in ("train", "val")]
    return ImageFolder("imagenet", len(classes), *splits, side, tuple(classes))


def check_pillow() -> None:
    if importlib.util.find_spec("PIL") is None:
        raise UserError("image folders need Pillow, which is not installed: pip install pillow")


def _classes(part: Path) -> list[str]:
    found = sorted(entry.name for entry in entries(part) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise UserError(f"{part} has no class folders: expected {part}/CLASS/IMAGE")
    return found


def _split(part: Path, classes: list[str]) -> FileSplit:
    names, labels = [], []
    for label, name in enumerate(classes):
        images = sorted(e.name for e in entries(part / name) if e.name.lower().endswith(SUFFIXES))
        if not images:
            raise UserError(f"the class folder {part / name} has no image ({', '.join(SUFFIXES)})")
        names += [os.fsencode(f"{name}/{image}") for image in images]
        labels += [label] * len(images)
    return FileSplit(part, numpy.array(names), torch.tensor(labels))


def entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {reason(error)}") from error


class _Reader:
    """Maps (indices, draw) to uint8 [B, 3, S, S]; an error is returned, for a loader would raise it as a traceback."""

    def __init__(self, split: FileSplit, side: int):
        self.split, self.side = split, side

    def __getitem__(self, wanted: tuple[list[int], tuple[int, int, int] | None]) -> torch.Tensor | UserError:
        indices, draw = wanted
        images = torch.empty(len(indices), 3, self.side, self.side, dtype=torch.uint8)
        try:
            for row, index in enumerate(indices):
                random = None if draw is None else generator(*draw[:2], index)
                images[row] = self._image(index, random)
        except UserError as error:
            return error
        return images

    def _image(self, index: int, random: torch.Generator | None) -> torch.Tensor:
        from PIL import Image

        path = self.split.folder / os.fsdecode(self.split.names[index].item())
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        # Pillow says SyntaxError or ValueError where a file breaks its format, OSError where it ends or is none.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot decode the image {path}: {' '.join(str(error).split())}") from error
        return middle_crop(image, self.side) if random is None else random_crop(image, self.side, random)


def _ignore_signals(worker: int) -> None:
    """A signal to the whole process group asks the parent to save and end; its workers end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
