"""Parses a file's first bytes, the header and then the front matter, into a ``FileInfo``.

It checks only what must hold for the tables to be found at all; ``validate.check`` checks the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FormatError, Problem
from . import checksums, layout, signatures
from .layout import align, dtype_of
from .tables import HEADER_SIZE, ROOT_OFFSET, ExtraSection, FileInfo

_HEADER = dtype_of(layout.HEADER)
_SECTION = dtype_of(layout.SECTION)
# Tables whose sections take a fixed number of bytes per entry.
_RECORDS = {
    "schemes": dtype_of(layout.SCHEME),
    "documents": dtype_of(layout.DOCUMENT),
    "tensors": dtype_of(layout.TENSOR),
    "planes": dtype_of(layout.PLANE),
}
_LIMITS = {
    "metadata": layout.MAX_METADATA,
    "schemes": layout.MAX_SCHEMES,
    "documents": layout.MAX_DOCUMENTS,
    "tensors": layout.MAX_TENSORS,
}


@dataclass(frozen=True, slots=True)
class Header:
    """Hold the header's numbers, each checked to be within its range."""

    minor: int
    file_size: int
    front_matter_length: int
    compatible: int
    alignment: int
    section_count: int
    root: bytes


def read_header(data: bytes, size: int) -> Header:
    """Parse and check the header, the first 128 bytes of a file of ``size`` bytes.

    Raises:
        FormatError: codes AIB-E101 to AIB-E110.
    """
    if not data:
        raise _bad("AIB-E101", "empty file")
    signature = layout.SIGNATURE
    if data[: len(signature)] != signature[: len(data)]:
        if data[data[:1] in (b"\x89", b"\x09") :][:5] == signature[1:6]:
            raise _bad("AIB-E103", "signature damaged by a text or 7-bit transfer", 0, signature.hex(), data[:10].hex())
        raise _bad("AIB-E102", "not an aibit file", 0, signature.hex(), data[:10].hex())
    if len(data) < HEADER_SIZE:
        raise _bad("AIB-E101", "header cut off", len(data), HEADER_SIZE, len(data))
    record = np.frombuffer(data, _HEADER, 1)[0]
    number = {name: int(record[name]) for name in _HEADER.names or () if _HEADER[name].kind == "u"}
    if number["major"] != layout.VERSION[0]:
        raise _bad("AIB-E104", "format version", 10, layout.VERSION[0], number["major"])
    if unknown := number["incompatible"] & ~layout.KNOWN_INCOMPATIBLE:
        raise _bad("AIB-E105", "needs features this reader does not know", 32, 0, f"bits {unknown:#x}")
    for name, (_, offset, *_) in (_HEADER.fields or {}).items():
        if name.startswith("reserved") and any(record[name].tobytes()):
            raise _bad("AIB-E106", "reserved header bytes are not zero", offset)
    if number["alignment"] not in layout.ALIGNMENTS:
        raise _bad("AIB-E107", "alignment", 48, "one of 64, 4096, 2097152", number["alignment"])
    if number["file_size"] != size:
        raise _bad("AIB-E108", "file size", 16, number["file_size"], size)
    count, length = number["section_count"], number["front_matter_length"]
    if not len(layout.SECTIONS) <= count <= layout.MAX_SECTIONS:
        raise _bad("AIB-E110", "number of sections", 52, f"{len(layout.SECTIONS)} to {layout.MAX_SECTIONS}", count)
    least = align(count * _SECTION.itemsize, layout.ALIGNMENT)
    if length % layout.ALIGNMENT or not least <= length <= min(layout.MAX_FRONT_MATTER, size - HEADER_SIZE):
        limits = f"a multiple of 64 from {least} to {min(layout.MAX_FRONT_MATTER, size - HEADER_SIZE)}"
        raise _bad("AIB-E109", "front matter length", 24, limits, length)
    return Header(
        number["minor"], size, length, number["compatible"], number["alignment"], count, record["root"].tobytes()
    )


def read_front_matter(head: bytes, header: Header, front_matter: bytes) -> FileInfo:
    """Parse the tables of a file from its first 128 bytes and the ``front_matter_length`` bytes after them.

    Raises:
        FormatError: codes AIB-E111, AIB-E2xx, AIB-E3xx and AIB-E604.
    """
    found = checksums.root(head[:ROOT_OFFSET], front_matter)
    if found != header.root:
        raise _bad("AIB-E111", "digest of header and front matter", ROOT_OFFSET, header.root.hex(), found.hex())
    bodies: dict[str, Any] = {}
    counts: dict[str, int] = {}
    extra: list[ExtraSection] = []
    for kind, flags, count, body in _sections(header, front_matter):
        name = layout.SECTIONS.get(kind)
        if name is None:
            if kind in _OPTIONAL:
                _OPTIONAL[kind](kind, count, body, {section.kind for section in extra})
            extra.append(ExtraSection(kind, flags, count, bytes(body)))
            continue
        if name in _RECORDS and count * _RECORDS[name].itemsize != len(body):
            expected = count * _RECORDS[name].itemsize
            raise _bad("AIB-E203", f"section {name}: bytes for {count} entries", None, expected, len(body))
        if name == "leaves" and count * 8 != len(body):
            raise _bad("AIB-E601", "section leaves: bytes for the digests", None, count * 8, len(body))
        if name == "strings" and count:
            raise _bad("AIB-E203", "section strings: count", None, 0, count)
        if count > _LIMITS.get(name, count):
            raise _bad("AIB-E204", f"section {name}: entries", None, f"at most {_LIMITS[name]}", count)
        bodies[name], counts[name] = body, count
    tables = {name: np.frombuffer(bodies[name], record) for name, record in _RECORDS.items()}
    strings = bytes(bodies["strings"])
    for name in ("schemes", "documents", "tensors"):
        _check_strings(name, tables[name], len(strings))
    info = FileInfo(
        metadata_bytes=bytes(bodies["metadata"]),
        scheme_table=tables["schemes"],
        document_table=tables["documents"],
        tensor_table=tables["tensors"],
        plane_table=tables["planes"],
        strings=strings,
        leaves=np.frombuffer(bodies["leaves"], "<u8"),
        file_size=header.file_size,
        alignment=header.alignment,
        minor=header.minor,
        compatible=header.compatible,
        extra=tuple(extra),
    )
    if len(info.metadata) != counts["metadata"]:
        raise _bad("AIB-E203", "section metadata: entries", None, counts["metadata"], len(info.metadata))
    return info


def _sections(header: Header, front_matter: bytes) -> list[tuple[int, int, int, memoryview]]:
    """Return (kind, flags, count, body) of each section, in file order, checking that they tile the front matter."""
    view = memoryview(front_matter)
    table = np.frombuffer(front_matter, _SECTION, header.section_count)
    kinds = table["kind"].tolist()
    offset = HEADER_SIZE + align(table.nbytes, layout.ALIGNMENT)
    end = HEADER_SIZE + len(front_matter)
    position = table.nbytes
    if kinds != sorted(set(kinds)) or 0 in kinds:
        raise _bad("AIB-E201", "section kinds repeated, zero or out of order", HEADER_SIZE, found=kinds)
    if missing := sorted(layout.SECTIONS.keys() - set(kinds)):
        raise _bad("AIB-E201", "required section missing", HEADER_SIZE, layout.SECTIONS[missing[0]])
    sections = []
    for i, row in enumerate(table):
        kind, flags, length = int(row["kind"]), int(row["flags"]), int(row["length"])
        place = HEADER_SIZE + i * _SECTION.itemsize
        known = kind in layout.SECTIONS
        if flags & ~layout.SECTION_CRITICAL or any(row["reserved"].tobytes()) or (known and not flags):
            raise _bad("AIB-E205", f"section {kind}: flags or reserved bytes", place, found=f"{flags:#x}")
        if not known and flags:
            raise _bad("AIB-E202", "critical section this reader does not know", place, found=kind)
        if int(row["offset"]) != offset or length > end - offset:
            raise _bad("AIB-E208", f"section {kind}: place", place, f"{offset} with at most {end - offset} bytes",
                       f"{int(row['offset'])} with {length} bytes")  # fmt: skip
        if any(view[position : offset - HEADER_SIZE]):
            raise _bad("AIB-E209", "padding between sections is not zero", HEADER_SIZE + position)
        position = offset - HEADER_SIZE + length
        sections.append((kind, flags, int(row["count"]), view[position - length : position]))
        offset = align(offset + length, layout.ALIGNMENT)
    if offset != end:
        raise _bad("AIB-E208", "end of the last section", None, end, offset)
    if any(view[position:]):
        raise _bad("AIB-E209", "padding between sections is not zero", HEADER_SIZE + position)
    return sections


def _check_signatures(kind: int, count: int, body: memoryview, before: Collection[int]) -> None:
    signatures.read_section(kind, body, count)
    if kind == layout.FRONT_SIGNATURES and layout.STRONG_LEAVES not in before:
        raise _bad("AIB-E604", "signatures of the front matter, and no strong leaves in it: they cover no weights")
    if kind == layout.FRONT_SIGNATURES and layout.SIGNATURES in before:
        raise _bad("AIB-E604", "signatures of both kinds")


def _check_strong_leaves(kind: int, count: int, body: memoryview, before: Collection[int]) -> None:
    if count * layout.SHA256_SIZE != len(body):
        expected = count * layout.SHA256_SIZE
        raise _bad("AIB-E601", "section strong_leaves: bytes for the digests", None, expected, len(body))


def _check_slack(kind: int, count: int, body: memoryview, before: Collection[int]) -> None:
    if count:
        raise _bad("AIB-E203", "section slack: count", None, 0, count)
    if len(body) % layout.ALIGNMENT or len(body) > layout.MAX_SLACK:
        limits = f"a multiple of {layout.ALIGNMENT}, at most {layout.MAX_SLACK}"
        raise _bad("AIB-E204", "section slack: bytes", None, limits, len(body))
    if np.frombuffer(body, np.uint8).any():
        raise _bad("AIB-E209", "slack is not zero")


# What is checked of sections that not every file has, by their kind, given kind, count, body, and the kinds before it.
_OPTIONAL: dict[int, Callable[[int, int, memoryview, Collection[int]], None]] = {
    layout.SIGNATURES: _check_signatures,
    layout.STRONG_LEAVES: _check_strong_leaves,
    layout.FRONT_SIGNATURES: _check_signatures,
    layout.SLACK: _check_slack,
}


def _check_strings(section: str, table: np.ndarray, size: int) -> None:
    """Check that names are short and inside the string pool, before it is sliced: names may share its bytes."""
    lengths = table["name_length"]
    bad = np.flatnonzero(lengths - 1 >= layout.MAX_NAME)  # unsigned: 0 - 1 is the largest number
    if len(bad):
        at, found = bad[0], int(lengths[bad[0]])
        raise _bad("AIB-E211", f"section {section}: name of entry {at}", None, "1 to 255 bytes", found)
    ends = table["name_offset"].astype(np.int64) + table["name_length"]
    beyond = np.flatnonzero(ends > size)
    if len(beyond):
        raise _bad("AIB-E210", f"section {section}: name of entry {beyond[0]} runs past the string pool", None, size,
                   int(ends[beyond[0]]))  # fmt: skip


def _bad(code: str, what: str, offset: int | None = None, expected: Any = None, found: Any = None) -> FormatError:
    return FormatError(Problem(code, what, offset=offset, expected=expected, found=found))
