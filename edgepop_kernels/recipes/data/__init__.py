"""Data sets by name: digits (embedded); MNIST, Fashion-MNIST, CIFAR, ImageNet, Tiny ImageNet, from their files."""

from pathlib import Path

from ..errors import UserError
from . import cifar, digits, folder, idx, tiny
from .batches import WHOLE, Batches, Part, Share
from .dataset import Dataset, Split, crop_and_flip, draw_shifts
from .folder import ImageFolder
from .parts import HELD_OUT, hold_out, limited, usual_validation

DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "imagenet", "tinyimagenet")
PHOTOGRAPHS = ("imagenet", "tinyimagenet")  # crops of them are taken, of a side that is a setting
_TORCHVISION_FOLDER = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}

__all__ = [
    "DATASETS",
    "HELD_OUT",
    "PHOTOGRAPHS",
    "WHOLE",
    "Batches",
    "Dataset",
    "ImageFolder",
    "Part",
    "Share",
    "Split",
    "crop_and_flip",
    "detect",
    "draw_shifts",
    "hold_out",
    "limited",
    "load",
    "usual_validation",
]


def load(name: str, place: Path | None, image_size: int = 224) -> Dataset | ImageFolder:
    """The data set ``name``, read from the folder ``place`` (digits: from scikit-learn, None).

    image_size: side of the crops of PHOTOGRAPHS, in pixels; the other sets have a size. "imagenet" is any folder of
    that form. Raises UserError, one sentence naming the file, for a missing, damaged or inconsistent one.
    """
    if place is not None:
        _check_folder(place)
    if name == "digits":
        if place is not None:
            raise UserError(f"digits come with scikit-learn and are not read from {place}: leave out --data")
        return digits.load()
    if place is None:
        raise UserError(
            f"{name} is read from a folder: give it with --data FOLDER, or train on the embedded digits with "
            "--dataset digits"
        )
    if name in _TORCHVISION_FOLDER:
        return idx.load(name, place, _TORCHVISION_FOLDER[name])
    if name in PHOTOGRAPHS:
        return (tiny if name == "tinyimagenet" else folder).load(place, image_size)
    return cifar.load(name, place)


def detect(place: Path) -> str:
    """Name of the data set whose files are in ``place``. MNIST and Fashion-MNIST name their files alike: they
    are taken for MNIST unless the folder's name says fashion."""
    _check_folder(place)
    for name in ("cifar10", "cifar100"):
        if cifar.present(name, place):
            return name
    resolved = place.resolve()
    named = "fashion" in (resolved.parent if resolved.name == "raw" else resolved).name.lower()
    if idx.present(place, "FashionMNIST") and (named or not idx.present(place, "MNIST")):
        return "fashion-mnist"
    if idx.present(place, "MNIST"):
        return "mnist"
    if tiny.present(place):
        return "tinyimagenet"
    if folder.present(place):
        return "imagenet"
    raise UserError(
        f"{place} holds none of the data sets this program reads: MNIST or Fashion-MNIST (train-images-idx3-ubyte, "
        "raw or .gz), CIFAR-10 or CIFAR-100 (python or binary version, unpacked or .tar.gz), ImageNet (train/ and "
        "val/), Tiny ImageNet (val/val_annotations.txt)"
    )


def _check_folder(place: Path) -> None:
    if not place.exists():
        raise UserError(f"the data folder {place} does not exist")
    if not place.is_dir():
        raise UserError(f"{place} is not a folder")
