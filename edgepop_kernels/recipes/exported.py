"""Files of weights for other programs: tensors, and what one has to know to use them.

A .safetensors file holds both; each value of its metadata is JSON. A .pt file holds the tensors alone, a state_dict
that ``torch.load(weights_only=True)`` reads; what goes with them is ``NAME.json`` beside it.
"""

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import torch

from . import checkpoint
from .errors import UserError
from .files import read_bytes, write_atomic

FORMAT = "edgepop_kernels export 1"
SUFFIXES = (".pt", ".safetensors")

Tensors = dict[str, torch.Tensor]


def description(file: Path) -> Path:
    """The file in which what goes with the tensors of ``file`` is written: of a .pt file beside it, else in it."""
    return file.with_suffix(".json") if file.suffix == ".pt" else file


def is_export(file: Path) -> bool:
    """Whether ``file`` says of itself that ``write`` wrote it."""
    try:
        describe(file)
    except UserError:
        return False
    return True


def check_free(file: Path) -> None:
    """UserError where writing ``file`` would replace something else than an export."""
    for path in dict.fromkeys((file, description(file))):
        if path.exists() and not is_export(file):
            raise UserError(f"cannot export to {file}: {path} is there and is no export, expected another name")


def write(file: Path, tensors: Tensors, about: dict[str, Any]) -> None:
    """Write tensors and what goes with them; ``read`` gives both back. Raises UserError."""
    about = {"format": FORMAT} | about | {"tensors_sha256": _digest(tensors)}
    if file.suffix == ".pt":
        # First: killed in between, it leaves what may be replaced.
        write_atomic(description(file), (json.dumps(about, indent=2) + "\n").encode())
        write_atomic(file, checkpoint.torch_bytes(tensors))
        return
    content = _safetensors().torch.save(tensors, {key: json.dumps(value) for key, value in about.items()})
    write_atomic(file, content)


def describe(file: Path) -> dict[str, Any]:
    """Reads what goes with the tensors of an export. Raises UserError where ``file`` is none."""
    source = description(file)
    if file.suffix == ".pt":
        if not source.exists():
            raise UserError(f"{file} is no export: {source} is not there")
        text = read_bytes(source)
    else:
        text = _header(file)
    try:
        about = json.loads(text)
        if file.suffix != ".pt":
            about = {key: json.loads(value) for key, value in about.get("__metadata__", {}).items()}
        found = about.get("format")
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{source} is damaged or does not describe an export: {error}") from error
    if found != FORMAT:
        raise UserError(f"{source} does not describe an export of this version: expected the format {FORMAT!r}")
    return about


def read(file: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors, on the CPU, and what goes with them. Raises UserError for a missing, damaged or foreign file."""
    about, content = describe(file), read_bytes(file)
    tensors = _torch(file, content) if file.suffix == ".pt" else _safe(file, content)
    whole = isinstance(tensors, dict) and all(isinstance(value, torch.Tensor) for value in tensors.values())
    if not whole or about.get("tensors_sha256") != _digest(tensors):
        raise UserError(f"{file} does not hold the tensors that {description(file)} describes: their hashes differ")
    return tensors, about


def _torch(file: Path, content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{file} is damaged or no file of torch.save") from error


def _safe(file: Path, content: bytes) -> Tensors:
    safetensors = _safetensors()
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}") from error


def _digest(tensors: Tensors) -> str:
    """SHA-256 of names, types, shapes and bytes, whatever the order."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def _header(file: Path) -> bytes:
    """The JSON at the beginning of a .safetensors file, after its length."""
    content = read_bytes(file)
    size = int.from_bytes(content[:8], "little")
    return content[8 : 8 + size]


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError(
            "a .safetensors file needs safetensors, which is not installed: pip install safetensors"
        ) from error
    return safetensors
