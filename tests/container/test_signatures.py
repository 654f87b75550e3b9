"""Sections of signatures."""

from __future__ import annotations

import hashlib
import struct

import pytest
from cryptography.hazmat.primitives import serialization

from aibit_format.file.reader import File
from tests.support.signed_files import FRONT, GOOD, RECORD, ROOM, STRONG, WHOLE, code_of, front_digest_of, section_of
from tests.support.signed_files import keys as keys
from tests.support.signed_files import path as path
from tests.support.signed_files import signed as signed
from tests.support.signed_files import signed_whole as signed_whole
from tests.support.signed_files import with_section as with_section
from tools.fixtures.file_builder import rebuilt


def test_the_signed_message_and_the_record_are_what_the_specification_says(signed, keys):
    public = serialization.load_pem_public_key((keys / "a.pub").read_bytes())
    raw = public.public_bytes_raw()
    _, body = section_of(signed)
    assert len(body) == ROOM * RECORD and not any(body[RECORD:])
    algorithm, reserved, key, signature = struct.unpack("<H6s32s64s", body[:RECORD])
    assert (algorithm, reserved, key) == (2, bytes(6), raw)
    public.verify(signature, b"aibit signature\0" + raw + front_digest_of(signed))


def test_strong_leaves_are_what_the_specification_says(signed):
    _, body = section_of(signed, STRONG)
    with File(signed) as file:
        wanted = [hashlib.sha256(signed[r.start : r.end]).digest() for r in file.tables.placement.regions]
        assert body == b"".join(wanted) == file.tables.strong_leaves.tobytes()  # each region is one leaf here
        assert file.tables.front_digest() == front_digest_of(signed)


def test_signatures_of_the_front_matter_need_strong_leaves_and_no_others_beside_them(signed):
    def change(keep, *more):
        return rebuilt(lambda entries: sorted([*(e for e in entries if keep(e[0])), *more]))(signed)

    assert code_of(change(lambda kind: kind != STRONG)) == "AIB-E604"
    _, body = section_of(signed)
    old = (WHOLE, 0, ROOM, b"\1" + body[1:])
    assert code_of(change(lambda kind: True, old)) == "AIB-E604"
    assert code_of(change(lambda kind: kind != FRONT, old)) is None  # whether it verifies, nobody asks


def record(algorithm=2, reserved=bytes(6), key=bytes(32), signature=b"s" * 64):
    return struct.pack("<H6s32s64s", algorithm, reserved, key, signature)


FIRST, SECOND = record(key=b"\1" * 32), record(key=b"\2" * 32)
# Bodies of the section, before the zeros that fill it.
SHAPES = {
    "none in use": b"",
    "algorithm 3": record(algorithm=3),
    "algorithm 65535": record(algorithm=65535),
    "second algorithm": FIRST + record(algorithm=3, key=b"\2" * 32),
    "reserved": record(reserved=b"\0\0\0\0\0\1"),
    "a gap": bytes(RECORD) + FIRST,
    "a gap between": FIRST + bytes(RECORD) + SECOND,
    "bytes in one not in use": FIRST + record(algorithm=0),
    "last byte": FIRST.ljust(ROOM * RECORD - 1, b"\0") + b"\1",
    "out of order": SECOND + FIRST,
    "the same key twice": FIRST + record(key=b"\1" * 32, signature=b"t" * 64),
}


@pytest.mark.parametrize("algorithm", [1, 2])
def test_each_kind_of_section_has_one_algorithm(algorithm, signed, signed_whole):
    body = record(algorithm).ljust(ROOM * RECORD, b"\0")
    assert code_of(with_section(lambda _: body)(signed)) == (None if algorithm == 2 else "AIB-E604")
    assert code_of(with_section(lambda _: body, kind=WHOLE)(signed_whole)) == (None if algorithm == 1 else "AIB-E604")


@pytest.mark.parametrize("kind", [WHOLE, FRONT])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_section_of_another_shape_is_refused_by_whoever_opens_it(name, kind, signed, signed_whole, path, keys):
    good = signed if kind == FRONT else signed_whole
    records = SHAPES[name] if kind == FRONT else SHAPES[name].replace(b"\2\0\0\0\0\0\0\0", b"\1" + bytes(7))
    bad = with_section(lambda _: records.ljust(ROOM * RECORD, b"\0"), kind=kind)(good)
    assert code_of(bad) == code_of(bad, keys / "a.pub") == "AIB-E604"
    path.write_bytes(bad)
    assert code_of(path) == "AIB-E604"
    if name not in ("none in use", "last byte"):  # beside a file, with just the records there are
        head = b"\x89aibsig1\r\n\x1a\n" + struct.pack("<I", len(records) // RECORD)
        path.write_bytes(GOOD)
        (path.parent / "m.aibit.sig").write_bytes(head + records)
        assert code_of(path) is None and code_of(path, keys / "a.pub") == "AIB-E604"


@pytest.mark.parametrize("length", [0, 1, RECORD, ROOM * RECORD - 1, ROOM * RECORD + 1, (ROOM + 1) * RECORD])
def test_a_section_of_another_length_or_count_is_refused(length, signed):
    assert code_of(with_section(lambda body: (body + bytes(RECORD))[:length])(signed)) == "AIB-E604"
    if length == RECORD:
        assert code_of(with_section(lambda body: body[:length], count=1)(signed)) == "AIB-E604"
    if length == (ROOM + 1) * RECORD:
        assert code_of(with_section(lambda body: body.ljust(length, b"\0"), count=ROOM + 1)(signed)) == "AIB-E604"


@pytest.mark.parametrize("count", [0, 1, 7, 9, (1 << 32) - 1])
def test_a_section_that_counts_otherwise_is_refused(count, signed):
    assert code_of(with_section(bytes, count=count)(signed)) == "AIB-E604"


def test_a_critical_section_of_signatures_is_refused(signed):
    """By readers that know the kind, as by those that do not."""
    assert code_of(with_section(bytes, flags=1)(signed)) == "AIB-E202"
