"""Data sets by name: digits (embedded), MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 (from their files in a folder)."""

from pathlib import Path

from ..errors import UserError
from . import cifar, digits, idx
from .dataset import Batches, Dataset, Split, crop_and_flip

DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")
_TORCHVISION_FOLDER = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}

__all__ = ["DATASETS", "Batches", "Dataset", "Split", "crop_and_flip", "detect", "load"]


def load(name: str, folder: Path | None) -> Dataset:
    """The data set ``name``, read from ``folder`` (digits: from scikit-learn, no folder).

    Raises UserError, one sentence naming the file, for a missing, damaged or inconsistent one.
    """
    if folder is not None:
        _check_folder(folder)
    if name == "digits":
        if folder is not None:
            raise UserError(f"digits come with scikit-learn and are not read from {folder}: leave out --data")
        return digits.load()
    if folder is None:
        raise UserError(
            f"{name} is read from a folder: give it with --data FOLDER, or try the recipe on --dataset digits"
        )
    if name in _TORCHVISION_FOLDER:
        return idx.load(name, folder, _TORCHVISION_FOLDER[name])
    return cifar.load(name, folder)


def detect(folder: Path) -> str:
    """Name of the data set whose files are in ``folder``. MNIST and Fashion-MNIST name their files alike: they
    are taken for MNIST unless the folder's name says fashion."""
    _check_folder(folder)
    for name in ("cifar10", "cifar100"):
        if cifar.present(name, folder):
            return name
    resolved = folder.resolve()
    named = "fashion" in (resolved.parent if resolved.name == "raw" else resolved).name.lower()
    if idx.present(folder, "FashionMNIST") and (named or not idx.present(folder, "MNIST")):
        return "fashion-mnist"
    if idx.present(folder, "MNIST"):
        return "mnist"
    raise UserError(
        f"{folder} holds none of the data sets this program reads: MNIST or Fashion-MNIST (train-images-idx3-ubyte, "
        "raw or .gz), CIFAR-10 or CIFAR-100 (python or binary version, unpacked or .tar.gz)"
    )


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise UserError(f"the data folder {folder} does not exist")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
