"""Provides a file's bytes from one mapping or from a bytes object.

All reading goes through ``read_at``, so that the verdict on a file does not depend on how it is held.
"""

from __future__ import annotations

import os
import re
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from ..errors import FormatError, Problem
from .regular import NotRegularError, Path, open_regular

__all__ = ["InMemory", "Mapped", "Path", "Storage", "is_url", "pages"]

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_url(source: str) -> bool:
    """Tell whether ``source`` is a URL."""
    return _URL.match(source) is not None


class Storage(Protocol):
    """Provide a file's bytes."""

    path: str | None
    size: int
    chunk_size: int  # bytes, whole leaves, to read at a time of a long region; 0: any number, they are views

    def read_at(self, offset: int, length: int) -> np.ndarray:
        """Read bytes as u8 [length], read-only; a view where the storage can give one."""
        ...

    def close(self) -> None:
        """Close the file; views handed out keep the mapping alive."""
        ...

    def check_unchanged(self) -> None:
        """Raise FormatError AIB-E802 if the bytes may have changed since they were opened. ``read_at`` calls this."""
        ...


_mapped: WeakValueDictionary[tuple[int, ...], np.memmap[Any, Any]] = WeakValueDictionary()


def pages(path: Path) -> np.ndarray:
    """Map a file as u8; all callers share one mapping as long as any of them holds it.

    Each mapping takes a page fault on every page it touches first: for two readers of a file, that costs more than
    hashing it.

    Raises:
        OSError: the file cannot be read, or is not a regular one.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if not status.st_size:
            return np.zeros(0, np.uint8)  # an empty file cannot be mapped
        key = status.st_dev, status.st_ino, *_identity(status)
        found = _mapped.get(key)
        if found is None:
            found = _mapped[key] = np.memmap(file, np.uint8, "r")
        return np.asarray(found)


class Mapped:
    """Hold a file in one read-only ``numpy.memmap``: views cost nothing and keep the mapping alive."""

    path: str | None
    chunk_size = 0

    def __init__(self, path: Path) -> None:
        name = os.fspath(path)
        self.path = name
        try:
            # Kept open: its status tells later whether the mapped file has changed, even if it was renamed.
            self._file = open_regular(name)
        except NotRegularError as error:
            raise FormatError(Problem("AIB-E801", "not a regular file"), name) from error
        except OSError as error:
            raise FormatError(Problem("AIB-E803", f"cannot be opened: {error.strerror}"), self.path) from error
        status = os.fstat(self._file.fileno())
        self.size, self._identity = status.st_size, _identity(status)
        try:
            # Slicing a plain array takes a third of the time.
            self.map = np.asarray(np.memmap(self._file, np.uint8, "r")) if self.size else np.zeros(0, np.uint8)
        except (OSError, ValueError) as error:
            try:
                self.check_unchanged()  # it may have been truncated since fstat
            finally:
                self._file.close()
            raise FormatError(Problem("AIB-E803", f"{self.size} bytes cannot be mapped: {error}"), name) from error

    def read_at(self, offset: int, length: int) -> np.ndarray:
        self.check_unchanged()
        return self.map[offset : offset + length]

    def copy(self, offset: int, length: int) -> np.ndarray:
        """Read a copy of bytes, u8 [length], without touching the mapping.

        Raises:
            FormatError: AIB-E802: the file has become shorter.
        """
        if not hasattr(os, "preadv"):  # Windows, where nobody can truncate what is mapped
            return self.map[offset : offset + length].copy()
        data, done = np.empty(length, np.uint8), 0
        while done < length:
            read = os.preadv(self.fileno(), [data[done:].data], offset + done)
            if not read:
                what = "file was truncated after it was opened"
                raise FormatError(Problem("AIB-E802", what, None, None, offset, length, done), self.path)
            done += read
        return data

    def fileno(self) -> int:
        """Return the descriptor of the mapped file, whatever file its path names now."""
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def check_unchanged(self) -> None:
        # Reading a page of a mapping beyond the end of a file that shrank would kill the process with SIGBUS.
        found = _identity(os.fstat(self._file.fileno()))
        if found != self._identity:
            what = "file changed after it was opened"
            raise FormatError(Problem("AIB-E802", what, expected=self._identity[0], found=found[0]), self.path)


class InMemory:
    """Serve the bytes of a whole file from a bytes-like object."""

    path: str | None = None
    chunk_size = 0

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.map = np.frombuffer(data, np.uint8)
        self.map.flags.writeable = False
        self.size = len(self.map)

    def read_at(self, offset: int, length: int) -> np.ndarray:
        return self.map[offset : offset + length]

    def close(self) -> None:
        return None

    def check_unchanged(self) -> None:
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
