"""Reads a file: one mapping, checked tables, and planes as views of the mapped pages."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, get_args

import numpy as np

from ..container import checksums, documents, layout, parse, signatures, validate
from ..container.metadata import Value
from ..container.placement import Region
from ..container.signatures import Keys, Signature
from ..container.tables import FileInfo, Plane, TensorInfo
from ..dtypes import BY_CODE, storage_of, stored_shape
from ..errors import FormatError, Problem, SigningError
from ..io.lease import still
from ..io.mapped import InMemory, Mapped, Path, Storage, is_url
from ..schemes import Scheme
from ..schemes.base import bad_tails
from ..schemes.opaque import Opaque

Level = Literal["structure", "touched", "full"]
LEVELS = get_args(Level)
_MUCH = 16 << 20  # bytes of scales
_PACKED = np.array([code in BY_CODE and BY_CODE[code].is_packed for code in range(256)])  # by a dtype's code


@dataclass(frozen=True, slots=True)
class Verified:
    """Count what a verification has checked. Anything not named here was not checked."""

    level: Level
    tensors: int
    planes: int
    documents: int
    leaves: int
    bytes: int
    root: str
    signed_by: str | None = None  # the key whose signature over all bytes was verified
    shards: int = 1  # number of files that the model lies in
    unknown: Mapping[str, int] = field(default_factory=dict)  # why values were not checked -> number of tensors


class Documents(Mapping[str, memoryview]):
    """Map names to documents, read-only; each is checked against its digests when it is read, and is a copy."""

    def __init__(self, file: File) -> None:
        self._file = file

    def __getitem__(self, name: str) -> memoryview:
        info = self._file.tables.documents[name]
        with still(self._file.storage) as storage:
            self._file.check_leaves(info.offset, info.length, storage)
            return memoryview(storage.read_at(info.offset, info.length).tobytes())

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.tables.document_names)

    def __len__(self) -> int:
        return len(self._file.tables.document_names)


class File:
    """Read an ``.aibit`` file. Views that it hands out stay valid after it is closed.

    Args:
        source: a path, a URL (read by ranges, see ``io/remote.py``), or the bytes of a whole file.
        verify: ``"structure"`` checks header, front matter and every table; ``"touched"`` also checks the digests
            of a plane when it is first read; ``"full"`` checks every byte before this returns. Documents are
            checked against their digests when read, at every level.
        signed_by: public keys (PEM files, folders of ``*.pub``) of which one must have signed the file, inside it or
            in ``FILE.sig``; by default those in the environment variable ``AIBIT_SIGNED_BY``, if it is set. Checking
            this reads every byte. A file at a URL is refused then: each read asks the server again.

    Raises:
        FormatError: the file breaks a rule of the specification; ``.code`` says which.
        SigningError: keys are demanded, but cannot be read, or the file is at a URL.
    """

    def __init__(
        self,
        source: Path | bytes | bytearray | memoryview,
        verify: Level = "structure",
        signed_by: Keys | None = None,
    ) -> None:
        if verify not in LEVELS:
            raise ValueError(f"verify={verify!r}: one of {', '.join(LEVELS)}")
        self.storage: Storage = _storage(source)
        self.path = self.storage.path
        self.level: Level = verify
        self.tables, self._root = read_info(self.storage)
        self._placed = self.tables.placement
        self._checked = np.zeros(len(self.tables.leaves), bool)
        self.signed_by: str | None = None
        if (keys := signatures.demanded(signed_by)) is not None:
            self._check_signature(keys, None)
        if verify == "full":
            self.verify()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def close(self) -> None:
        """Close the file. Planes that were handed out keep the mapping alive as long as they live."""
        self.storage.close()

    def __repr__(self) -> str:
        return f"<aibit file {self.path or 'in memory'}: {len(self)} tensors, {self.tables.file_size} bytes>"

    @property
    def metadata(self) -> Mapping[str, Value]:
        """Return the typed metadata by key."""
        return self.tables.metadata

    @property
    def data(self) -> Region:
        """Return the region of the file that the planes lie in, and its leaves."""
        return self._placed.regions[1]

    @property
    def documents(self) -> Documents:
        """Return the documents by name: ``config.json``, ``tokenizer.json``, ..."""
        return Documents(self)

    @property
    def parts(self) -> tuple[File, ...]:
        """Return the files that make up this model: itself. ``sharded_reader.Sharded`` has several."""
        return (self,)

    def part(self, name: str) -> File:
        """Return the file that the tensor lies in, to which the offsets of its planes refer: this one."""
        return self

    @property
    def size(self) -> int:
        """Return the size of the file in bytes."""
        return self.storage.size

    def keys(self) -> list[str]:
        """Return the tensor names in file order."""
        return list(self.tables.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables.names)

    def __len__(self) -> int:
        return len(self.tables.names)

    def __contains__(self, name: object) -> bool:
        return name in self.tables.index

    def info(self, name: str) -> TensorInfo:
        """Describe the tensor and how it is stored.

        Raises:
            KeyError: there is no tensor of this name.
        """
        return self.tables.tensor(name)

    def planes(self, name: str) -> dict[str, np.ndarray]:
        """Return the tensor's planes by role: read-only views of the mapped pages, in the plane's dtype and shape.

        bf16 and fp8 elements are returned as unsigned integers of their width, as numpy has no such types; elements of
        less than a byte packed, as u8 [..., bytes of a row]: ``schemes.packing.unpack_plane`` makes codes of them.
        """
        return {plane.role: self.view(plane) for plane in self.info(name).planes}

    def view(self, plane: Plane) -> np.ndarray:
        """Return a read-only view of ``plane``: one of ``info(name).planes``, or a range of the rows of one."""
        if self.level == "touched":
            self.check_leaves(plane.offset, plane.length)
        return _array(self.storage, plane)

    def writable(self) -> Self:
        """Return this file, open in memory of its own that tensors may write to, as ``Storage.writable`` gives it.

        Arrays of planes are read-only all the same. Checking digests stays the business of this one, whose bytes are
        the file's.
        """
        found = copy.copy(self)
        found.storage = self.storage.writable()
        return found

    def dequantize(self, name: str) -> np.ndarray:
        """Decode the tensor to float32, in its logical shape."""
        info = self.info(name)
        with still(self.storage) as storage:
            for plane in info.planes if self.level == "touched" else ():
                self.check_leaves(plane.offset, plane.length, storage)
            planes = {plane.role: _array(storage, plane) for plane in info.planes}
            self.check_values(info, planes)
            return info.scheme.decode(planes, info.shape, info.dtype)

    def verify(self, jobs: int | None = None) -> Verified:
        """Check every byte: all digests, the padding, and the contents of every plane that has rules for them.

        Raises:
            FormatError: AIB-E602 for damage (with tensor or document and offset), AIB-E603 for padding that is not
                zero, AIB-E502 for values that no encoder writes, AIB-E503 for codes that none writes.
        """
        with still(self.storage) as storage:
            for region in self._placed.regions:
                found = _leaves(storage, region.start, region.end, jobs)
                bad = np.flatnonzero(found != self.tables.leaves[region.first : region.first + len(found)])
                if len(bad):
                    raise FormatError([self._damage(region, int(i), int(found[i])) for i in bad[:10]], self.path)
            return self._verify_contents(storage, jobs)

    def verify_rest(self) -> Verified:
        """Check everything that ``verify`` checks, except leaves already checked since the file was opened."""
        with still(self.storage) as storage:
            for region in self._placed.regions:
                self.check_leaves(region.start, region.end - region.start, storage)
            return self._verify_contents(storage)

    def _verify_contents(self, storage: Storage, jobs: int | None = None) -> Verified:
        """Check everything that ``verify`` checks, except digests."""
        self._checked[:] = True
        self._check_padding(storage)
        checksums.in_threads(
            partial(self._check_tensors, storage), self.keys(), jobs if self._is_much_to_check() else 1
        )
        for name in self.documents:
            self.check_document(name)
        return self.verified("full")

    def verified(self, level: Level | None = None) -> Verified:
        """Return what opening at this file's level, or at ``level``, has checked."""
        info = self.tables
        reached: Level = level or self.level
        full = reached == "full"
        front = layout.HEADER.sizeof() + info.front_matter_length
        return Verified(
            reached, len(info.tensor_table), len(info.plane_table), len(info.document_table),
            len(info.leaves) if full else 0, info.file_size if full else front, self.root, self.signed_by,
            unknown=dict(Counter(self._unknown())),
        )  # fmt: skip

    def _unknown(self) -> Iterator[str]:
        """Yield, for each tensor whose values are not known here, why."""
        for i in np.flatnonzero(self.tables.opaque).tolist():
            scheme = self.info(self.tables.names[i]).scheme
            yield scheme.reason if isinstance(scheme, Opaque) else scheme.text

    @property
    def root(self) -> str:
        """Return the root digest in hex; it stands for the whole file."""
        self.storage.check_unchanged()
        return self._root

    @property
    def signatures(self) -> list[Signature]:
        """Return the signatures in the file, unchecked."""
        return self.tables.signatures

    def content_digest(self, jobs: int | None = None) -> bytes:
        """Compute the digest that signatures cover: 32 bytes, by SHA-256 over the file."""
        with still(self.storage) as storage:
            return signatures.content_digest(storage.read_at, storage.size, self.tables.unsigned, jobs)

    def check_signature(self, keys: Keys, detached: Path | None = None) -> str:
        """Check that one of the public ``keys`` has signed the file; returns the key.

        Args:
            keys: PEM files, or folders of ``*.pub``.
            detached: a file of signatures to check instead of the file's own and ``FILE.sig``.

        Raises:
            FormatError: AIB-E606: no signature is by one of them; AIB-E605: one is, but does not verify; AIB-E604: the
                file of signatures is damaged.
            SigningError: a key cannot be read, or the file is at a URL.
        """
        return self._check_signature(signatures.public_keys(keys), detached)

    def _check_signature(self, keys: Mapping[bytes, str], detached: Path | None) -> str:
        if not isinstance(self.storage, (Mapped, InMemory)):
            raise SigningError(
                f"{self.path}: a signature is demanded, and the server may send other bytes later than those that were "
                "checked; download the file and open that"
            )
        try:
            found = self.signatures if detached is None else _detached(detached)
            beside = f"{self.path}{signatures.SUFFIX}" if self.path else ""
            if detached is None and not any(s.key in keys for s in found) and os.path.lexists(beside):
                found = _detached(beside)
            self.signed_by = signatures.check(found, keys, self.content_digest).key_id
        except FormatError as error:
            raise (error if error.path or not self.path else error.at(self.path)) from None
        return self.signed_by

    def check_known(self, info: TensorInfo) -> None:
        """Raise FormatError AIB-E404 or AIB-E406 if the tensor's dtype or scheme is not known here."""
        if isinstance(info.scheme, Opaque):
            raise FormatError(Problem(info.scheme.code, str(info.scheme.unknown()), info.name), self.path)

    def check_values(self, info: TensorInfo, planes: Mapping[str, np.ndarray]) -> None:
        """Check planes before their values are used.

        Raises:
            FormatError: AIB-E502: they hold values that no encoder writes, such as an infinite scale; AIB-E404 or
                AIB-E406: the dtype or the scheme is not known here, so that nobody can tell.
        """
        self.check_known(info)
        for role, reason in info.scheme.bad_values(planes):
            raise FormatError(_bad_plane("AIB-E502", info, role, reason), self.path)

    def _is_much_to_check(self) -> bool:
        """Tell whether checking contents is worth threads: if it mostly runs Python, they only wait for each other."""
        info = self.tables
        scales = info.plane_table["length"][layout.is_pooled_role(info.plane_table["role"])]
        codes = any(type(scheme).bad_codes is not Scheme.bad_codes for scheme in info.schemes)
        codes = codes or bool(_PACKED[info.plane_table["dtype"]].any())
        return codes or int(scales.sum()) > _MUCH

    def _check_tensors(self, storage: Storage, names: Sequence[str]) -> list[None]:
        """Run ``check_values`` on tensors, and raise AIB-E503 for codes that no encoder writes; returns nothing."""
        for name in names:
            info = self.info(name)
            if info.alias_of is None and not isinstance(info.scheme, Opaque):
                planes = _Asked(storage, info)
                self.check_values(info, planes)
                for role, reason in (*bad_tails(info.planes, planes), *info.scheme.bad_codes(planes, info.shape)):
                    raise FormatError(_bad_plane("AIB-E503", info, role, reason), self.path)
        return []

    def check_leaves(self, offset: int, length: int, storage: Storage | None = None) -> None:
        """Check the leaves that cover these bytes, once each, reading them from ``storage``."""
        if not length:
            return
        region = self._placed.region(offset)
        todo = [i for i in region.covering(offset, length) if not self._checked[region.first + i]]
        if not todo:
            return
        first, end = todo[0], region.leaf(todo[-1])[1]
        with still(self.storage) if storage is None else nullcontext(storage) as reading:
            found = _leaves(reading, region.leaf(first)[0], end)
        for i, value in enumerate(found, first):
            self._check_leaf(region, i, int(value))

    def check_brought(self, offset: int, data: np.ndarray) -> None:
        """Check whole leaves of the data region that somebody else has read: ``data`` u8 [n], from ``offset`` on."""
        first = (offset - self.data.start) // layout.LEAF
        for i in range(checksums.leaf_count(len(data))):
            value = checksums.leaf(data[i * layout.LEAF : (i + 1) * layout.LEAF].data)
            self._check_leaf(self.data, first + i, value)

    def _check_leaf(self, region: Region, i: int, value: int) -> None:
        if value != self.tables.leaves[region.first + i]:
            raise FormatError(self._damage(region, i, value), self.path)
        self._checked[region.first + i] = True

    def check_document(self, name: str) -> Any:
        """Check a document's digests and contents, and return its value if it is JSON.

        Raises:
            FormatError: AIB-E602 for damage; AIB-E705 for bad JSON; AIB-E706 for keys that fetch or run code.
        """
        try:
            return documents.check(name, self.documents[name])
        except FormatError as error:
            raise (error if error.path or not self.path else error.at(self.path)) from None

    def _damage(self, region: Region, i: int, found: int) -> Problem:
        """Describe damage in leaf ``i`` of the region by the first tensor, or else document, that lies in it."""
        low, high = region.leaf(i)
        info = self.tables
        tensor, what = None, "leaf digest"
        for at in np.flatnonzero((info.plane_table["offset"] < high)
                                 & (info.plane_table["offset"] + info.plane_table["length"] > low)):  # fmt: skip
            tensor = info.names[info.plane_table["tensor"][at]]
            break
        else:
            inside = [d.name for d in info.documents.values() if d.offset < high and d.offset + d.length > low]
            what = f"leaf digest of document {inside[0]!r}" if inside else what
        return Problem(
            "AIB-E602", what, tensor, None, low, f"{int(info.leaves[region.first + i]):016x}", f"{found:016x}"
        )

    def _check_padding(self, storage: Storage) -> None:
        """Check that every byte that belongs to no document and no plane is zero."""
        info, placed = self.tables, self._placed
        pieces = [(placed.data_start, placed.data_start)]
        for table in (info.document_table, info.plane_table):
            pieces += zip(table["offset"].tolist(), (table["offset"] + table["length"]).tolist(), strict=True)
        previous = placed.documents_start
        for start, end in sorted(pieces):
            if start > previous and storage.read_at(previous, start - previous).any():
                raise FormatError(Problem("AIB-E603", "padding is not zero", offset=previous), self.path)
            previous = max(previous, end)


def _detached(path: Path) -> list[Signature]:
    """Read the signatures in the file ``path``."""
    file = Mapped(path)
    try:
        return signatures.read_detached(file.read_at(0, min(file.size, signatures.MAX_DETACHED + 1)).tobytes())
    except FormatError as error:
        raise error.at(os.fspath(path)) from None
    finally:
        file.close()


def _storage(source: Path | bytes | bytearray | memoryview) -> Storage:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return InMemory(source)
    if isinstance(source, str) and is_url(source):
        from ..io.remote import Ranged  # urllib is slow to import, and seldom needed

        return Ranged(source)
    return Mapped(source)


class _Asked(Mapping[str, np.ndarray]):
    """Map roles to a tensor's planes, each read when it is asked for: most schemes check only scales."""

    def __init__(self, storage: Storage, info: TensorInfo) -> None:
        self._storage, self._planes = storage, {plane.role: plane for plane in info.planes}
        self._read: dict[str, np.ndarray] = {}

    def __getitem__(self, role: str) -> np.ndarray:
        if role not in self._read:
            self._read[role] = _array(self._storage, self._planes[role])
        return self._read[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._planes)

    def __len__(self) -> int:
        return len(self._planes)


def _array(storage: Storage, plane: Plane) -> np.ndarray:
    """Read a plane in its dtype and shape, or its packed bytes."""
    data = storage.read_at(plane.offset, plane.length).view(storage_of(plane.dtype))
    return data.reshape(stored_shape(plane.dtype, plane.shape))


def _leaves(storage: Storage, start: int, end: int, jobs: int | None = None) -> np.ndarray:
    """Compute the digests of the leaves from ``start``, where one begins, to ``end``, u64."""
    step = storage.chunk_size or max(end - start, 1)
    pieces = (checksums.leaves(storage.read_at(at, min(step, end - at)), jobs=jobs) for at in range(start, end, step))
    return np.concatenate([np.zeros(0, np.uint64), *pieces])


def _bad_plane(code: str, info: TensorInfo, role: str, reason: str) -> Problem:
    offset = next(plane.offset for plane in info.planes if plane.role == role)
    return Problem(code, reason, info.name, role, offset)


def read_info(storage: Storage) -> tuple[FileInfo, str]:
    """Read and check a file's tables; returns them and the root digest in hex. No signature is checked.

    Raises:
        FormatError: the file breaks a rule that is checked on opening.
    """
    try:
        with still(storage) as reading:
            head = reading.read_at(0, min(layout.HEADER.sizeof(), storage.size)).tobytes()
            header = parse.read_header(head, storage.size)
            front_matter = reading.read_at(len(head), header.front_matter_length).tobytes()
        info = parse.read_front_matter(head, header, front_matter)
        if problems := validate.check(info, storage.size):
            raise FormatError(problems)
    except FormatError as error:
        raise (error.at(storage.path) if storage.path else error) from None
    return info, header.root.hex()


def open(
    source: Path | bytes | bytearray | memoryview, verify: Level = "structure", signed_by: Keys | None = None
) -> File:
    """Open one ``.aibit`` file; see ``File``. ``sharded_reader.open`` also opens the other shards of a model."""
    return File(source, verify, signed_by)
