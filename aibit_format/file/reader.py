"""Reads a file: one mapping, checked tables, and planes as views of the mapped pages."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Literal, Self, get_args

import numpy as np

from ..container import checksums, documents, layout, parse, pruning, signatures, validate, vocabulary
from ..container.checksums import LeafTable
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
_MOST_DAMAGE = 10  # leaves that are named
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
            return memoryview(self._file.read_checked(info.offset, info.length, storage).tobytes())

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
            in ``FILE.sig``; by default those in the environment variable ``AIBIT_SIGNED_BY``, if it is set. Where the
            signature is over header and front matter, every byte is checked against its strong leaf when it is read,
            at every level. One over the whole file reads all of it now, and cannot be used at a URL, where each read
            asks the server again.

    Raises:
        FormatError: the file breaks a rule of the specification; ``.code`` says which.
        SigningError: keys are demanded, but cannot be read, or the file is at a URL and was signed as a whole.
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
        self._leaves = LeafTable(self.tables.leaves, checksums.leaves)
        self._checked = np.zeros(len(self.tables.leaves), bool)
        self.checks_reads = verify == "touched"  # whether planes are checked against their leaves when they are read
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
        return self._array(self.storage, plane)

    def _array(self, storage: Storage, plane: Plane) -> np.ndarray:
        """Read a plane in its dtype and shape, checked if reads are."""
        read = partial(self.read_checked, storage=storage) if self.checks_reads else storage.read_at
        return _shaped(read(plane.offset, plane.length), plane)

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
            planes = {plane.role: self._array(storage, plane) for plane in info.planes}
            self.check_values(info, planes)
            return info.scheme.decode(planes, info.shape, info.dtype)

    def verify(self, jobs: int | None = None) -> Verified:
        """Check every byte: all digests, the padding, and the contents of every plane that has rules for them.

        Raises:
            FormatError: AIB-E602 for damage (with tensor or document and offset), AIB-E603 for padding that is not
                zero, AIB-E502 for values that no encoder writes, AIB-E503 for codes that none writes.
        """
        strong = self.tables.strong_leaves
        tables = [LeafTable(self.tables.leaves, checksums.leaves)]  # whichever are checked when planes are read
        tables += [] if strong is None else [LeafTable(strong, checksums.strong_leaves)]
        with still(self.storage) as storage:
            for region in self._placed.regions:
                wrong = islice(_wrong(storage, region, tables, jobs), _MOST_DAMAGE)
                if problems := [self._damage(region, *leaf) for leaf in wrong]:
                    raise FormatError(problems, self.path)
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
        """Compute the digest that signatures over the whole file cover: 32 bytes, by SHA-256."""
        with still(self.storage) as storage:
            return signatures.content_digest(storage.read_at, storage.size, self.tables.unsigned, jobs)

    def strong_leaves(self, jobs: int | None = None) -> np.ndarray:
        """Return the SHA-256 of each leaf, u8 [leaves, 32], from the file, or computed where it does not have them."""
        if (stated := self.tables.strong_leaves) is not None:
            return stated
        with still(self.storage) as storage:
            found = [np.zeros((0, layout.SHA256_SIZE), np.uint8)]
            for region in self._placed.regions:
                found += (checksums.strong_leaves(data, jobs) for _, data in _pieces(storage, region))
        return np.concatenate(found)

    def check_signature(self, keys: Keys, detached: Path | None = None) -> str:
        """Check that one of the public ``keys`` has signed the file; returns the key.

        Where the signature is over header and front matter, what is read from then on is checked against its strong
        leaf.

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
        try:
            found = self.signatures if detached is None else _detached(detached)
            beside = f"{self.path}{signatures.SUFFIX}" if self.path else ""
            if detached is None and not any(s.key in keys for s in found) and os.path.lexists(beside):
                found = _detached(beside)
            signature = signatures.check(found, keys, self._signed_digest)
        except FormatError as error:
            raise (error if error.path or not self.path else error.at(self.path)) from None
        if signature.algorithm == layout.ED25519_FRONT and (strong := self.tables.strong_leaves) is not None:
            self._leaves, self.checks_reads = LeafTable(strong, checksums.strong_leaves), True
            self._checked[:] = False
        self.signed_by = signature.key_id
        return self.signed_by

    def _signed_digest(self, algorithm: int) -> bytes:
        """Compute the digest that signatures of this algorithm cover."""
        if algorithm == layout.ED25519_FRONT:
            if self.tables.strong_leaves is None:
                raise FormatError(Problem("AIB-E605", "a signature of the front matter, and no strong leaves in it"))
            return self.tables.front_digest()
        if not self.storage.fixed:
            raise SigningError(
                f"{self.path}: its signature is over the whole file, and the server may send other bytes later than "
                "those that were checked; download the file and open that, or sign it again with this version"
            )
        return self.content_digest()

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

    def read_checked(self, offset: int, length: int, storage: Storage) -> np.ndarray:
        """Read bytes, u8 [length], after the leaves that cover them were checked: only once, if they stay the same.

        Args:
            offset, length: of the bytes.
            storage: this file's own, or what ``still`` made of it.

        Raises:
            FormatError: AIB-E602: they are damaged.
        """
        if storage.fixed or not length:
            self.check_leaves(offset, length, None if storage is self.storage else storage)
            return storage.read_at(offset, length)
        region = self._placed.region(offset)
        covering = region.covering(offset, length)
        start, end = region.leaf(covering[0])[0], region.leaf(covering[-1])[1]
        data = storage.read_at(start, end - start)
        self._check(region, covering[0], data)
        return data[offset - start : offset - start + length]

    def check_leaves(self, offset: int, length: int, storage: Storage | None = None) -> None:
        """Check the leaves that cover these bytes, once each, reading them from ``storage``."""
        if not length:
            return
        region = self._placed.region(offset)
        todo = [i for i in region.covering(offset, length) if not self._checked[region.first + i]]
        if not todo:
            return
        start, end = region.leaf(todo[0])[0], region.leaf(todo[-1])[1]
        with still(self.storage) if storage is None else nullcontext(storage) as reading:
            step = reading.chunk_size or end - start
            for at in range(start, end, step):
                first = (at - region.start) // layout.LEAF
                self._check(region, first, reading.read_at(at, min(step, end - at)))

    def check_brought(self, offset: int, data: np.ndarray) -> None:
        """Check whole leaves of the data region that somebody else has read: ``data`` u8 [n], from ``offset`` on."""
        self._check(self.data, (offset - self.data.start) // layout.LEAF, data, jobs=1)

    def _check(self, region: Region, first: int, data: np.ndarray, jobs: int | None = None) -> None:
        """Check whole leaves of a region, ``data`` u8 [n], of which the first is leaf ``first`` of the region."""
        for leaf in self._leaves.wrong(region.first + first, data, jobs):
            raise FormatError(self._damage(region, *leaf), self.path)
        self._checked[region.first + first : region.first + first + checksums.leaf_count(len(data))] = True

    def check_document(self, name: str) -> Any:
        """Check a document's digests and contents, and return its value if it is JSON.

        Raises:
            FormatError: AIB-E602 for damage; AIB-E705 for bad JSON; AIB-E706 for keys that fetch or run code; AIB-E707
                for a map of what was kept of a larger model whose numbers do not increase, or are beyond it.
        """
        try:
            if name == vocabulary.DOCUMENT:
                vocabulary.kept(self.metadata, self.documents)
            if name == pruning.DOCUMENT:
                pruning.kept(self.metadata, self.documents)
            return documents.check(name, self.documents[name])
        except FormatError as error:
            raise (error if error.path or not self.path else error.at(self.path)) from None

    def _damage(self, region: Region, i: int, expected: str, found: str) -> Problem:
        """Describe damage in leaf ``i`` of the file by the first tensor, or else document, that lies in it."""
        low, high = region.leaf(i - region.first)
        info = self.tables
        tensor, what = None, "leaf digest"
        for at in np.flatnonzero((info.plane_table["offset"] < high)
                                 & (info.plane_table["offset"] + info.plane_table["length"] > low)):  # fmt: skip
            tensor = info.names[info.plane_table["tensor"][at]]
            break
        else:
            inside = [d.name for d in info.documents.values() if d.offset < high and d.offset + d.length > low]
            what = f"leaf digest of document {inside[0]!r}" if inside else what
        return Problem("AIB-E602", what, tensor, None, low, expected, found)

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
            plane = self._planes[role]
            self._read[role] = _shaped(self._storage.read_at(plane.offset, plane.length), plane)
        return self._read[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._planes)

    def __len__(self) -> int:
        return len(self._planes)


def _shaped(data: np.ndarray, plane: Plane) -> np.ndarray:
    """Return a plane's bytes in its dtype and shape, or packed."""
    return data.view(storage_of(plane.dtype)).reshape(stored_shape(plane.dtype, plane.shape))


def _wrong(
    storage: Storage, region: Region, tables: Sequence[LeafTable], jobs: int | None
) -> Iterator[tuple[int, str, str]]:
    """Yield (leaf, expected, found) for each leaf of a region that is not as one of the tables has it."""
    for first, data in _pieces(storage, region):
        for table in tables:
            yield from table.wrong(first, data, jobs)


def _pieces(storage: Storage, region: Region) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the bytes of a region in pieces of whole leaves, each with the leaf of the file that it begins with."""
    step = storage.chunk_size or max(region.end - region.start, 1)
    for at in range(region.start, region.end, step):
        data = storage.read_at(at, min(step, region.end - at))
        yield region.first + (at - region.start) // layout.LEAF, data


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
