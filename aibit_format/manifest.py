"""What a file says of itself: header and front matter as values, and back to the same bytes.

``FileInfo`` keeps the tables as the numpy record arrays they are on disk; ``TensorInfo`` and ``Plane`` are made
when asked for, so that opening a file costs nothing per tensor. Reading here checks only what must hold for the
tables to be found at all; ``validate.check`` checks the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from . import digest, layout, metadata
from .dtypes import BY_CODE
from .errors import FormatError, Problem
from .layout import align, dtype_of
from .schemes import Scheme, make

_HEADER = dtype_of(layout.HEADER)
_SECTION = dtype_of(layout.SECTION)
_SCHEME = dtype_of(layout.SCHEME)
_DOCUMENT = dtype_of(layout.DOCUMENT)
_TENSOR = dtype_of(layout.TENSOR)
_PLANE = dtype_of(layout.PLANE)
HEADER_SIZE = _HEADER.itemsize
_ROOT = HEADER_SIZE - 16  # where the root digest lies: after all that it covers in the header
_KINDS = {name: kind for kind, name in layout.SECTIONS.items()}
# Tables whose section length is a fixed number of bytes an entry.
_RECORDS = {"schemes": _SCHEME, "documents": _DOCUMENT, "tensors": _TENSOR, "planes": _PLANE}


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane of a tensor and where it lies: ``length`` bytes at ``offset`` from the start of the file."""

    role: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: what it is to the model (shape, dtype) and how it is stored (scheme, planes).

    ``alias_of`` names the tensor whose planes an alias shares. ``transposed`` says that the stored tensor is the
    transpose of the one the architecture names (GPT-2's Conv1D weights, stored as rows of outputs).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scheme: Scheme
    planes: tuple[Plane, ...]
    alias_of: str | None = None
    transposed: bool = False

    @property
    def nbytes(self) -> int:
        """Stored bytes of its planes, padding aside; an alias counts its target's."""
        return sum(plane.length for plane in self.planes)


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """A document and where it lies."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ExtraSection:
    """A section this version does not know and need not: kept as it is, so that the file stays the same."""

    kind: int
    flags: int
    count: int
    data: bytes


@dataclass(frozen=True)
class FileInfo:
    """Everything before the first document. Immutable; equal bytes give equal values and back."""

    metadata_bytes: bytes  # the metadata section
    scheme_table: np.ndarray  # records of layout.SCHEME
    document_table: np.ndarray  # layout.DOCUMENT
    tensor_table: np.ndarray  # layout.TENSOR
    plane_table: np.ndarray  # layout.PLANE
    strings: bytes
    leaves: np.ndarray  # u64: of the documents, then of the data
    file_size: int
    alignment: int = layout.DEFAULT_ALIGNMENT
    minor: int = 0
    compatible: int = 0
    extra: tuple[ExtraSection, ...] = ()

    @cached_property
    def metadata(self) -> dict[str, metadata.Value]:
        """The metadata section's values.

        Raises:
            FormatError: it breaks a rule of its encoding.
        """
        return metadata.decode(self.metadata_bytes)

    @property
    def front_matter_length(self) -> int:
        """Bytes of section table and sections, padding included; a function of the sizes alone."""
        table = (len(layout.SECTIONS) + len(self.extra)) * _SECTION.itemsize
        tables = (self.scheme_table, self.document_table, self.tensor_table, self.plane_table, self.leaves)
        lengths = [table, len(self.metadata_bytes), len(self.strings), *(t.nbytes for t in tables)]
        return sum(align(length, layout.ALIGNMENT) for length in lengths + [len(e.data) for e in self.extra])

    @cached_property
    def names(self) -> list[str]:
        """Tensor names in file order. Bytes outside ASCII come out as surrogates, which ``validate`` refuses."""
        return self._names(self.tensor_table)

    @cached_property
    def document_names(self) -> list[str]:
        return self._names(self.document_table)

    @cached_property
    def scheme_names(self) -> list[str]:
        return self._names(self.scheme_table)

    @cached_property
    def index(self) -> dict[str, int]:
        """Place of each tensor in the directory."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def schemes(self) -> tuple[Scheme, ...]:
        """The scheme table's entries.

        Raises:
            SchemeError: a scheme, version or parameter this reader does not know.
        """
        return tuple(
            make(name, int(record["version"]), tuple(record["parameters"].tolist()))
            for name, record in zip(self.scheme_names, self.scheme_table, strict=True)
        )

    @cached_property
    def documents(self) -> dict[str, DocumentInfo]:
        offsets, lengths = self.document_table["offset"].tolist(), self.document_table["length"].tolist()
        return {
            name: DocumentInfo(name, offset, length)
            for name, offset, length in zip(self.document_names, offsets, lengths, strict=True)
        }

    def tensor(self, name: str) -> TensorInfo:
        """The tensor called ``name``.

        Raises:
            KeyError: there is none.
        """
        record = self.tensor_table[self.index[name]]
        alias_of = None
        if record["flags"] & layout.TENSOR_ALIAS:
            alias_of = self.names[record["target"]]
        owner = self.tensor_table[record["target"]] if alias_of else record
        scheme = self.schemes[owner["scheme"]]
        shape = tuple(record["shape"][: record["rank"]].tolist())
        dtype = BY_CODE[int(record["dtype"])].name
        first = int(owner["first_plane"])
        specs = scheme.planes(shape, dtype)
        planes = tuple(
            Plane(spec.role, spec.dtype, spec.shape, offset, length)
            for spec, offset, length in zip(
                specs,
                self.plane_table["offset"][first : first + len(specs)].tolist(),
                self.plane_table["length"][first : first + len(specs)].tolist(),
                strict=True,
            )
        )
        transposed = bool(record["flags"] & layout.TENSOR_TRANSPOSED)
        return TensorInfo(name, shape, dtype, scheme, planes, alias_of, transposed)

    def header(self, front_matter: bytes) -> bytes:
        """The header that belongs to ``front_matter``, root digest included."""
        record = np.zeros((), _HEADER)
        record["signature"] = layout.SIGNATURE
        record["major"], record["minor"] = layout.VERSION[0], self.minor
        record["file_size"] = self.file_size
        record["front_matter_length"] = len(front_matter)
        record["compatible"] = self.compatible
        record["alignment"] = self.alignment
        record["section_count"] = len(layout.SECTIONS) + len(self.extra)
        head = record.tobytes()[:_ROOT]
        return head + digest.root(head, front_matter)

    def front_matter(self) -> bytes:
        """Section table and sections, padded to a multiple of 64 bytes."""
        sections = self._bodies()
        table = np.zeros(len(sections), _SECTION)
        offset = HEADER_SIZE + align(table.nbytes, layout.ALIGNMENT)
        for row, (kind, flags, count, body) in zip(table, sections, strict=True):
            row["kind"], row["flags"], row["count"] = kind, flags, count
            row["offset"], row["length"] = offset, len(body)
            offset += align(len(body), layout.ALIGNMENT)
        return b"".join(_padded(piece) for piece in [table.tobytes(), *(body for *_, body in sections)])

    def _bodies(self) -> list[tuple[int, int, int, bytes]]:
        """(kind, flags, count, body) of every section in file order."""
        bodies = {
            "metadata": (len(self.metadata), self.metadata_bytes),
            "schemes": (len(self.scheme_table), self.scheme_table.tobytes()),
            "documents": (len(self.document_table), self.document_table.tobytes()),
            "tensors": (len(self.tensor_table), self.tensor_table.tobytes()),
            "planes": (len(self.plane_table), self.plane_table.tobytes()),
            "strings": (0, self.strings),
            "leaves": (len(self.leaves), self.leaves.astype("<u8").tobytes()),
        }
        sections = [(_KINDS[name], layout.SECTION_CRITICAL, *body) for name, body in bodies.items()]
        return sections + [(extra.kind, extra.flags, extra.count, extra.data) for extra in self.extra]

    def _names(self, table: np.ndarray) -> list[str]:
        starts = table["name_offset"].astype(np.int64)
        ends = starts + table["name_length"]
        text = self.strings.decode("ascii", "surrogateescape")
        return [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Header:
    """The header's numbers, each within its range."""

    minor: int
    file_size: int
    front_matter_length: int
    compatible: int
    alignment: int
    section_count: int
    root: bytes


def read_header(data: bytes, size: int) -> Header:
    """Check the first 128 bytes of a file of ``size`` bytes.

    Raises:
        FormatError: codes AIB-E101 to AIB-E110.
    """
    if not data:
        raise _bad("AIB-E101", "empty file")
    signature = layout.SIGNATURE
    if data[: len(signature)] != signature[: len(data)]:
        if data.lstrip(b"\x89\x09")[:5] == signature[1:6]:
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
    """The tables of a file, from its first 128 bytes and the ``front_matter_length`` bytes after them.

    Raises:
        FormatError: codes AIB-E111, AIB-E2xx and AIB-E3xx.
    """
    found = digest.root(head[:_ROOT], front_matter)
    if found != header.root:
        raise _bad("AIB-E111", "digest of header and front matter", _ROOT, header.root.hex(), found.hex())
    bodies: dict[str, Any] = {}
    counts: dict[str, int] = {}
    extra: list[ExtraSection] = []
    for kind, flags, count, body in _sections(header, front_matter):
        name = layout.SECTIONS.get(kind)
        if name is None:
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


_LIMITS = {
    "metadata": layout.MAX_METADATA,
    "schemes": layout.MAX_SCHEMES,
    "documents": layout.MAX_DOCUMENTS,
    "tensors": layout.MAX_TENSORS,
}


def _sections(header: Header, front_matter: bytes) -> list[tuple[int, int, int, memoryview]]:
    """(kind, flags, count, body) of each section, in file order, after checking that they tile the front matter."""
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


def _check_strings(section: str, table: np.ndarray, size: int) -> None:
    """Names must be short and lie inside the string pool before anything slices it: they may share its bytes."""
    lengths = table["name_length"]
    bad = np.flatnonzero((lengths == 0) | (lengths > layout.MAX_NAME))
    if len(bad):
        at, found = bad[0], int(lengths[bad[0]])
        raise _bad("AIB-E211", f"section {section}: name of entry {at}", None, "1 to 255 bytes", found)
    ends = table["name_offset"].astype(np.int64) + table["name_length"]
    beyond = np.flatnonzero(ends > size)
    if len(beyond):
        raise _bad("AIB-E210", f"section {section}: name of entry {beyond[0]} runs past the string pool", None, size,
                   int(ends[beyond[0]]))  # fmt: skip


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % layout.ALIGNMENT)


def _bad(code: str, what: str, offset: int | None = None, expected: Any = None, found: Any = None) -> FormatError:
    return FormatError(Problem(code, what, offset=offset, expected=expected, found=found))
