"""Reserves room for a file before anything is written: a full disk is reported at once, not after hours."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence

from .extents import outside

_IN_MEMORY = {"tmpfs", "ramfs"}
_ON_DISK = 4 << 20  # bytes: if each write fills whole large pages of the cache, the file is mapped in large pages later


def make_room(file: int, size: int, shared: Sequence[range] = ()) -> int:
    """Make the open ``file`` ``size`` bytes long, with room for all of them; returns how many to write at a time.

    No room is made for the ranges that it shares with another file (``io/extents.py``): they take none.

    Space is allocated at once where that takes no time: on a disk, where it makes writing twice as fast, and in large
    pages of memory. In small pages it would take as long as writing, and block writing meanwhile: there it is only
    checked that there is enough.

    Raises:
        OSError: there is not enough.
    """
    os.truncate(file, size)  # file systems in memory choose their pages by it
    in_memory, page = is_in_memory(file), getattr(os.fstat(file), "st_blksize", mmap.PAGESIZE)
    if in_memory and page <= mmap.PAGESIZE:
        _look_for_room(file, size)
    elif hasattr(os, "posix_fallocate"):
        for piece in outside(shared, 0, size):
            os.posix_fallocate(file, piece.start, len(piece))
    return page if in_memory else max(page, _ON_DISK)


def need_room(where: int | str, size: int) -> None:
    """Raise OSError if an open file or a path is on a file system in memory with fewer than ``size`` bytes left."""
    if is_in_memory(where):
        _look_for_room(where, size)


def _look_for_room(where: int | str, size: int) -> None:
    status = os.statvfs(where)
    if status.f_blocks and size > status.f_bavail * status.f_frsize:  # without blocks it has no limit
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def is_in_memory(where: int | str) -> bool:
    """Tell whether an open file or a path is on a file system in memory; False where the system does not say."""
    device = os.stat(where).st_dev
    number = f"{os.major(device)}:{os.minor(device)}" if hasattr(os, "major") else ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            # id, parent, device, root, mount point, options..., "-", type of file system, ...
            lines = (line.split() for line in mounts)
            return any(line[2] == number and line[line.index("-") + 1] in _IN_MEMORY for line in lines)
    except (OSError, ValueError, IndexError):
        return False
