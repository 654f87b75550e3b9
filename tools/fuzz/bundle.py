"""Pack several small files into one input, each behind its name and lengths, and put them into a folder."""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections.abc import Mapping

_HEAD = struct.Struct("<BI")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # never a path
_MOST = 16


def pack(files: Mapping[str, bytes]) -> bytes:
    """One input of these files."""
    return b"".join(_HEAD.pack(len(name), len(data)) + name.encode() + data for name, data in files.items())


def unpack(data: bytes) -> dict[str, bytes]:
    """The files of an input; ValueError if it is none."""
    files: dict[str, bytes] = {}
    at = 0
    while at < len(data):
        if len(data) - at < _HEAD.size:
            raise ValueError("ends in a head")
        name_length, length = _HEAD.unpack_from(data, at)
        start = at + _HEAD.size + name_length
        name, at = data[at + _HEAD.size : start].decode("ascii"), start + length
        if at > len(data) or name in files or len(files) == _MOST or not _NAME.fullmatch(name):
            raise ValueError("no files that can be written")
        files[name] = data[start:at]
    return files


def write(files: Mapping[str, bytes], folder: str) -> None:
    """Make these the only files of a folder. They are new ones: nothing that maps an earlier one sees it change."""
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))
    for name, data in files.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)


class Written:
    """A target that needs its input as files in a folder, ``_inside``. Beside that is room for what is made of them."""

    def __init__(self) -> None:
        from tools.fuzz import verdict

        self._verdicts = verdict
        self._folder = tempfile.TemporaryDirectory(dir=verdict.memory())
        self._inside = os.path.join(self._folder.name, "inside")
        os.mkdir(self._inside)

    def run(self, data: bytes) -> str:
        """Write the files of an input, and say what they come to."""
        try:
            files = self._files(data)
        except ValueError as error:
            return f"no files: {error}"
        write(files, self._inside)
        return self._come_to(files)

    def _files(self, data: bytes) -> dict[str, bytes]:
        """The files of an input; ValueError if it has not those that are needed."""
        return unpack(data)

    def _come_to(self, files: Mapping[str, bytes]) -> str:
        raise NotImplementedError
