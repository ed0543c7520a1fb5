"""Checkpoints: everything a run needs to go on bit for bit, in files that are complete or absent.

The state is plain data (tensors, numbers, strings, dicts, lists), so ``torch.load(weights_only=True)`` reads it and no
checkpoint can run code. PyTorch's reader does not verify the checksums of its own zip files; here they are verified,
so one flipped bit in a weight is an error and not another result.
"""

import io
import pickle
import random
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy
import torch

from .errors import UserError
from .files import read_bytes, write_atomic

FORMAT = 7
NAMES = ("last", "best", "first")  # the order in which a reader wants them
BEST = ("best-validation", "best-test")  # files of "best", named by the images that it was picked on; a run has one
FILES = tuple(f"{stem}.pt" for stem in ("last", *BEST, "first"))
_KEPT = re.compile(r"epoch-\d+\.pt")  # those of save_every


def is_name(file: str) -> bool:
    """Whether a run calls a checkpoint so."""
    return file in FILES or _KEPT.fullmatch(file) is not None


def path(folder: Path, name: str) -> Path:
    """File of the checkpoint ``name``: of NAMES, where "best" is whichever the run has, of BEST, or epoch-N."""
    files = [folder / f"{stem}.pt" for stem in (BEST if name == "best" else [name])]
    return next((file for file in files if file.exists()), files[-1])


def torch_bytes(content: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def save(folder: Path, names: list[str], state: dict) -> None:
    """Write ``state`` under each name; a reader finds the previous checkpoint or this one, never a part of it."""
    content = torch_bytes({"format": FORMAT} | state)
    for name in names:
        write_atomic(path(folder, name), content)


def write(file: Path, state: dict) -> None:
    """Write ``state`` to a file of any name, whole or not at all."""
    write_atomic(file, torch_bytes({"format": FORMAT} | state))


def load(file: Path) -> dict:
    """The state in ``file``, on the CPU. UserError, naming the file, for a missing, damaged or foreign one."""
    return _parse(file, read_bytes(file))


def load_run(folder: Path, name: str = "last") -> dict:
    """The state ``name`` of a run folder; where it is damaged, the error names the newest checkpoint that is not."""
    try:
        if name == "best" and not path(folder, name).exists():
            raise UserError(f"{folder} has neither {' nor '.join(f'{stem}.pt' for stem in BEST)}")
        return load(path(folder, name))
    except UserError as error:
        for other in NAMES:
            if other == name or not path(folder, other).exists():
                continue
            try:
                epoch = load(path(folder, other))["epoch"]
            except UserError:
                continue
            raise UserError(f"{error}; {path(folder, other)} (epoch {epoch}) is good: give that instead") from error
        raise


def _parse(file: Path, content: bytes) -> dict:
    _verify(file, content)
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(f"{file} is not a checkpoint of this program") from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{file} is not a checkpoint of this program")
    if state["format"] != FORMAT:
        raise UserError(f"{file} is not a checkpoint of this version: expected format {FORMAT}")
    return state


def _verify(file: Path, content: bytes) -> None:
    """Every member of the zip file against its checksum."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
    # A damaged directory of the zip file makes the reader trip in many ways: over names, offsets, flags, sizes.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
        raise UserError(f"the checkpoint {file} is corrupt: {str(error) or 'it is cut short'}") from error
    if damaged is not None:
        raise UserError(f"the checkpoint {file} is corrupt: wrong checksum of {damaged}")


def random_state() -> dict:
    """States of the generators of torch (CPU and, where used, the current GPU), Python and numpy, as plain data."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = numpy.random.get_state()  # noqa: NPY002 - the global generator is meant
    return torch_random_state() | {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
    }


def torch_random_state() -> dict:
    """The states of torch's generators alone, from which masks are drawn."""
    return {
        "torch": torch.get_rng_state(),
        # Of one GPU: each process of a run uses one, in the state that all of them share.
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_torch_random_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def set_random_state(state: dict) -> None:
    set_torch_random_state(state)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, numpy.uint32), position, has_gauss, cached))  # noqa: NPY002


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)  # noqa: NPY002
