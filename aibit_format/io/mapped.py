"""Provides a file's bytes from one mapping or from a bytes object.

All reading goes through ``read_at``, so that the verdict on a file does not depend on how it is held.
"""

from __future__ import annotations

import copy
import mmap
import os
import re
import sys
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
    fixed: bool  # whether the same bytes come each time; where not, those that are used have to be those checked

    def read_at(self, offset: int, length: int) -> np.ndarray:
        """Read bytes as u8 [length], read-only; a view where the storage can give one."""
        ...

    def close(self) -> None:
        """Close the file; views handed out keep the mapping alive."""
        ...

    def check_unchanged(self) -> None:
        """Raise FormatError AIB-E802 if the bytes may have changed since they were opened. ``read_at`` calls this."""
        ...

    def writable(self) -> Storage:
        """Return the same bytes in memory of their own, for tensors: writing to it changes neither file nor readers.

        Raises:
            FormatError: AIB-E803: the system has no such memory.
        """
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
    fixed = True

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

    def writable(self) -> Mapped:
        """Return the file in another mapping, whose pages are copied one by one when they are first written to.

        Until then they are those of the page cache, shared with every process that maps the file.

        Raises:
            FormatError: AIB-E803: the system does not promise memory for as many copies.
        """
        found = copy.copy(self)
        try:
            found.map = _copied_on_write(self.fileno(), self.size)
        except (OSError, ValueError) as error:
            self.check_unchanged()
            what = f"{self.size} bytes cannot be mapped for writing to copies of their pages: {error}"
            raise FormatError(Problem("AIB-E803", what), self.path) from error
        return found

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
    fixed = True

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.map = np.frombuffer(data, np.uint8)
        self.map.flags.writeable = False
        self.size = len(self.map)

    def read_at(self, offset: int, length: int) -> np.ndarray:
        return self.map[offset : offset + length]

    def writable(self) -> InMemory:
        return InMemory(bytearray(self.map))

    def close(self) -> None:
        return None

    def check_unchanged(self) -> None:
        return None


class Copies:
    """Serve a copy of the bytes at each reading."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.path, self.size = storage.path, storage.size
        self.chunk_size, self.fixed = storage.chunk_size, storage.fixed

    def read_at(self, offset: int, length: int) -> np.ndarray:
        return self._storage.read_at(offset, length).copy()

    def writable(self) -> Copies:
        return self

    def close(self) -> None:
        self._storage.close()

    def check_unchanged(self) -> None:
        self._storage.check_unchanged()


# The system counts a private mapping that may be written to as memory in use, and refuses one that is larger than the
# machine's. It does not with this flag, except where overcommitting is switched off (vm.overcommit_memory=2).
# Python names the flag from 3.13 on.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def _copied_on_write(descriptor: int, size: int) -> np.ndarray:
    """Map a whole file as u8 [size], read-only for numpy; a tensor over it may be written to."""
    if not size:
        return np.zeros(0, np.uint8)
    if sys.platform == "win32":
        mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    else:
        flags = mmap.MAP_PRIVATE | _NORESERVE
        mapped = mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    pages = np.frombuffer(mapped, np.uint8)
    pages.flags.writeable = False
    return pages


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
