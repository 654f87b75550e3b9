"""Puts data into a folder for libraries that read nothing but files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from .atomic import AtomicFolder

_IN_MEMORY = "/dev/shm"  # noqa: S108 - a file system in memory, where Linux has one; the directory made there is private


@contextmanager
def folder_of(files: Mapping[str, bytes] | Mapping[str, memoryview]) -> Iterator[str]:
    """Yield the path of a private folder with these files, which is removed afterwards, or by the next who makes one.

    It is in memory where the system has room for it there, and else where temporary files are: a container's
    ``/dev/shm`` is small, and often full.

    Args:
        files: contents by name; a name may have folders, with slashes, and has been checked to lead nowhere else.

    Raises:
        OSError: there is no room anywhere.
    """
    with ExitStack() as stack:
        try:
            if not os.access(_IN_MEMORY, os.W_OK):
                raise OSError(_IN_MEMORY)
            folder = _filled(stack, files, _IN_MEMORY)
        except OSError:
            stack.close()  # what there was room for
            folder = _filled(stack, files, tempfile.gettempdir())
        yield folder


def temporary_folder(where: str | None = None) -> AtomicFolder:
    """Make a private folder, where temporary files are or in ``where``; a killed process's goes with the next one."""
    return AtomicFolder(os.path.join(where or tempfile.gettempdir(), ""), private=True)


def _filled(stack: ExitStack, files: Mapping[str, bytes] | Mapping[str, memoryview], where: str) -> str:
    folder = stack.enter_context(temporary_folder(where)).name
    for name, data in files.items():
        target = os.path.join(folder, *name.split("/"))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as out:
            out.write(data)
    return folder
