"""Reads the pickles of CIFAR-10 and CIFAR-100 without running anything they ask for.

A pickle is a program: the ordinary reader imports and calls whatever the file names. This one knows the five names a
uint8 numpy array needs and maps them to stand-ins that only record their arguments; any other name is refused. The
array is then built from the recorded bytes, so not even numpy's own reconstruction sees unchecked input.
"""

import io
import math
import pickle

import torch

from ..errors import UserError

# What pickle raises on damaged input besides its own error; its documentation promises no closed list.
DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
)


class _Refused(Exception):
    pass


class _DType:
    def __init__(self, code, *_):
        self.code = code

    def __setstate__(self, state):
        pass  # byte order and alignment: one byte has neither


class _Array:
    def __init__(self, *_):
        self.shape, self.dtype, self.columns_first, self.content = (), None, False, b""

    def __setstate__(self, state):
        _, self.shape, self.dtype, self.columns_first, self.content = state

    def tensor(self) -> torch.Tensor:
        """uint8 tensor of the recorded shape; ValueError where the record makes none."""
        if not isinstance(self.dtype, _DType) or self.dtype.code not in ("u1", b"u1"):
            raise ValueError("an array of something else than bytes")
        content = self.content.encode("latin1") if isinstance(self.content, str) else self.content
        if not all(type(extent) is int and extent >= 0 for extent in self.shape):
            raise ValueError(f"an array of shape {self.shape}")
        if not isinstance(content, bytes) or len(content) != math.prod(self.shape) or not content:
            raise ValueError(f"an array of shape {self.shape} without its bytes")
        shape = self.shape[::-1] if self.columns_first else self.shape
        flat = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)
        return flat.permute(*reversed(range(flat.dim()))).contiguous() if self.columns_first else flat


def _from_buffer(content, dtype, shape, order) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(content)))
    return array


def _encode(text, encoding) -> bytes:
    """Bytes written by Python 3 in a protocol that Python 2 reads."""
    if encoding != "latin1":
        raise _Refused(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _STAND_INS:
            raise _Refused(f"{module}.{name}")
        return _STAND_INS[module, name]

    def persistent_load(self, pid):
        raise _Refused("a persistent object")


def read_dict(content: bytes, source: str) -> dict:
    """The pickled dict, its arrays as uint8 tensors; a UserError naming ``source`` for anything else."""
    try:
        loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(loaded, dict):
            raise ValueError("no dict inside")
        return {key: value.tensor() if isinstance(value, _Array) else value for key, value in loaded.items()}
    except _Refused as error:
        raise UserError(f"{source} is not a CIFAR batch: its pickle asks for {error}, which is refused") from error
    except DAMAGED as error:
        raise UserError(f"{source} is damaged or no CIFAR batch: {str(error) or type(error).__name__}") from error
