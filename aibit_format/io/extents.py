"""Puts bytes of one open file into another without reading them, where the system can.

Some file systems (btrfs, xfs and others) let two files share the blocks that hold the same bytes: nothing is read or
written, and no room is taken until one of the files changes its own (``FICLONERANGE``, of Linux). Elsewhere the kernel
or the server of a network file system copies (``copy_file_range``), and where there is no such call either, this
process does. The bytes are the same.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .mapped import Mapped

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows has no ioctl
    fcntl = None

# (source, start, target, offset, length) -> how many bytes from ``offset`` on are those from ``start`` on now. Zero: it
# cannot be done in this way.
Way = Callable[[Mapped, int, int, int, int], int]

_CLONE = struct.Struct("=qQQQ")  # struct file_clone_range: descriptor, start, length, offset
_FICLONERANGE = getattr(fcntl, "FICLONERANGE", 0x4020940D)  # Python names it from 3.12 on

# What a kernel or a file system says to a call that it does not offer, for these two files or for any. Seccomp filters
# of containers say EPERM.
_REFUSALS = {
    errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.ETXTBSY, errno.EPERM,
}  # fmt: skip

_COPIED = 4 << 20  # bytes copied at a time by this process: so few that the allocator keeps the memory


def clone(source: Mapped, start: int, target: int, offset: int, length: int) -> range:
    """Let an open file share blocks of another, as far as whole blocks of both hold the same bytes.

    Args:
        source, start: the file whose bytes they are, and where they begin in it.
        target, offset: a descriptor of the file to put them into, and where.
        length: in bytes.

    Returns:
        The bytes of ``target`` that it shares now; an empty range where the file system shares none, or where
        ``start`` and ``offset`` lie differently in their blocks.

    Raises:
        OSError: the disk is full, or failed.
    """
    block = getattr(os.fstat(target), "st_blksize", 1)
    first, end = offset + -offset % block, (offset + length) // block * block
    if "clone" not in WAYS or (start - offset) % block or first >= end:
        return range(0)
    return range(first, first + WAYS["clone"](source, start + first - offset, target, first, end - first))


def copy(source: Mapped, start: int, target: int, offset: int, length: int) -> None:
    """Copy bytes; the arguments are those of ``clone``.

    Raises:
        OSError: the disk is full, or failed.
        FormatError: AIB-E802: the source has become shorter.
    """
    for name, way in WAYS.items():
        while length and name != "clone" and (done := way(source, start, target, offset, length)):
            start, offset, length = start + done, offset + done, length - done


def outside(ranges: Sequence[range], start: int, end: int) -> Iterator[range]:
    """Yield what lies between ``start`` and ``end`` and in none of ``ranges``, which are in order, without overlaps."""
    for i in range(bisect_right(ranges, start, key=lambda found: found.stop), len(ranges)):
        found = ranges[i]
        if found.start >= end:
            break
        if found.start > start:
            yield range(start, found.start)
        start = found.stop
    if start < end:
        yield range(start, end)


def _clone(source: Mapped, start: int, target: int, offset: int, length: int) -> int:
    try:
        fcntl.ioctl(target, _FICLONERANGE, _CLONE.pack(source.fileno(), start, length, offset))
    except OSError as error:
        return _refused(error)
    return length


def _copy_in_the_kernel(source: Mapped, start: int, target: int, offset: int, length: int) -> int:
    try:
        return os.copy_file_range(source.fileno(), target, length, start, offset)
    except OSError as error:
        return _refused(error)


def _copy(source: Mapped, start: int, target: int, offset: int, length: int) -> int:
    return os.pwrite(target, source.copy(start, min(length, _COPIED)).data, offset)


def _refused(error: OSError) -> int:
    if error.errno not in _REFUSALS:
        raise error
    return 0


WAYS: dict[str, Way] = {}  # those that the system has, the best first; ``clone`` uses the first, ``copy`` the others
if fcntl is not None and sys.platform == "linux":
    WAYS["clone"] = _clone
if hasattr(os, "copy_file_range"):
    WAYS["copy in the kernel"] = _copy_in_the_kernel
WAYS["copy"] = _copy
