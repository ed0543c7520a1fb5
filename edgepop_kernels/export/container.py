"""The container of packed files: tensors, and what is said of them, in a safetensors file that is whole or not there.

Its metadata has three texts: ``format``; ``about``, JSON, with the CRC32 of every tensor in it; ``about_crc32``, the
CRC32 of ``about``. docs/packed_format.md is the page for who reads one.
"""

import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files import replace

FORMAT = "edgepop_kernels packed 1"
BANK = "edgepop_kernels bank 1"
_HOLDS = {
    FORMAT: "one network; expected a file of the masks of several tasks",
    BANK: "the masks of several tasks; expected an edgepop_kernels.MaskBank to load it into",
}

Tensors = dict[str, torch.Tensor]


class _Parsed(NamedTuple):
    """A safetensors file: its metadata, and the CRC32 of each tensor."""

    metadata: dict[str, str]
    crc32: dict[str, int]


def write(file: Path, tensors: Tensors, about: dict[str, Any], kind: str = FORMAT) -> None:
    """Replaces ``file`` by one of the format ``kind`` with ``tensors``, which share no memory, and ``about``, plain
    data. Raises OSError, and ImportError where safetensors is not installed."""
    library = _library()
    # Once for the checksums: they are of the file's own bytes, which the library lays out.
    crc32 = _parsed(library.torch.save(tensors)).crc32
    text = json.dumps(about | {"crc32": crc32}, allow_nan=False)
    metadata = {"format": kind, "about": text, "about_crc32": str(zlib.crc32(text.encode()))}
    replace(file, library.torch.save(tensors, metadata))


def read(file: Path, kind: str = FORMAT) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a file of the format ``kind``, on the CPU, and what is said of them. Raises OSError; ValueError
    for a file that is of another, or damaged; ImportError where safetensors is not installed."""
    library, content = _library(), file.read_bytes()
    try:
        tensors: Tensors = library.torch.load(content)
    except library.SafetensorError as error:
        raise ValueError(f"{file} is damaged, or no safetensors file: {error}") from error
    found = _parsed(content)
    if found.metadata.get("format") != kind:
        if (of := _HOLDS.get(found.metadata.get("format", ""))) is not None:
            raise ValueError(f"{file} holds {of}")
        raise ValueError(f"{file} is no packed file: expected the format {kind!r} in its metadata")
    text = found.metadata.get("about", "")
    if found.metadata.get("about_crc32") != str(zlib.crc32(text.encode())):
        raise ValueError(f"{file} is damaged: what it says of itself has another checksum")
    about: dict[str, Any] = json.loads(text)
    told: dict[str, int] = about.pop("crc32", {})
    for name in sorted(told.keys() | found.crc32.keys()):
        if told.get(name) != found.crc32.get(name):
            raise ValueError(f"{file} is damaged: {name} is not what was saved, its checksum is another")
    return tensors, about


def _parsed(content: bytes) -> _Parsed:
    """A file that the library has written or taken: 8 bytes of a length, so much JSON, the tensors."""
    begin = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:begin]), memoryview(content)[begin:]
    metadata = header.pop("__metadata__", {})
    crc32 = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        crc32[name] = zlib.crc32(data[first:last], zlib.crc32(f"{entry['dtype']} {entry['shape']}".encode()))
    return _Parsed(metadata, crc32)


def _library() -> Any:
    try:
        import numpy  # noqa: F401 - what safetensors saves tensors with
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "a packed file is a safetensors file: it needs safetensors and numpy, which are not both installed; "
            "pip install safetensors numpy"
        ) from error
    return safetensors
