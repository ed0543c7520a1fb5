"""The state_dict in a checkpoint: files read as data alone, containers around it, prefixes of wrappers on its names."""

import argparse
import os
import pathlib
import pickle
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

# The names under which training programs keep a network's state_dict, in the order in which they are looked for.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network")

File = str | os.PathLike[str] | Mapping[str, Any]


class Content(NamedTuple):
    """A state_dict, and where it was.

    entries   by their names in the checkpoint
    versions  of the modules' formats, by the modules' names there: torch's _metadata
    beside    the names of what else the checkpoint holds: epoch, optimizer
    """

    entries: dict[str, Any]
    versions: dict[str, Any]
    beside: tuple[str, ...]


def read(file: File) -> Content:
    """The state_dict in ``file``, on the CPU. Raises TypeError, OSError, ValueError for what has none or is more than
    data, ImportError for safetensors where that is not installed."""
    if isinstance(file, Mapping):
        return _state_in(file, "the dict")
    if not isinstance(file, str | os.PathLike):
        raise TypeError(f"file: expected a path, or a dict of a checkpoint, got {type(file).__name__}")
    where = os.fsdecode(file)
    loaded = _safetensors(where) if where.endswith(".safetensors") else _pickled(where)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"file: {where} holds a {type(loaded).__name__}; expected a dict")
    return _state_in(loaded, where)


def read_state_dict(file: File) -> dict[str, torch.Tensor]:
    """Returns the state_dict in a checkpoint of another program, in its order, as ``edgepop_kernels.load_checkpoint``
    finds it: for code that makes its own of the names.

    file     a path, of torch.save (read with weights_only=True) or of safetensors, or a dict
    returns  tensors on the CPU, by names without what DataParallel and torch.compile put into them

    Raises TypeError, OSError, ImportError and ValueError as ``load_checkpoint`` does for a file that it cannot read.

    >>> checkpoint = {"epoch": 90, "state_dict": {"module.0.weight": torch.zeros(10, 64)}}
    >>> list(ek.interop.read_state_dict(checkpoint))
    ['0.weight']
    """
    found: dict[str, torch.Tensor] = {}
    for name, value in read(file).entries.items():
        if plain_name(name) in found:
            raise ValueError(f"file: {plain_name(name)} is in it under two names; expected one of them")
        if isinstance(value, torch.Tensor):
            found[plain_name(name)] = value
    return found


def plain_name(name: str) -> str:
    """The name without what DataParallel, DistributedDataParallel and torch.compile put into it."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def _state_in(content: Mapping[str, Any], where: str) -> Content:
    beside: list[str] = []
    while True:
        inner = _container(content, where)
        beside += [str(name) for name in content if name != inner and inner is not None]
        if inner is None:
            break
        content = content[inner]
    if wrong := [name for name in content if not isinstance(name, str)]:
        raise ValueError(f"file: {where} has entries whose names are no strings, such as {wrong[0]!r}")
    # A module's extra state may be anything; else a number among tensors is an epoch.
    entries = {n: v for n, v in content.items() if isinstance(v, torch.Tensor) or n.endswith("_extra_state")}
    beside += [name for name in content if name not in entries]
    return Content(entries, dict(getattr(content, "_metadata", {})), tuple(beside))


def _container(content: Mapping[str, Any], where: str) -> str | None:
    """The name of what holds the state_dict; None where ``content`` is it. Raises ValueError."""
    for name in _CONTAINERS:
        if isinstance(content.get(name), Mapping):
            return name
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        return None
    holding = [name for name, value in content.items() if isinstance(value, Mapping) and _holds_tensors(value)]
    if len(holding) == 1:
        return holding[0]
    names = ", ".join(map(str, list(content)[:8])) or "nothing"
    if holding:
        raise ValueError(
            f"file: {where} holds several state_dicts, {', '.join(map(str, holding))}; expected one, as a dict: "
            f"load_checkpoint(model, checkpoint[{holding[0]!r}])"
        )
    raise ValueError(f"file: {where} holds no state_dict; expected names of tensors, got {names}")


def _holds_tensors(content: Mapping[str, Any]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in content.values())


def _pickled(where: str) -> Any:
    """The content of a file of ``torch.save``: tensors and plain values, nothing that could run code."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *_paths(), *_numbers_of_numpy()]):
            return torch.load(where, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {named[1]}" if named else str(error).splitlines()[0]
        raise ValueError(
            f"file: {where} holds more than tensors and plain values, which could run code, or is no checkpoint; save "
            f"its state_dict alone ({reason})"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"file: {where} is damaged or no checkpoint ({error})") from error


def _paths() -> list[Any]:
    """The types by which paths are unpickled, as names alone, which open nothing: programs save their arguments."""
    kinds = {"PosixPath": pathlib.PurePosixPath, "WindowsPath": pathlib.PureWindowsPath}
    kinds |= {pure.__name__: pure for pure in kinds.values()}
    return [(kind, f"{module}.{name}") for name, kind in kinds.items() for module in ("pathlib", "pathlib._local")]


def _numbers_of_numpy() -> list[Any]:
    """The functions and types by which numpy's numbers are unpickled: a learning rate or an accuracy is often one, and
    is data."""
    try:
        import numpy
    except ImportError:
        return []
    scalar = numpy.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, numpy.dtype, *{type(numpy.dtype(kind)) for kind in "?bhilqBHILQefd"}]


def _safetensors(where: str) -> dict[str, torch.Tensor]:
    try:
        import numpy  # noqa: F401 - what safetensors reads tensors with
        import safetensors
    except ImportError as error:
        raise ImportError(f"file: {where} needs safetensors and numpy; pip install safetensors numpy") from error
    try:
        with safetensors.safe_open(where, framework="pt") as opened:
            if "about_crc32" in (opened.metadata() or {}):
                raise ValueError(f"file: {where} is a packed file; edgepop_kernels.load_packed(file, model) reads it")
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except safetensors.SafetensorError as error:
        raise ValueError(f"file: {where} is damaged or no safetensors file ({error})") from error
