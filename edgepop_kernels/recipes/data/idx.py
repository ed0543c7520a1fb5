"""IDX files, the format of MNIST and Fashion-MNIST: raw or gzip, found where torchvision puts them too.

Layout: two zero bytes, a type code (8 = unsigned byte), the number of dimensions, each dimension as a big-endian
uint32, then the values.
"""

import gzip
import struct
import zlib
from pathlib import Path

import torch

from ..errors import UserError, reason
from .dataset import Dataset, Split, checked

UNSIGNED_BYTE = 8
CLASS_NAMES = {
    "mnist": tuple(map(str, range(10))),
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
# MNIST's training images are 47 MB. A header that announces more than this is damaged: refuse before allocating.
MAX_BYTES = 1 << 31


def load(name: str, folder: Path, subfolder: str) -> Dataset:
    """The set in ``folder``, ``folder/raw`` or ``folder/<subfolder>/raw`` (torchvision's layout)."""
    return checked(
        name,
        CLASS_NAMES[name],
        *(
            Split(
                read(_find(folder, subfolder, part, "images-idx3-ubyte"), dimensions=3).unsqueeze(1),
                read(_find(folder, subfolder, part, "labels-idx1-ubyte"), dimensions=1).long(),
            )
            for part in ("train", "t10k")
        ),
        augment=False,
        source=str(folder),
    )


def present(folder: Path, subfolder: str) -> bool:
    return any(path.exists() for path in _candidates(folder, subfolder, "train", "images-idx3-ubyte"))


def _candidates(folder: Path, subfolder: str, part: str, kind: str) -> list[Path]:
    names = [f"{part}-{kind}", f"{part}-{kind.replace('-idx', '.idx')}"]
    places = [folder, folder / "raw", folder / subfolder / "raw"]
    return [place / (name + suffix) for place in places for name in names for suffix in ("", ".gz")]


def _find(folder: Path, subfolder: str, part: str, kind: str) -> Path:
    for path in _candidates(folder, subfolder, part, kind):
        if path.exists():
            return path
    raise UserError(
        f"{folder} has no {part}-{kind} or {part}-{kind}.gz (looked in raw and {subfolder}/raw below it too)"
    )


def read(path: Path, dimensions: int) -> torch.Tensor:
    """Values of one IDX file as a uint8 tensor; a UserError naming the file where it is not exactly what it claims."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions:
                raise UserError(f"{path} is cut short: {len(head)} bytes, not even the header")
            zero, kind, count = struct.unpack_from(">HBB", head)
            if zero != 0 or kind != UNSIGNED_BYTE or count != dimensions:
                raise UserError(
                    f"{path} is not an IDX file of bytes in {dimensions} dimension(s): it starts with "
                    f"{head[:4].hex()}, expected 000008{dimensions:02x}"
                )
            shape = struct.unpack_from(f">{dimensions}I", head, 4)
            size = 1
            for extent in shape:
                size *= extent
            if size > MAX_BYTES:
                raise UserError(f"{path} announces {size} bytes, more than any set this program reads: damaged header")
            body = file.read(size + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    if len(body) != size:
        found = f"only {len(body)}" if len(body) < size else "more"
        raise UserError(f"{path} announces {size} bytes of values and holds {found}")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).view(shape) if size else torch.empty(shape).byte()
