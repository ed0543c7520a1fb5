"""Standard output as something that can fail: a full device, a reader that is gone."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from .errors import OutputLost, reason


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """While entered, what cannot be written to standard output is an OutputLost, and so is all that follows it."""
    if sys.stdout is None:  # closed from the start: whatever is said goes nowhere
        yield
        return
    guard = _Guarded(sys.stdout)
    with contextlib.redirect_stdout(guard):
        try:
            yield
        except OutputLost:
            raise
        except BaseException:
            guard.flush()
            raise
        guard.flush()


class _Guarded:
    def __init__(self, stream: TextIO):
        self._stream = stream
        self._lost: OutputLost | None = None  # for those who write again: a writer may have swallowed it

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._loss():
            try:
                return self._stream.write(text)
            except UnicodeEncodeError as error:  # a terminal of ASCII gets question marks, not a traceback
                return self._stream.write(text.encode(error.encoding, "replace").decode(error.encoding))

    def flush(self) -> None:
        with self._loss():
            self._stream.flush()

    @contextlib.contextmanager
    def _loss(self):
        if self._lost is not None:
            raise self._lost
        try:
            yield
        except OSError as error:
            self._silence()
            self._lost = OutputLost(f"cannot write to standard output: {reason(error)}")
            raise self._lost from error

    def _silence(self):
        # What is left in the stream's buffer would fail again when the interpreter ends.
        with contextlib.suppress(OSError):  # where it has no descriptor, nothing will
            descriptor = self._stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
