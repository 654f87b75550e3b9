"""Holds a file's header and front matter as values, and turns them back into the same bytes.

``FileInfo`` keeps the tables as the numpy record arrays they are on disk; ``TensorInfo`` and ``Plane`` are made
when asked for, so that opening a file costs nothing per tensor. ``parse`` makes a ``FileInfo`` from bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..dtypes import BY_CODE, name_of
from ..errors import SchemeError
from ..schemes import PlaneSpec, Scheme, make
from ..schemes.opaque import Opaque, StoredPlane
from . import checksums, layout, metadata
from .layout import align, dtype_of
from .placement import Placement, place
from .signatures import Signature, read_section

_HEADER = dtype_of(layout.HEADER)
_SECTION = dtype_of(layout.SECTION)
HEADER_SIZE = _HEADER.itemsize
ROOT_OFFSET = HEADER_SIZE - 16  # the root digest lies after everything that it covers in the header
_MOST_KEPT = 1 << 14  # descriptions of tensors that are kept; each takes about a kilobyte
_KINDS = {name: kind for kind, name in layout.SECTIONS.items()}


@dataclass(frozen=True, slots=True)
class Plane(PlaneSpec):
    """Describe one plane of a tensor and where it lies: ``length`` bytes at ``offset`` from the start of the file."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Describe one tensor: what it is to the model (shape, dtype) and how it is stored (scheme, planes).

    ``alias_of`` names the tensor whose planes an alias shares. ``transposed`` says that the stored tensor is the
    transpose of the one the architecture names (GPT-2's Conv1D weights, stored with one row per output).
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
        """Return the stored bytes of its planes without padding; for an alias, those of its target."""
        return sum(plane.length for plane in self.planes)


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """Describe a document and where it lies: ``length`` bytes at ``offset`` from the start of the file."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ExtraSection:
    """Hold a section that this version need not know. It is kept unchanged, so that the file stays the same."""

    kind: int
    flags: int
    count: int
    data: bytes


@dataclass(frozen=True)
class FileInfo:
    """Hold everything before the first document. Immutable; equal bytes give equal values, and vice versa."""

    metadata_bytes: bytes  # the metadata section
    scheme_table: np.ndarray  # records of layout.SCHEME
    document_table: np.ndarray  # layout.DOCUMENT
    tensor_table: np.ndarray  # layout.TENSOR
    plane_table: np.ndarray  # layout.PLANE
    strings: bytes  # every name, each followed by a line feed
    leaves: np.ndarray  # u64, digests of the leaves of the documents, then of the data
    file_size: int
    alignment: int = layout.DEFAULT_ALIGNMENT
    minor: int = 0
    compatible: int = 0
    extra: tuple[ExtraSection, ...] = ()

    @cached_property
    def metadata(self) -> dict[str, metadata.Value]:
        """Return the metadata section's values.

        Raises:
            FormatError: it breaks a rule of its encoding.
        """
        return metadata.decode(self.metadata_bytes)

    @cached_property
    def placement(self) -> Placement:
        """Compute where everything lies from the sizes that it states; ``validate.check`` compares its offsets."""
        planes = self.plane_table
        return place(
            self.front_matter_length, self.document_table["length"], planes["length"], planes["role"], self.alignment
        )

    @property
    def front_matter_length(self) -> int:
        """Return the bytes of the section table and sections, padding included; it depends on sizes alone."""
        lengths = [len(e.data) for e in self.extra]
        return self._known_length + sum(align(length, layout.ALIGNMENT) for length in lengths)

    @property
    def _known_length(self) -> int:
        """Return the bytes of the section table and of the required sections; sections of other kinds follow."""
        table = (len(layout.SECTIONS) + len(self.extra)) * _SECTION.itemsize
        tables = (self.scheme_table, self.document_table, self.tensor_table, self.plane_table, self.leaves)
        lengths = [table, len(self.metadata_bytes), len(self.strings), *(t.nbytes for t in tables)]
        return sum(align(length, layout.ALIGNMENT) for length in lengths)

    @property
    def signatures(self) -> list[Signature]:
        """Return the signatures in the file, unchecked."""
        return [
            found
            for kind in layout.ALGORITHMS
            if (section := self.section(kind)) is not None
            for found in read_section(kind, section.data, section.count)
        ]

    def section(self, kind: int) -> ExtraSection | None:
        """Return the section of a kind that not every file has."""
        return next((extra for extra in self.extra if extra.kind == kind), None)

    @property
    def strong_leaves(self) -> np.ndarray | None:
        """Return the SHA-256 of each leaf, u8 [leaves, 32]; ``None`` if the file does not have them."""
        found = self.section(layout.STRONG_LEAVES)
        return None if found is None else np.frombuffer(found.data, np.uint8).reshape(-1, layout.SHA256_SIZE)

    def front_digest(self) -> bytes:
        """Compute the 32 bytes that a signature of header and front matter covers.

        It is the SHA-256 of a domain, the header up to the root, and the front matter with zeros for such signatures.
        """
        from hashlib import sha256  # slow to import, and seldom needed

        blank = (replace(e, data=bytes(len(e.data))) if e.kind == layout.FRONT_SIGNATURES else e for e in self.extra)
        front_matter = replace(self, extra=tuple(blank)).front_matter()
        return sha256(layout.FRONT_DOMAIN + self.header(front_matter)[:ROOT_OFFSET] + front_matter).digest()

    @property
    def unsigned(self) -> list[tuple[int, int]]:
        """Return the ranges (start, end) of the file that no content digest covers: the root, and its signatures."""
        found = [(ROOT_OFFSET, HEADER_SIZE)]
        if self.extra and self.extra[0].kind == layout.SIGNATURES:  # the lowest kind that can be here
            start = HEADER_SIZE + self._known_length
            found.append((start, start + len(self.extra[0].data)))
        return found

    @cached_property
    def names(self) -> list[str]:
        """Return the tensor names in file order. Non-ASCII bytes become surrogates, which ``validate`` refuses."""
        return self._names[len(self.scheme_table) + len(self.document_table) :]

    @cached_property
    def stored_names(self) -> list[str]:
        """Return the names of the tensors that have planes of their own, as aliases do not, in file order."""
        return [self.names[i] for i in np.flatnonzero((self.tensor_table["flags"] & layout.TENSOR_ALIAS) == 0)]

    @cached_property
    def document_names(self) -> list[str]:
        """Return the names of the documents, in file order."""
        first = len(self.scheme_table)
        return self._names[first : first + len(self.document_table)]

    @cached_property
    def scheme_names(self) -> list[str]:
        """Return the name of each entry of the scheme table."""
        return self._names[: len(self.scheme_table)]

    @cached_property
    def pool_agrees(self) -> bool:
        """Tell whether the string pool is just the names that the records state, in order, each with a line feed."""
        starts, ends = self._spans()
        feeds = np.flatnonzero(np.frombuffer(self.strings, np.uint8) == ord("\n"))
        after = np.concatenate([[0], feeds + 1])  # where the names must start, and last where the pool must end
        return np.array_equal(ends, feeds) and np.array_equal(np.append(starts, len(self.strings)), after)

    @cached_property
    def index(self) -> dict[str, int]:
        """Map each tensor's name to its index in the tensor table."""
        return dict(zip(self.names, range(len(self.names)), strict=True))

    @cached_property
    def schemes(self) -> tuple[Scheme, ...]:
        """Return the scheme of each entry of the scheme table, an ``Opaque`` one where it is not known here.

        Raises:
            SchemeError: AIB-E407: a scheme that is known here does not take its parameters.
        """
        return tuple(
            _scheme(name, int(record["version"]), tuple(record["parameters"].tolist()))
            for name, record in zip(self.scheme_names, self.scheme_table, strict=True)
        )

    @property
    def opaque(self) -> np.ndarray:
        """Tell which tensors have a scheme or a dtype that is not known here, bool [tensors]."""
        unknown = np.array([isinstance(scheme, Opaque) for scheme in self.schemes], bool)
        return unknown[self.tensor_table["scheme"]] | ~_KNOWN_DTYPES[self.tensor_table["dtype"]]

    @cached_property
    def documents(self) -> dict[str, DocumentInfo]:
        """Return the documents by name, in file order."""
        offsets, lengths = self.document_table["offset"].tolist(), self.document_table["length"].tolist()
        return {
            name: DocumentInfo(name, offset, length)
            for name, offset, length in zip(self.document_names, offsets, lengths, strict=True)
        }

    def tensor(self, name: str) -> TensorInfo:
        """Describe the tensor called ``name``; its description is kept for the next call.

        Raises:
            KeyError: there is none.
        """
        found = self._made.get(name)
        if found is None:
            if len(self._made) >= _MOST_KEPT:
                self._made.clear()
            found = self._made[name] = self._make(name)
        return found

    @cached_property
    def _made(self) -> dict[str, TensorInfo]:
        """Hold the descriptions of tensors that were asked for, by name."""
        return {}

    def _make(self, name: str) -> TensorInfo:
        record = self._row(self.index[name])
        alias_of, owner = None, record
        if record["flags"] & layout.TENSOR_ALIAS:
            alias_of, owner = self.names[record["target"]], self._row(record["target"])
        scheme = self.schemes[owner["scheme"]].for_tensor(owner["parameters"].tolist())
        shape = tuple(record["shape"][: record["rank"]].tolist())
        dtype = name_of(record["dtype"])
        rows = self.plane_table[owner["first_plane"] : owner["first_plane"] + owner["plane_count"]]
        if isinstance(scheme, Opaque) or record["dtype"] not in BY_CODE:
            scheme = self._opaque(scheme, dtype, rows).for_tensor(owner["parameters"].tolist())
        planes = tuple(
            Plane(spec.role, spec.dtype, spec.shape, offset, length)
            for spec, offset, length in zip(
                scheme.planes(shape, dtype), rows["offset"].tolist(), rows["length"].tolist(), strict=True
            )
        )
        transposed = bool(record["flags"] & layout.TENSOR_TRANSPOSED)
        return TensorInfo(name, shape, dtype, scheme, planes, alias_of, transposed)

    def _opaque(self, scheme: Scheme, dtype: str, rows: np.ndarray) -> Opaque:
        """Return the scheme of a tensor whose values are not known here, with the planes of the plane table."""
        specs = []
        for role, code, length in zip(*(rows[field].tolist() for field in ("role", "dtype", "length")), strict=True):
            # Nobody knows its rows: one, of as many elements as its bytes have room for.
            shape = (length * 8 // (BY_CODE[code].bits if code in BY_CODE else 8),)
            specs.append(StoredPlane(layout.role_name(role), name_of(code), shape, length))
        if isinstance(scheme, Opaque):
            return replace(scheme, specs=tuple(specs))
        reason = f"dtype {dtype.removeprefix('unknown_')} is unknown here"
        return _as_stored(scheme.name, scheme.version, scheme.parameters, "AIB-E404", reason, tuple(specs))

    def _row(self, place: int) -> dict[str, Any]:
        """Return a record of the tensor table as Python numbers, all at once: numpy takes as long for each field."""
        return dict(zip(self.tensor_table.dtype.names or (), self.tensor_table[place].item(), strict=True))

    def header(self, front_matter: bytes) -> bytes:
        """Build the header that belongs to ``front_matter``, root digest included."""
        record = np.zeros((), _HEADER)
        record["signature"] = layout.SIGNATURE
        record["major"], record["minor"] = layout.VERSION[0], self.minor
        record["file_size"] = self.file_size
        record["front_matter_length"] = len(front_matter)
        record["compatible"] = self.compatible
        record["alignment"] = self.alignment
        record["section_count"] = len(layout.SECTIONS) + len(self.extra)
        head = record.tobytes()[:ROOT_OFFSET]
        return head + checksums.root(head, front_matter)

    def root(self) -> bytes:
        """Compute the root digest, 16 bytes that stand for the whole file."""
        return self.header(self.front_matter())[ROOT_OFFSET:]

    def front_matter(self) -> bytes:
        """Build the section table and the sections, each padded to a multiple of 64 bytes."""
        sections = self._bodies()
        table = np.zeros(len(sections), _SECTION)
        offset = HEADER_SIZE + align(table.nbytes, layout.ALIGNMENT)
        for row, (kind, flags, count, body) in zip(table, sections, strict=True):
            row["kind"], row["flags"], row["count"] = kind, flags, count
            row["offset"], row["length"] = offset, len(body)
            offset += align(len(body), layout.ALIGNMENT)
        return b"".join(_padded(piece) for piece in [table.tobytes(), *(body for *_, body in sections)])

    def _bodies(self) -> list[tuple[int, int, int, bytes]]:
        """Return (kind, flags, count, body) of every section in file order."""
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

    @cached_property
    def _names(self) -> list[str]:
        """Return the names of schemes, documents and tensors, in this order."""
        text = self.strings.decode("ascii", "surrogateescape")
        if self.pool_agrees:  # then one split yields them all, which is far faster than slices
            return text.split("\n")[:-1]
        starts, ends = self._spans()
        return [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]

    def _spans(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where the names of schemes, documents and tensors start and end in the pool, by their records."""
        tables = (self.scheme_table, self.document_table, self.tensor_table)
        starts = np.concatenate([table["name_offset"] for table in tables]).astype(np.int64)
        return starts, starts + np.concatenate([table["name_length"] for table in tables])


_KNOWN_DTYPES = np.isin(np.arange(256), list(BY_CODE))


def _scheme(name: str, version: int, parameters: tuple[int, ...]) -> Scheme:
    try:
        return make(name, version, parameters)
    except SchemeError as error:
        if error.code != "AIB-E406":
            raise
        return _as_stored(name, version, parameters, error.code, str(error))


def _as_stored(
    name: str,
    version: int,
    parameters: tuple[int, ...],
    code: str,
    reason: str,
    specs: tuple[StoredPlane, ...] = (),
) -> Opaque:
    return Opaque(name=name, version=version, stored=parameters, code=code, reason=reason, specs=specs)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % layout.ALIGNMENT)
