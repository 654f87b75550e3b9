"""Where a file's bytes come from: one mapping, or a bytes object.

Everything above reads through ``read_at``, so that the verdict on a file does not depend on how it is held.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from ..errors import FormatError, Problem

Path = str | os.PathLike[str]


_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_url(source: str) -> bool:
    """Whether ``source`` names a file by a URL."""
    return _URL.match(source) is not None


class Storage(Protocol):
    """A file's bytes."""

    path: str | None
    size: int
    chunk_size: int  # bytes, whole leaves, to read at a time of a long region; 0: any number, they are views

    def read_at(self, offset: int, length: int) -> np.ndarray:
        """u8 [length], read-only; a view where the storage can give one."""
        ...

    def close(self) -> None:
        """Let go of the file; views that were given out keep the mapping."""
        ...

    def check_unchanged(self) -> None:
        """Raise FormatError AIB-E802 if the bytes may no longer be those that were opened. ``read_at`` does this."""
        ...


_mapped: WeakValueDictionary[tuple[int, ...], np.memmap[Any, Any]] = WeakValueDictionary()


def pages(path: Path) -> np.ndarray:
    """A file's bytes, u8, as a mapping that everybody who asks shares while somebody has it.

    A page costs a fault in each mapping it is first touched through: where two read the same file, that is more than
    hashing it.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not status.st_size:
            return np.zeros(0, np.uint8)  # nothing cannot be mapped
        key = status.st_dev, status.st_ino, *_identity(status)
        found = _mapped.get(key)
        if found is None:
            found = _mapped[key] = np.memmap(file, np.uint8, "r")
        return np.asarray(found)


class Mapped:
    """A file in one read-only ``numpy.memmap``: views cost nothing and keep the mapping alive."""

    path: str | None
    chunk_size = 0

    def __init__(self, path: Path) -> None:
        name = os.fspath(path)
        self.path = name
        # Without O_NONBLOCK, opening a FIFO would wait for somebody to write to it.
        try:
            descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise FormatError(Problem("AIB-E803", f"cannot be opened: {error.strerror}"), self.path) from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise FormatError(Problem("AIB-E801", "not a regular file"), name)
        self.size, self._identity = status.st_size, _identity(status)
        # Kept open: what it says later tells whether the mapped file has changed, also under another name.
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        try:
            # Plain arrays are sliced in a third of the time.
            self.map = np.asarray(np.memmap(self._file, np.uint8, "r")) if self.size else np.zeros(0, np.uint8)
        except (OSError, ValueError) as error:
            try:
                self.check_unchanged()  # truncated since it was looked at
            finally:
                self._file.close()
            raise FormatError(Problem("AIB-E803", f"{self.size} bytes cannot be mapped: {error}"), name) from error

    def read_at(self, offset: int, length: int) -> np.ndarray:
        self.check_unchanged()
        return self.map[offset : offset + length]

    def copy(self, offset: int, length: int) -> np.ndarray:
        """u8 [length], of its own: read without touching the mapping.

        Raises:
            FormatError: AIB-E802: the file is shorter by now.
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
        """The descriptor of the file that is mapped, whatever its name now stands for."""
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def check_unchanged(self) -> None:
        # Reading a page of a mapping beyond a file that shrank would end the process with SIGBUS.
        found = _identity(os.fstat(self._file.fileno()))
        if found != self._identity:
            what = "file changed after it was opened"
            raise FormatError(Problem("AIB-E802", what, expected=self._identity[0], found=found[0]), self.path)


class InMemory:
    """A bytes-like object that holds a whole file."""

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
