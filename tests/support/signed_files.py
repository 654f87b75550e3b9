"""Sign files with keys made for the tests."""

from __future__ import annotations

import hashlib
import shutil
import struct

import pytest
from cryptography.hazmat.primitives import serialization

from aibit_format.errors import FormatError
from aibit_format.file import signing
from aibit_format.file.reader import File
from tools.fixtures import file_builder
from tools.fixtures.file_builder import rebuilt

GOOD = file_builder.good()
RECORD, ROOM = 104, 8
WHOLE, STRONG, FRONT = 8, 10, 11  # kinds of sections: signatures, strong leaves, signatures of the front matter


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


@pytest.fixture(scope="module")
def signed_whole(keys):
    """The bytes of the good file, signed inside by ``a`` over the whole content, as version 1.0 did."""
    return whole(GOOD, keys / "a.pem")


def whole(data, pem):
    """The same file with a signature over the whole content."""
    key = serialization.load_pem_private_key(pem.read_bytes(), None)
    public = key.public_key().public_bytes_raw()

    def record(signature):
        return struct.pack("<H6s32s64s", 1, bytes(6), public, signature).ljust(ROOM * RECORD, b"\0")

    data = rebuilt(lambda entries: [*entries, (WHOLE, 0, ROOM, record(bytes(64)))])(data)
    signature = key.sign(b"aibit signature\0" + public + content_digest_of(data))
    return with_section(lambda _: record(signature), kind=WHOLE)(data)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "m.aibit").write_bytes(GOOD)
    return tmp_path / "m.aibit"


def code_of(source, signed_by=None):
    """The code that opening and then reading everything gets, or None."""
    try:
        with File(source, signed_by=signed_by) as file:
            for name in file:
                file.planes(name)
            dict(file.documents)
    except FormatError as error:
        return error.code
    return None


def with_section(change, flags=0, count=ROOM, kind=FRONT):
    """A section of signatures with another body, all else made right again."""
    return rebuilt(
        lambda entries: [(k, flags, count, change(c)) if k == kind else (k, f, n, c) for k, f, n, c in entries]
    )


def section_of(data, kind=FRONT):
    """(offset, body) of a section, by the section table alone."""
    for row in file_builder.table(data, "section"):
        if row["kind"] == kind:
            return int(row["offset"]), bytes(data[int(row["offset"]) :][: int(row["length"])])
    return None


def _without(data, kind):
    """The file with zeros for its root and for the body of a section."""
    data = bytearray(data)
    data[112:128] = bytes(16)
    if found := section_of(data, kind):
        data[found[0] : found[0] + len(found[1])] = bytes(len(found[1]))
    return data


def content_digest_of(data):
    """The definition of the specification, once more."""
    data = _without(data, WHOLE)
    pieces = [hashlib.sha256(data[i : i + (1 << 20)]).digest() for i in range(0, len(data), 1 << 20)]
    return hashlib.sha256(b"aibit content\0\0\0" + struct.pack("<Q", len(data)) + b"".join(pieces)).digest()


def front_digest_of(data):
    """The definition of the specification, once more."""
    front = _without(data, FRONT)[: file_builder.front_end(data)]
    return hashlib.sha256(b"aibit front\0\0\0\0\0" + front[:112] + front[128:]).digest()
