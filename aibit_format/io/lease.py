"""Reading a mapped file while others may change it, without dying of it.

To touch a page of a mapping beyond the end of a file that shrank ends the process (SIGBUS), and no check beforehand
helps against somebody who truncates the file a moment later. So what this package reads itself, it reads

- under a lease, where the kernel gives one (Linux, a local file of the same user that nobody has open for writing):
  whoever would truncate or write to the file waits until the lease is given back, and this side notices that somebody
  waits. Pages are read where they are, at full speed;
- or else by copying, which a file that shrank only makes short.

Views handed out (``File.planes``, a loaded model) are outside of this: who touches those later does so at his own risk.
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
except ImportError:  # Windows: there are no leases
    fcntl = None

_COPIED = 4 << 20  # bytes copied at a time: memory that the allocator keeps, and need not fault in again
_LEASED = 1 << 30  # bytes read between two looks at the lease: the kernel takes it back after 45 seconds


@contextmanager
def still(storage: Storage) -> Iterator[Storage]:
    """The same bytes, to be read inside the context only, whatever others do to the file meanwhile.

    Raises:
        FormatError: AIB-E802, also from reading, once the file has changed or is about to be.
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
        with suppress(OSError):  # said, as closing does it only when no process forked meanwhile has it open too
            fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(lease)


class _Leased:
    """Views of the mapping, as long as the lease holds."""

    chunk_size = _LEASED

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

    def close(self) -> None:
        return None


class _Copied:
    """Copies of the file's bytes."""

    chunk_size = _COPIED

    def __init__(self, storage: Mapped) -> None:
        self.path, self.size = storage.path, storage.size
        self._storage = storage

    def read_at(self, offset: int, length: int) -> np.ndarray:
        data = self._storage.copy(offset, length)
        self.check_unchanged()
        return data

    def check_unchanged(self) -> None:
        self._storage.check_unchanged()

    def close(self) -> None:
        return None


def _take_lease(storage: Mapped) -> int | None:
    """A descriptor of the file, under a read lease until it is closed; ``None`` where there is none to be had."""
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:  # of its own, as a lease belongs to an open file; the name may be another file's by now
        lease = os.open(f"/proc/self/fd/{storage.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # By default the kernel sends SIGIO to whoever holds a lease up, which ends the process; SIGURG does nothing.
        fcntl.fcntl(lease, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        os.close(lease)
        return None
    return lease
