"""Reads a file into the page cache ahead of its use, in one stream, while other work goes on.

Touching a cold mapping page by page, even from several threads, reaches a tenth of a disk's throughput. One thread
that asks for large pieces in order reaches all of it, and pages already in memory cost next to nothing. It asks instead
of reading: nothing is copied, and the disk works on the next pieces while one is waited for.
"""

from __future__ import annotations

import os
from threading import Event, Thread

from .regular import Path, open_regular

PIECE_BYTES = 4 << 20  # bytes that are waited for at a time
_AHEAD_BYTES = 2 * PIECE_BYTES  # bytes that are asked for before they are waited for
_ADVICE_BYTES = 128 << 10  # bytes of one request: a system may drop what exceeds its own read-ahead


def prefetch(*paths: Path, enough: Event | None = None) -> Thread:
    """Start reading the files into the page cache, one by one; returns the thread, which need not be waited for.

    Files that cannot be read are skipped: their user reports it. Once ``enough`` is set, no more is read.
    """
    thread = Thread(target=lambda: [read_ahead(path, enough) for path in paths], daemon=True, name="aibit-prefetch")
    thread.start()
    return thread


def read_ahead(path: Path, enough: Event | None = None) -> int:
    """Read the parts of the file ``path`` that are not in memory, front to back; returns the bytes read."""
    if not hasattr(os, "preadv"):  # Windows: pages are read when they are touched
        return 0
    try:
        opened = open_regular(path)
    except OSError:
        return 0
    file = opened.fileno()
    buffer, asked, total = memoryview(bytearray(PIECE_BYTES)), 0, 0
    absent: set[int] = set()  # offsets of the pieces that were not in memory when they were asked for
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
                os.preadv(file, [buffer[:1]], start + length - 1)  # waits for its last byte
                if not is_resident(file, start, length):  # this file system ignores advice
                    os.preadv(file, [buffer], start)
                total += length
    except OSError:
        pass
    finally:
        opened.close()
    return total


def only_asked_for(file: int) -> None:
    """Turn off the system's own read-ahead for an open file."""
    _advise(file, 0, 0, "RANDOM")


def ask_for(file: int, start: int, length: int) -> bool:
    """Ask the disk for a piece of an open file without waiting for it; returns False if it is already in memory."""
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
    """Tell whether the first and last byte of a piece are in memory: pieces nearly always come and go as a whole."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return all(os.preadv(file, [bytearray(1)], at, os.RWF_NOWAIT) == 1 for at in (start, start + length - 1))
    except OSError:  # the read would have to wait, or this file system cannot tell
        return False
