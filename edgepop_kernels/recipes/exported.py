"""Files of networks for other programs: tensors, and what one has to know to use them.

A .safetensors file holds both; each value of its metadata is JSON. A .pt file holds the tensors alone, a state_dict
that ``torch.load(weights_only=True)`` reads; what goes with them is ``NAME.json`` beside it. A packed file, of
``edgepop_kernels.save_packed``, has it as its meta, and an .onnx file in its metadata, as JSON. ``NAME.md`` beside each
is a card for people.
"""

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

import edgepop_kernels as ek

from . import checkpoint
from .errors import UserError, reason
from .files import read_bytes, write_atomic

FORMAT = "edgepop_kernels export 1"
SUFFIXES = (".pt", ".safetensors")
PACKED = "packed network"  # what a packed file says that it holds

Tensors = dict[str, torch.Tensor]


def description(file: Path) -> Path:
    """The file in which what goes with the tensors of ``file`` is written: of a .pt file beside it, else in it."""
    return file.with_suffix(".json") if file.suffix == ".pt" else file


def card(file: Path) -> Path:
    """The card of an export."""
    return file.with_suffix(".md")


def is_export(file: Path) -> bool:
    """Whether ``file`` says of itself that it was written here."""
    try:
        if file.suffix in (".onnx", ".md"):
            return FORMAT.encode() in read_bytes(file)
        describe(file)
    except UserError:
        return False
    return True


def check_free(file: Path) -> None:
    """UserError where writing ``file``, and what goes with it, would replace something else than an export."""
    told_by = {file: file, description(file): file, card(file): card(file)}
    for path, export in told_by.items():
        if path.exists() and not is_export(export):
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


def write_packed(file: Path, model: nn.Module, about: dict[str, Any]) -> None:
    """Write a masked network as ``ek.save_packed`` does. Raises UserError."""
    _safetensors()
    try:
        ek.save_packed(model, file, **{"format": FORMAT} | about | {"holds": PACKED})
    except OSError as error:
        raise UserError(f"cannot write {file}: {reason(error)}") from error


def write_onnx(file: Path, model: nn.Module, image: tuple[int, int, int], packed: bool, about: dict[str, Any]) -> str:
    """Write a network for images [C, H, W] = ``image`` as ``ek.save_onnx`` does; returns a line on how it was checked.
    Raises UserError."""
    try:
        error = ek.save_onnx(
            model, file, torch.randn(2, *image), packed=packed, **{"format": FORMAT} | about | {"holds": "a network"}
        )
    except ImportError as missing:
        raise UserError(str(missing)) from missing
    except OSError as failed:
        raise UserError(f"cannot write {file}: {reason(failed)}") from failed
    except RuntimeError as failed:  # torch's exporter tells a page of it
        raise UserError(f"cannot write {file}: {str(failed).strip().splitlines()[0]}") from failed
    if error is None:
        return f"{file}: not checked, onnxruntime is not installed"
    return f"{file}: onnxruntime answers as torch does, to {error:.0e}"


def write_card(file: Path, text: str) -> None:
    """Write the card of an export. Raises UserError."""
    write_atomic(card(file), f"<!-- {FORMAT} -->\n{text}".encode())


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
            said = about.get("__metadata__", {})
            packed = json.loads(said["about"])["meta"] if "about" in said else None
            about = packed or {key: json.loads(value) for key, value in said.items()}
        found = about.get("format")
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{source} is damaged or does not describe an export: {error}") from error
    if found != FORMAT:
        raise UserError(f"{source} does not describe an export of this version: expected the format {FORMAT!r}")
    return about


def read(file: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors, on the CPU, and what goes with them. Raises UserError for a missing, damaged or foreign file."""
    about = describe(file)
    if about.get("holds") == PACKED:
        return read_packed(file), about
    content = read_bytes(file)
    tensors = _torch(file, content) if file.suffix == ".pt" else _safe(file, content)
    whole = isinstance(tensors, dict) and all(isinstance(value, torch.Tensor) for value in tensors.values())
    if not whole or about.get("tensors_sha256") != _digest(tensors):
        raise UserError(f"{file} does not hold the tensors that {description(file)} describes: their hashes differ")
    return tensors, about


def read_packed(file: Path, model: nn.Module | None = None) -> Any:
    """``ek.load_packed``. Raises UserError."""
    _safetensors()
    try:
        return ek.load_packed(file, model)
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {reason(error)}") from error


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
