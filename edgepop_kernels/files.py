"""Files that are whole or as they were, whatever moment the process dies at."""

import contextlib
import os
from pathlib import Path


def replace(file: Path, content: bytes, temporary: Path | None = None) -> None:
    """Replaces ``file`` by ``content`` in one step: a reader finds the old file or the new one, never a part.

    temporary  a name in the same folder to write to first; None: one of this process, so that several may write one
               file at once. A process that is killed leaves it behind.

    After it the new file is on the disk, and so is its name. Raises OSError, and leaves no temporary one.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.tmp") if temporary is None else temporary
    try:
        with open(partial, "wb") as written:
            written.write(content)
            written.flush()
            os.fsync(written.fileno())
        os.replace(partial, file)
        _sync_names(file.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _sync_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
