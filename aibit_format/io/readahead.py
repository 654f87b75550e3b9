"""Reading a file into memory ahead of its use, in one stream, while something else is done.

A cold mapping that is touched page by page, by several threads even, gets a tenth of what a disk can give. One thread
that asks for large pieces in order gets all of it, and what is in memory already costs it next to nothing. It asks and
does not read: nothing is copied, and the disk has the next pieces to go on with while one is waited for.
"""

from __future__ import annotations

import os
from threading import Event, Thread

from .mapped import Path

PIECE_BYTES = 4 << 20  # bytes that are waited for at a time
_AHEAD_BYTES = 2 * PIECE_BYTES  # bytes that are asked for before they are waited for
_ADVICE_BYTES = 128 << 10  # bytes of one request: of more than its own reading ahead, a system may drop the rest


def prefetch(*paths: Path, enough: Event | None = None) -> Thread:
    """Start reading the files into the page cache, one by one; returns the thread, which need not be waited for.

    A file that cannot be read is somebody else's to complain of. Once ``enough`` is set, no more is read.
    """
    thread = Thread(target=lambda: [read_ahead(path, enough) for path in paths], daemon=True, name="aibit-prefetch")
    thread.start()
    return thread


def read_ahead(path: Path, enough: Event | None = None) -> int:
    """Read what is not in memory yet of the file ``path``, front to back; returns how many bytes that were."""
    if not hasattr(os, "preadv"):  # Windows: pages come when they are touched
        return 0
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return 0
    buffer, asked, total = memoryview(bytearray(PIECE_BYTES)), 0, 0
    absent: set[int] = set()  # where pieces begin that were not in memory when their turn came
    try:
        size = os.fstat(file).st_size
        only_asked_for(file)
        for start in range(0, size, PIECE_BYTES):
            if enough is not None and enough.is_set():
                break
            while asked < min(start + _AHEAD_BYTES, size):
                length = min(PIECE_BYTES, size - asked)
                if ask_for(file, asked, length):
                    absent.add(asked)
                asked += length
            if start in absent:
                length = min(PIECE_BYTES, size - start)
                os.preadv(file, [buffer[:1]], start + length - 1)  # waits for the last of it
                if not is_resident(file, start, length):  # advice is not taken here
                    os.preadv(file, [buffer], start)
                total += length
    except OSError:
        pass
    finally:
        os.close(file)
    return total


def only_asked_for(file: int) -> None:
    """Let nothing come of an open file but what is asked for."""
    _advise(file, 0, 0, "RANDOM")


def ask_for(file: int, start: int, length: int) -> bool:
    """Ask the disk for a piece of an open file, without waiting for it; whether it was not in memory."""
    if is_resident(file, start, length):
        return False
    for at in range(start, start + length, _ADVICE_BYTES):
        _advise(file, at, min(_ADVICE_BYTES, start + length - at), "WILLNEED")
    return True


def _advise(file: int, start: int, length: int, what: str) -> None:
    if hasattr(os, "posix_fadvise"):  # not on macOS
        advice = {"RANDOM": os.POSIX_FADV_RANDOM, "WILLNEED": os.POSIX_FADV_WILLNEED}
        os.posix_fadvise(file, start, length, advice[what])


def is_resident(file: int, start: int, length: int) -> bool:
    """Whether the first and the last byte of a piece are in memory: pieces come and go as a whole, nearly always."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return all(os.preadv(file, [bytearray(1)], at, os.RWF_NOWAIT) == 1 for at in (start, start + length - 1))
    except OSError:  # it would have to wait, or this file system cannot tell
        return False
