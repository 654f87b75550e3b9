"""Opens regular files and nothing else: a FIFO waits for a writer, and a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

Path = str | os.PathLike[str]


class NotRegularError(OSError):
    """Raised when a path names a folder, a FIFO, a socket or a device."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, unbuffered. Links are followed; what they lead to must be one.

    Raises:
        NotRegularError: it is something else.
        OSError: it cannot be opened.
    """
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, "not a regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb", buffering=0)
