"""Files that are either complete or absent, whatever moment the process dies at."""

import contextlib
import csv
import fcntl
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..files import replace
from .errors import UserError, reason


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step; what fails is a UserError.

    The temporary name is fixed, so a process killed half way leaves one file that the next write overwrites. Two
    writers of one path have to hold ``locked(path.parent)``.
    """
    try:
        replace(path, content, _temporary(path))
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


def remove(path: Path) -> None:
    """Remove ``path`` and what a process that was killed while it wrote it left, where they are there."""
    try:
        for file in (path, _temporary(path)):
            file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {path}: {reason(error)}") from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold the folder's advisory lock, which ends with the process; without ``wait``, a held lock is a UserError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot open the folder {folder}: {reason(error)}") from error
    try:
        _lock(descriptor, folder, wait)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise UserError(f"another process is training in {folder}") from error
    except OSError as error:
        raise UserError(f"cannot lock the folder {folder}: {reason(error)}") from error


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {reason(error)}") from error


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error


def csv_bytes(columns: Iterable[str], rows: Iterable[dict]) -> bytes:
    """Comma-separated text with a header; floats in full precision, so that equal files mean equal numbers."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def append_csv(path: Path, columns: list[str], row: dict, key: tuple[str, ...]) -> None:
    """Append ``row`` atomically to the table at ``path``, unless a row with the same values of ``key`` is there."""
    with locked(path.parent, wait=True):
        rows = read_csv(path, columns) if path.exists() else []
        if all(any(known[name] != str(row[name]) for name in key) for known in rows):
            write_atomic(path, csv_bytes(columns, [*rows, row]))


def read_csv(path: Path, columns: list[str]) -> list[dict]:
    """Rows of a table with these columns that this program wrote; another header is a UserError."""
    try:
        rows = csv.DictReader(io.StringIO(read_bytes(path).decode()), strict=True)
        table = list(rows)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a table of results ({error}); move it away") from error
    if rows.fieldnames != columns or any(None in row or None in row.values() for row in table):
        raise UserError(f"{path} is a table with other columns than {', '.join(columns)}; move it away")
    return table
