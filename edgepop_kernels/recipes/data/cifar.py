"""CIFAR-10 and CIFAR-100 from the python pickles or the binary version, unpacked in a folder or still in .tar.gz."""

import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from ..errors import UserError, reason
from ..files import read_bytes
from .dataset import Dataset, Split, checked
from .unpickle import read_dict

IMAGE = (3, 32, 32)
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Variant:
    """Names and layout of one published archive."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    parse: Callable[[bytes, str], Split]


def _parse_pickle(label_key: bytes) -> Callable[[bytes, str], Split]:
    def parse(content: bytes, source: str) -> Split:
        batch = read_dict(content, source, (b"data", label_key))
        images, labels = batch.get(b"data"), batch.get(label_key)
        if not isinstance(images, numpy.ndarray) or images.dtype != numpy.uint8 or images.shape[1:] != (PIXELS,):
            raise UserError(f"{source} has no array b'data' of {PIXELS} bytes per image")
        if isinstance(labels, numpy.ndarray):
            labels = labels.flatten().tolist()
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise UserError(f"{source} has no list {label_key!r} of whole numbers")
        if len(labels) != len(images):
            raise UserError(f"{source} has {len(images)} images but {len(labels)} labels")
        if any(abs(label) > 255 for label in labels):
            raise UserError(f"{source} has the label {max(labels, key=abs)}, which no CIFAR set has")
        return Split(torch.from_numpy(images).view(-1, *IMAGE), torch.tensor(labels, dtype=torch.int64))

    return parse


def _parse_binary(label_bytes: int) -> Callable[[bytes, str], Split]:
    """Rows of ``label_bytes`` labels (the last is the fine one) and 3072 pixels."""
    row = label_bytes + PIXELS

    def parse(content: bytes, source: str) -> Split:
        if not content or len(content) % row:
            raise UserError(
                f"{source} is {len(content)} bytes, not a multiple of the {row} bytes of an image: cut short?"
            )
        rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, row)
        return Split(rows[:, label_bytes:].reshape(-1, *IMAGE), rows[:, label_bytes - 1].long())

    return parse


def _batches(suffix: str) -> tuple[str, ...]:
    return tuple(f"data_batch_{i}{suffix}" for i in range(1, 6))


VARIANTS = {
    "cifar10": (
        Variant(
            "cifar-10-batches-py", "cifar-10-python.tar.gz", _batches(""), ("test_batch",), _parse_pickle(b"labels")
        ),
        Variant(
            "cifar-10-batches-bin", "cifar-10-binary.tar.gz", _batches(".bin"), ("test_batch.bin",), _parse_binary(1)
        ),
    ),
    "cifar100": (
        Variant("cifar-100-python", "cifar-100-python.tar.gz", ("train",), ("test",), _parse_pickle(b"fine_labels")),
        Variant("cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin",), ("test.bin",), _parse_binary(2)),
    ),
}


def load(name: str, folder: Path) -> Dataset:
    """``name``: "cifar10" or "cifar100", found in ``folder`` itself, in the archive's folder below it, or packed."""
    found = _find(name, folder)
    if found is None:
        wanted = " or ".join(f"{v.folder}/ or {v.archive}" for v in VARIANTS[name])
        raise UserError(f"{folder} holds no {name}: expected its batches, or {wanted}")
    variant, place = found
    names = variant.train + variant.test
    contents = _unpacked(place, names) if place.is_dir() else _packed(place, names)
    train = [variant.parse(contents[n], f"{place}/{n}") for n in variant.train]
    test = [variant.parse(contents[n], f"{place}/{n}") for n in variant.test]
    classes = 10 if name == "cifar10" else 100
    return checked(name, classes, _joined(train), _joined(test), augment=True, source=str(place))


def present(name: str, folder: Path) -> bool:
    return _find(name, folder) is not None


def _find(name: str, folder: Path) -> tuple[Variant, Path] | None:
    for variant in VARIANTS[name]:
        for place in (folder, folder / variant.folder):
            if (place / variant.train[0]).is_file():
                return variant, place
        if (folder / variant.archive).is_file():
            return variant, folder / variant.archive
    return None


def _unpacked(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: read_bytes(folder / name) for name in names}


def _packed(archive: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The named members' bytes, read in one pass; nothing is written to disk."""
    contents = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                if member.isfile() and name in names:
                    contents[name] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is a damaged archive: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {archive}: {reason(error)}") from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise UserError(f"{archive} lacks {', '.join(missing)}")
    return contents


def _joined(parts: list[Split]) -> Split:
    return Split(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
