"""Tiny ImageNet as it is published: tiny-imagenet-200/ with train/CLASS/images/IMAGE, the images of val/ in one folder
and their classes in val/val_annotations.txt."""

import os
from pathlib import Path

import numpy
import torch

from ..errors import UserError
from ..files import read_bytes
from .folder import SUFFIXES, FileSplit, ImageFolder, check_pillow, entries

FOLDER = "tiny-imagenet-200"
_ANNOTATIONS = Path("val", "val_annotations.txt")


def present(folder: Path) -> bool:
    return _place(folder) is not None


def load(folder: Path, side: int) -> ImageFolder:
    """The set in ``folder``, or in FOLDER below it; classes are numbered in the order of their names. val/ is the test
    part: that of test/ has no classes. Raises UserError."""
    check_pillow()
    place = _place(folder)
    if place is None:
        raise UserError(
            f"{folder} holds no Tiny ImageNet: expected train/CLASS/images and {_ANNOTATIONS} in it, unpacked"
        )
    classes = sorted(entry.name for entry in entries(place / "train") if entry.is_dir())
    if not classes:
        raise UserError(f"{place / 'train'} has no class folders: expected {place / 'train'}/CLASS/images/IMAGE")
    return ImageFolder(
        "tinyimagenet", len(classes), _train(place / "train", classes), _test(place, classes), side, tuple(classes)
    )


def _place(folder: Path) -> Path | None:
    return next((place for place in (folder, folder / FOLDER) if (place / _ANNOTATIONS).is_file()), None)


def _train(part: Path, classes: list[str]) -> FileSplit:
    found = []
    for label, name in enumerate(classes):
        images = sorted(e.name for e in entries(part / name / "images") if e.name.lower().endswith(SUFFIXES))
        if not images:
            raise UserError(f"the class folder {part / name / 'images'} has no image ({', '.join(SUFFIXES)})")
        found += [(f"{name}/images/{image}", label) for image in images]
    return _split(part, found)


def _test(place: Path, classes: list[str]) -> FileSplit:
    """By the lines of its annotations: image, class, and four numbers of a box."""
    file, numbers = place / _ANNOTATIONS, {name: label for label, name in enumerate(classes)}
    found = []
    for line, text in enumerate(read_bytes(file).decode("latin1").splitlines(), 1):
        image, _, rest = text.partition("\t")
        name = rest.partition("\t")[0]
        if name not in numbers:
            raise UserError(f"{file}, line {line}: expected an image and a class of train/, got {text!r}")
        found.append((image, numbers[name]))
    there = {entry.name for entry in entries(place / "val" / "images")}
    for image, _ in found:
        if image not in there:
            raise UserError(f"{file} names {image}, which {place / 'val' / 'images'} does not have")
    if not found:
        raise UserError(f"{file} names no image")
    return _split(place / "val" / "images", sorted(found))


def _split(folder: Path, found: list[tuple[str, int]]) -> FileSplit:
    names = numpy.array([os.fsencode(name) for name, _ in found])
    return FileSplit(folder, names, torch.tensor([label for _, label in found]))
