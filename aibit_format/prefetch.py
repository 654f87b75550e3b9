"""Reading a file into memory ahead of its use, in one stream, while something else is done.

A cold mapping that is touched page by page, by several threads even, gets a tenth of what a disk can give. One thread
that reads large pieces in order gets all of it, and what is in memory already costs it next to nothing.
"""

from __future__ import annotations

import os
from threading import Event, Thread

from .storage import Path

PIECE = 4 << 20  # bytes of one read


def prefetch(path: Path, enough: Event | None = None) -> Thread:
    """Start reading the file ``path`` into the page cache; returns the thread, which need not be waited for.

    A file that cannot be read is somebody else's to complain of. Once ``enough`` is set, no more is read.
    """
    thread = Thread(target=read_ahead, args=(path, enough), daemon=True, name="aibit-prefetch")
    thread.start()
    return thread


def read_ahead(path: Path, enough: Event | None = None) -> int:
    """Read what is not in memory yet of the file ``path``, front to back; returns how many bytes that were."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return 0
    buffer, total = bytearray(PIECE), 0
    try:
        size = os.fstat(file).st_size
        for start in range(0, size, PIECE):
            if enough is not None and enough.is_set():
                break
            if not is_resident(file, start, min(PIECE, size - start)):
                total += os.preadv(file, [buffer], start)
    except OSError:
        pass
    finally:
        os.close(file)
    return total


def is_resident(file: int, start: int, length: int) -> bool:
    """Whether the first and the last byte of a piece are in memory: pieces come and go as a whole, nearly always."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return all(os.preadv(file, [bytearray(1)], at, os.RWF_NOWAIT) == 1 for at in (start, start + length - 1))
    except OSError:  # it would have to wait, or this file system cannot tell
        return False
