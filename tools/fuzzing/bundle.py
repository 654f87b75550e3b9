"""Several small files as one input: for each, its name and its bytes behind their lengths."""

from __future__ import annotations

import os
import re
import struct
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
