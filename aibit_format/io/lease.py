"""Reads a mapped file safely while others may change it.

Touching a page of a mapping beyond the end of a file that shrank kills the process (SIGBUS), and no check beforehand
helps if the file is truncated a moment later. So this package does its own reading

- under a lease, where the kernel grants one (Linux, a local file of the same user that nobody has open for writing):
  whoever wants to truncate or write to the file waits until the lease is released, and this side notices that somebody
  is waiting. Pages are read in place, at full speed;
- otherwise by copying: if the file shrank, a read is short, which is an error and not a signal.

The bytes that are checked are always the file's: a model that has been written to has its own (``Storage.writable``).
Views handed out (``File.planes``, a loaded model) are not protected: touching them later is at the caller's risk.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from ..errors import FormatError, Problem
from .mapped import Mapped, Storage

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows has no leases
    fcntl = None

_COPIED = 4 << 20  # bytes copied at a time: few enough that the allocator keeps the memory, without new page faults
_LEASED = 1 << 30  # bytes read between two checks of the lease: the kernel takes it back after 45 seconds


@contextmanager
def still(storage: Storage) -> Iterator[Storage]:
    """Yield the same bytes, safe to read inside the context whatever others do to the file meanwhile.

    Raises:
        FormatError: AIB-E802, also from reading, once the file has changed or is about to change.
    """
    if not isinstance(storage, Mapped):
        yield storage
        return
    storage.check_unchanged()
    lease = _take_lease(storage)
    if lease is None:
        yield _Copied(storage)
        return
    try:
        yield _Leased(storage, lease)
    finally:
        with suppress(OSError):  # explicit: closing releases it only if no process forked meanwhile has it open too
            fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(lease)


class _Leased:
    """Serve views of the mapping, as long as the lease holds."""

    chunk_size = _LEASED
    fixed = True

    def __init__(self, storage: Mapped, lease: int) -> None:
        self.path, self.size = storage.path, storage.size
        self._storage, self._lease = storage, lease

    def read_at(self, offset: int, length: int) -> np.ndarray:
        self.check_unchanged()
        return self._storage.map[offset : offset + length]

    def check_unchanged(self) -> None:
        if fcntl.fcntl(self._lease, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            what = "somebody is about to write to the file or to truncate it"
            raise FormatError(Problem("AIB-E802", what), self.path)
        self._storage.check_unchanged()

    def writable(self) -> Storage:
        return self._storage.writable()

    def close(self) -> None:
        return None


class _Copied:
    """Serve copies of the file's bytes."""

    chunk_size = _COPIED
    fixed = True

    def __init__(self, storage: Mapped) -> None:
        self.path, self.size = storage.path, storage.size
        self._storage = storage

    def read_at(self, offset: int, length: int) -> np.ndarray:
        data = self._storage.copy(offset, length)
        self.check_unchanged()
        return data

    def check_unchanged(self) -> None:
        self._storage.check_unchanged()

    def writable(self) -> Storage:
        return self._storage.writable()

    def close(self) -> None:
        return None


def _take_lease(storage: Mapped) -> int | None:
    """Open the file again under a read lease that lasts until it is closed; ``None`` where there are no leases."""
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:  # a lease belongs to an open file, so it needs its own; the path may name another file by now
        lease = os.open(f"/proc/self/fd/{storage.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # When others wait, the kernel by default sends the holder SIGIO, which ends the process; SIGURG does nothing.
        fcntl.fcntl(lease, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        os.close(lease)
        return None
    return lease
