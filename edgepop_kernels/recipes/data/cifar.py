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
CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
        castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
        elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
        man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
        pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
        tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
        """.split()  # noqa: SIM905 - a list of a hundred quoted words reads worse
    ),
}


@dataclass(frozen=True)
class Variant:
    """Names and layout of one published archive. meta: its file of class names, which need not be there."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    parse: Callable[[bytes, str], Split]
    meta: str
    parse_meta: Callable[[bytes, str], tuple[str, ...]]


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


def _pickled_names(key: bytes) -> Callable[[bytes, str], tuple[str, ...]]:
    def parse(content: bytes, source: str) -> tuple[str, ...]:
        names = read_dict(content, source, (key,)).get(key)
        if not isinstance(names, list) or not all(isinstance(name, (bytes, str)) for name in names):
            raise UserError(f"{source} has no list {key!r} of names")
        return tuple(name if isinstance(name, str) else name.decode("latin1") for name in names)

    return parse


def _listed_names(content: bytes, source: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, content.decode("latin1").splitlines())))


def _batches(suffix: str) -> tuple[str, ...]:
    return tuple(f"data_batch_{i}{suffix}" for i in range(1, 6))


VARIANTS = {
    "cifar10": (
        Variant(
            folder="cifar-10-batches-py",
            archive="cifar-10-python.tar.gz",
            train=_batches(""),
            test=("test_batch",),
            parse=_parse_pickle(b"labels"),
            meta="batches.meta",
            parse_meta=_pickled_names(b"label_names"),
        ),
        Variant(
            folder="cifar-10-batches-bin",
            archive="cifar-10-binary.tar.gz",
            train=_batches(".bin"),
            test=("test_batch.bin",),
            parse=_parse_binary(1),
            meta="batches.meta.txt",
            parse_meta=_listed_names,
        ),
    ),
    "cifar100": (
        Variant(
            folder="cifar-100-python",
            archive="cifar-100-python.tar.gz",
            train=("train",),
            test=("test",),
            parse=_parse_pickle(b"fine_labels"),
            meta="meta",
            parse_meta=_pickled_names(b"fine_label_names"),
        ),
        Variant(
            folder="cifar-100-binary",
            archive="cifar-100-binary.tar.gz",
            train=("train.bin",),
            test=("test.bin",),
            parse=_parse_binary(2),
            meta="fine_label_names.txt",
            parse_meta=_listed_names,
        ),
    ),
}


def load(name: str, folder: Path) -> Dataset:
    """``name``: "cifar10" or "cifar100", found in ``folder`` itself, in the archive's folder below it, or packed."""
    found = _find(name, folder)
    if found is None:
        wanted = " or ".join(f"{v.folder}/ or {v.archive}" for v in VARIANTS[name])
        raise UserError(f"{folder} holds no {name}: expected its batches, or {wanted}")
    variant, place = found
    contents = (_unpacked if place.is_dir() else _packed)(place, variant.train + variant.test, variant.meta)
    train = [variant.parse(contents[n], f"{place}/{n}") for n in variant.train]
    test = [variant.parse(contents[n], f"{place}/{n}") for n in variant.test]
    class_names = CLASS_NAMES[name]
    if variant.meta in contents:
        source = f"{place}/{variant.meta}"
        class_names = variant.parse_meta(contents[variant.meta], source)
        if len(class_names) != len(CLASS_NAMES[name]):
            raise UserError(f"{source} names {len(class_names)} classes, expected {len(CLASS_NAMES[name])}")
    return checked(name, class_names, _joined(train), _joined(test), augment=True, source=str(place))


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


def _unpacked(folder: Path, names: tuple[str, ...], optional: str) -> dict[str, bytes]:
    wanted = (*names, optional) if (folder / optional).exists() else names
    return {name: read_bytes(folder / name) for name in wanted}


def _packed(archive: Path, names: tuple[str, ...], optional: str) -> dict[str, bytes]:
    """The named members' bytes, read in one pass; nothing is written to disk."""
    contents = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                if member.isfile() and name in (*names, optional):
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
