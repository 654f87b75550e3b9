"""Sign files with keys made for the tests."""

from __future__ import annotations

import hashlib
import shutil
import struct

import pytest

from aibit_format.errors import FormatError
from aibit_format.file import signing
from aibit_format.file.reader import File
from tools.fixtures import file_builder
from tools.fixtures.file_builder import rebuilt

GOOD = file_builder.good()
RECORD, ROOM = 104, 8


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with the keys ``a`` and ``b``, each a private and a public half, and ``only-a`` with a's public one."""
    folder = tmp_path_factory.mktemp("keys")
    for name in "ab":
        signing.new_key(folder / name)
    (folder / "only-a").mkdir()
    shutil.copy(folder / "a.pub", folder / "only-a")
    return folder


@pytest.fixture(scope="module")
def signed(keys, tmp_path_factory):
    """The bytes of the good file, signed inside by ``a``."""
    folder = tmp_path_factory.mktemp("signed")
    (folder / "m.aibit").write_bytes(GOOD)
    signing.sign(folder / "m.aibit", keys / "a.pem", folder / "s.aibit")
    return (folder / "s.aibit").read_bytes()


@pytest.fixture
def path(tmp_path):
    (tmp_path / "m.aibit").write_bytes(GOOD)
    return tmp_path / "m.aibit"


def code_of(source, signed_by=None):
    """The code that opening gets, or None."""
    try:
        File(source, signed_by=signed_by)
    except FormatError as error:
        return error.code
    return None


def with_section(change, flags=0, count=ROOM):
    """The section of signatures with another body, all else made right again."""
    return rebuilt(lambda entries: [(k, flags, count, change(c)) if k == 8 else (k, f, n, c) for k, f, n, c in entries])


def section_of(data):
    """(offset, body) of the signatures, by the section table alone."""
    for row in file_builder.table(data, "section"):
        if row["kind"] == 8:
            return int(row["offset"]), bytes(data[int(row["offset"]) :][: int(row["length"])])
    return None


def content_digest_of(data):
    """The definition of the specification, once more."""
    data = bytearray(data)
    data[112:128] = bytes(16)
    if found := section_of(data):
        data[found[0] : found[0] + len(found[1])] = bytes(len(found[1]))
    pieces = [hashlib.sha256(data[i : i + (1 << 20)]).digest() for i in range(0, len(data), 1 << 20)]
    return hashlib.sha256(b"aibit content\0\0\0" + struct.pack("<Q", len(data)) + b"".join(pieces)).digest()
