"""Opens the files of a source: regular ones, up to a size, that are what they seem. All sources read through these."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from ..errors import SourceError
from ..io import mapped
from ..io.mistaken import what_is_wrong
from ..io.regular import open_regular

T = TypeVar("T")

MAX_ALL_DOCUMENTS = 512 << 20  # bytes of the documents of one source; those of a large model take 50 MB


def pages(path: str) -> np.ndarray:
    """Map a file as u8; see ``io.mapped.pages``.

    Raises:
        SourceError: it is not a regular file, or cannot be read.
    """
    return _reported(path, lambda: mapped.pages(path))


def read_file(path: str, limit: int) -> bytes:
    """Read a whole file of at most ``limit`` bytes.

    Raises:
        SourceError: it is longer, is not a regular file, or cannot be read.
    """

    def read() -> bytes:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            found, left = [], limit + 1 if size <= limit else 0
            while left and (piece := file.read(min(left, max(size, 1 << 16) + 1))):  # one read, and one for its end
                found.append(piece)
                left -= len(piece)
        if not left:  # some file systems state no size
            raise SourceError(f"{path}: {max(size, limit + 1)} bytes or more, at most {limit} are read")
        return b"".join(found)

    return _reported(path, read)


def begins_with(path: str, magic: bytes) -> bool:
    """Tell whether ``path`` is a regular file that begins with these bytes."""
    if not os.path.isfile(path):
        return False

    def read() -> bytes:
        with open_regular(path) as file:
            return file.read(len(magic))

    return _reported(path, read) == magic


def _reported(path: str, read: Callable[[], T]) -> T:
    if os.path.lexists(path) and (wrong := what_is_wrong(path)):
        raise SourceError(f"{path}: {wrong}")
    try:
        return read()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error
