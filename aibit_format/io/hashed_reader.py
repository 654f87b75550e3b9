"""Reads a file once, both for its contents and for its digest.

Bytes are hashed right after they were read for another purpose, while they are still in the cache. Bytes between two
requested pieces are read for the digest alone. Nothing is mapped: mapping a page would cost more than copying it, and
a file truncated by somebody else gives an error instead of SIGBUS. The disk is asked for the next pieces meanwhile.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

import numpy as np
import xxhash

from ..errors import SourceError
from .preallocate import is_in_memory
from .readahead import PIECE_BYTES, ask_for, only_asked_for
from .regular import open_regular

_READ_BYTES = 2 << 20  # bytes read at a time for the digest alone
_AHEAD_BYTES = 4 * PIECE_BYTES  # bytes requested from the disk before they are read


class HashedReader:
    """Read and hash the file ``path``, for one thread at a time, best from front to back. Use it as a context.

    Raises:
        SourceError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._file: Any = open_regular(path)
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error
        self._size = os.fstat(self._file.fileno()).st_size
        self._state = xxhash.xxh3_128()
        self._hashed = 0  # bytes, from the front
        self._asked = self._size if is_in_memory(self._file.fileno()) else 0
        only_asked_for(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._file.close()

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill u8 ``out`` with the bytes from ``start`` on.

        Raises:
            SourceError: the file cannot be read, or has become shorter.
        """
        self._pass(start)
        self._read(start, out)
        if start + len(out) > self._hashed:
            self._state.update(out[self._hashed - start :].data)
            self._hashed = start + len(out)

    def digest(self) -> str:
        """Return the xxh3_128 of the whole file in hex, reading the bytes that were not read yet.

        Raises:
            SourceError: as for ``read``.
        """
        self._pass(self._size)
        return self._state.hexdigest()

    def _pass(self, end: int) -> None:
        """Read and hash the bytes before ``end`` that are not hashed yet."""
        buffer = np.empty(min(_READ_BYTES, max(end - self._hashed, 0)), np.uint8)
        while self._hashed < end:
            piece = buffer[: end - self._hashed]
            self._read(self._hashed, piece)
            self._state.update(piece.data)
            self._hashed += len(piece)

    def _read(self, start: int, out: np.ndarray) -> None:
        done = 0
        try:
            self._ask(start + len(out) + _AHEAD_BYTES)
            self._file.seek(start)
            while done < len(out):
                read = self._file.readinto(out[done:].data)
                if not read:
                    raise SourceError(f"{self.path}: ends at {start + done}, {start + len(out)} expected: truncated")
                done += read
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}") from error

    def _ask(self, end: int) -> None:
        """Ask the disk for the bytes before ``end`` that were not asked for yet."""
        while self._asked < min(end, self._size):
            length = min(PIECE_BYTES, self._size - self._asked)
            ask_for(self._file.fileno(), self._asked, length)
            self._asked += length
