"""Reads the pickles of CIFAR-10 and CIFAR-100 without running anything they ask for.

A pickle is a program: the ordinary reader imports and calls whatever the file names. This one knows the names that
arrays and scalars of numpy and byte strings need, as Python 2 and Python 3 write them in any protocol, and maps them
to stand-ins that only record their arguments. Any other name is refused, and so is every opcode that those do not
need. An array is then built from the recorded bytes, so not even numpy's own reconstruction sees unchecked input.
"""

import io
import math
import pickle
import struct
from collections.abc import Callable
from typing import Any

import numpy

from ..errors import UserError

# What the reader raises on damaged input besides its own error; its documentation promises no closed list.
_DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
)
_OPCODES = """
PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS
GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD PERSID BINPERSID
"""
_INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
_LONGEST = 120  # characters of a damaged file's words in a sentence


class _Refused(Exception):
    pass


class _Name:
    """A stand-in for a pickle's name: it can be called, and BUILD, which sets a function's attributes, is refused."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]):
        self.call = call

    def __call__(self, *arguments):
        return self.call(*arguments)

    def __setstate__(self, state):
        raise _Refused("a change of what it names")


class _DType:
    def __init__(self, code=None, *_):
        self.code, self.order = code, "="

    def __setstate__(self, state):
        self.order = state[1]

    def integers(self, content) -> numpy.ndarray:
        """The bytes as whole numbers, in one dimension; ValueError where they are others."""
        code, order = (v.decode() if isinstance(v, bytes) else v for v in (self.code, self.order))
        if code not in _INTEGERS or order not in ("<", ">", "=", "|"):
            raise ValueError("an array of something else than bytes or whole numbers")
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(content, (bytes, bytearray)):
            raise ValueError("an array without its bytes")
        return numpy.frombuffer(content, numpy.dtype(order + code))


class _Array:
    def __init__(self, *_):
        self.shape, self.dtype, self.columns_first, self.content = (), None, False, b""

    def __setstate__(self, state):
        _, self.shape, self.dtype, self.columns_first, self.content = state

    def values(self) -> numpy.ndarray:
        """The array of whole numbers, C order, a copy; ValueError where the record makes none."""
        if not isinstance(self.dtype, _DType):
            raise ValueError("an array without a type")
        flat = self.dtype.integers(self.content)
        shape = self.shape
        if not isinstance(shape, tuple) or not 0 < len(shape) <= 4 or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array of no shape")
        if flat.size != math.prod(shape):
            raise ValueError(f"an array of shape {shape} and {flat.size} values")
        return numpy.array(flat.reshape(shape, order="F" if self.columns_first else "C"), order="C")


def _from_buffer(content, dtype, shape, order) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def _scalar(dtype, content) -> int:
    if not isinstance(dtype, _DType):
        raise ValueError("a scalar without a type")
    return dtype.integers(content).item()


def _empty_bytes() -> bytes:
    return b""


# The reader that is written in Python, whose opcodes can be chosen. The one in C besides makes room for as many objects
# as a file claims to remember, and hashes the keys of dicts: of tuples nested deep enough, past the end of its stack.
class _Unpickler(pickle._Unpickler):
    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.encodable = len(content)
        self.names = {
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _DType,
            ("_codecs", "encode"): self._encode,
            ("builtins", "bytes"): _empty_bytes,
            ("__builtin__", "bytes"): _empty_bytes,
        }
        for core in ("numpy.core", "numpy._core"):
            self.names[f"{core}.multiarray", "_reconstruct"] = _Array
            self.names[f"{core}.multiarray", "scalar"] = _scalar
            self.names[f"{core}.numeric", "_frombuffer"] = _from_buffer

    def find_class(self, module, name):
        if (module, name) not in self.names:
            raise _Refused(f"{module}.{name}")
        return _Name(self.names[module, name])

    def persistent_load(self, pid):
        raise _Refused("a persistent object")

    def _encode(self, text, encoding) -> bytes:
        """Bytes written by Python 3 in a protocol that Python 2 reads. Each text is in the file once, however often a
        hostile one asks for its bytes."""
        if encoding != "latin1":
            raise _Refused(f"_codecs.encode to {encoding if isinstance(encoding, str) else type(encoding).__name__!r}")
        content = text.encode("latin1")
        self.encodable -= len(content)
        if self.encodable < 0:
            raise ValueError("more byte strings than the file is long")
        return content

    def _put(self, target, items) -> None:
        if type(target) is not dict or not all(type(key) in (bytes, str, int) for key in items[::2]):
            raise ValueError("a dict with keys of another kind than text")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _set_item(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._put(self.stack[-1], [key, value])

    def _set_items(self):
        items = self.pop_mark()
        self._put(self.stack[-1], items)

    def _dict(self):
        items = self.pop_mark()
        self.append({})
        self._put(self.stack[-1], items)

    def _bytearray(self):
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    class _Dispatch(dict):
        def __missing__(self, code):
            raise _Refused(f"the opcode {bytes([code])!r}")

    dispatch = _Dispatch(
        {code: pickle._Unpickler.dispatch[code] for code in (vars(pickle)[n][0] for n in _OPCODES.split())}
    )
    dispatch |= {pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items, pickle.DICT[0]: _dict}
    dispatch |= {pickle.BYTEARRAY8[0]: _bytearray}


def read_dict(content: bytes, source: str, keys: tuple[bytes, ...]) -> dict[bytes, Any]:
    """Reads what the pickled dict holds under ``keys``, its arrays of whole numbers as numpy's; a key that it lacks is
    left out. The file's keys may be bytes or text. Raises UserError naming ``source`` for anything else than a dict."""
    try:
        loaded = _Unpickler(content).load()
        if not isinstance(loaded, dict):
            raise ValueError("no dict inside")
        named = {key: loaded.get(key, loaded.get(key.decode())) for key in keys}
        return {k: v.values() if isinstance(v, _Array) else v for k, v in named.items() if v is not None}
    except _Refused as error:
        raise UserError(
            f"{source} is not a CIFAR batch: its pickle asks for {_short(error)}, which is refused"
        ) from error
    except _DAMAGED as error:
        raise UserError(f"{source} is damaged or no CIFAR batch: {_short(error) or type(error).__name__}") from error


def _short(error: Exception) -> str:
    """Its words, on one line, of no more than a line."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
