"""Writes a file that ``container/plan.py`` has planned and checked: streams planes, syncs, and gives it its name.

Planes go straight to their offsets in a file without a name; digests are computed while the bytes are still in memory;
the file gets its name only once it is whole and on the disk (``io/atomic.py``).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from types import TracebackType
from typing import Self

import numpy as np

from ..container import checksums, documents, layout, pruning, vocabulary
from ..container.metadata import Value
from ..container.metadata import encode as encode_metadata
from ..container.placement import Region
from ..container.plan import Tensor, as_read, plan
from ..container.tables import HEADER_SIZE, ROOT_OFFSET, FileInfo, Plane, TensorInfo
from ..dtypes import DTYPES, storage_of, stored_shape
from ..errors import SchemeError, WriteError
from ..io.atomic import AtomicFile, insist
from ..io.lease import still
from ..io.mapped import Path
from ..io.preallocate import make_room
from ..schemes.base import PlaneSpec, bad_tails, matrix
from ..schemes.opaque import Opaque
from .origin import Origin, Put
from .sharded_reader import Opened

__all__ = ["Tensor", "Writer", "plan", "write"]

Sign = Callable[[FileInfo], FileInfo]

_SYNC_EVERY = 128 << 20  # bytes after which writing to the disk is started, so that little is left at the end
_MOST_LEAVES = 4  # of a chunk
_LONG_ROW = layout.LEAF // 8  # tensors are written by rows if a row of the largest plane has at most so many bytes
_WRITE_BYTES = 16 << 20  # bytes of one write: large, so that the page cache fills with large folios


class Writer:
    """Write the file that ``info`` plans. Use it as a context: leaving it without ``commit`` leaves nothing.

    Args:
        path: the final name.
        info: from ``plan``.
        overwrite: replace an existing file; without it an existing one is an error.
        source: an open model that ``take`` and ``take_data`` take planes from. They share its extents where the file
            system can, and room is made only for the rest.

    ``write`` and ``write_rows`` may be called from several threads at once: each writes to its own offsets. ``root`` is
    the finished file's root digest, 16 bytes.

    Raises:
        WriteError: the file exists, or cannot be created.
    """

    root: bytes

    def __init__(self, path: Path, info: FileInfo, *, overwrite: bool = False, source: Opened | None = None) -> None:
        self.path, self.info, self.overwrite = os.fspath(path), info, overwrite
        self._regions = info.placement.regions
        self._leaves = np.zeros(len(info.leaves), np.uint64)
        self._hashed = bytearray(len(info.leaves))  # whether each leaf's digest is known
        self._missing = set(info.stored_names)
        self._missing_documents = set(info.document_names)
        self._by_rows: dict[str, _ByRows] = {}
        self._counting = Lock()
        self._chunk_size = layout.LEAF  # bytes of one, once there is room
        self._unsynced = 0
        self._syncing: Future[None] | None = None
        self._disk = ThreadPoolExecutor(1)
        try:
            self._partial = AtomicFile(self.path, overwrite)
            self._file = self._partial.file
        except OSError as error:
            raise self._no_room(error) from error
        self._origin = None if source is None else Origin(source, info, self._file)
        self._taken = False  # whether all of the data came with its digests
        # Runs while the first tensor is encoded.
        self._room: Future[int] | None = self._disk.submit(self._make_room)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            self._disk.shutdown(cancel_futures=True)
        finally:  # a signal may come while it waits
            self._file = -1
            insist(self._partial.discard)

    @property
    def published(self) -> bool:
        """Tell whether the file has its name, even if the disk failed after that."""
        return self._partial.published

    def write_document(self, name: str, data: bytes) -> None:
        """Write one document; its length must be the planned one, and a reader must accept its contents."""
        info = self.info.documents[name]
        if len(data) != info.length:
            raise WriteError(f"{self.path}: document {name!r}: {len(data)} bytes, planned {info.length}")
        documents.check(name, data)
        vocabulary.kept(self.info.metadata, {name: data})
        pruning.kept(self.info.metadata, {name: data})
        self._missing_documents.discard(name)
        self._write(info.offset, np.frombuffer(data, np.uint8))

    def write(self, name: str, planes: Mapping[str, np.ndarray]) -> None:
        """Write one tensor's planes; roles, dtypes and shapes must be the planned ones."""
        info = self.info.tensor(name)
        _check(self.path, info, planes, info.shape, info.planes)
        self._missing.discard(name)
        for plane in info.planes:
            self._write_plane(plane.offset, planes[plane.role])

    def written(self, name: str, role: str) -> np.ndarray | None:
        """Read back a plane that was written; ``None`` if the tensor has none of this role."""
        plane = next((plane for plane in self.info.tensor(name).planes if plane.role == role), None)
        if plane is None:
            return None
        data = b""
        while len(data) < plane.length:
            piece = os.pread(self._file, plane.length - len(data), plane.offset + len(data))
            if not piece:
                raise WriteError(f"{self.path}: tensor {name!r} plane {role!r}: cannot be read back")
            data += piece
        return np.frombuffer(data, storage_of(plane.dtype)).reshape(plane.stored)

    def take(self, name: str) -> None:
        """Write one tensor's planes as they are in ``source``, shared with it or copied.

        They are read, once: they are checked against the digests there, and get those of the new file.

        Raises:
            FormatError: AIB-E602: they are damaged; AIB-E802: the source has changed since it was opened.
            WriteError, SchemeError: as for ``write``.
        """
        origin, info = self._from, self.info.tensor(name)
        part = origin.part(name)
        for plane in part.info(name).planes:
            part.check_leaves(plane.offset, plane.length)
        planes = part.planes(name)
        _check(self.path, info, planes, info.shape, info.planes)
        for plane, put in origin.planes(name):
            self._write_plane(plane.offset, planes[plane.role], put)
        part.storage.check_unchanged()
        self._missing.discard(name)

    def take_data(self, finished: Callable[[str], None] = lambda name: None) -> None:
        """Write all tensors as they are in ``source``, shared with it or copied, unread if that is possible.

        It is where one file of the source has just these tensors, each at the same place of its data region: then the
        digests are taken over as well. Whatever is wrong with a plane there is wrong in the new file, and found by its
        digests, as they are those of the right bytes. Otherwise, and from a URL, this is ``take`` for each tensor.

        Args:
            finished: called with the name of each tensor.

        Raises:
            FormatError: AIB-E802: the source has changed since it was opened; and as for ``take``.
            WriteError: as for ``write``.
        """
        names, origin = self.info.stored_names, self._from
        part = origin.whole() if len(self._missing) == len(names) else None
        if part is None:
            for name in [name for name in names if name in self._missing]:
                self.take(name)
                finished(name)
            return
        self._wait_for_room()
        try:
            with still(part.storage) as reading:
                for name in names:
                    for plane, put in origin.planes(name):
                        for piece in _pieces(plane):
                            self._count(put(piece.start, len(piece)) if put else 0)
                            reading.check_unchanged()
                    finished(name)
        except OSError as error:
            raise WriteError(f"{self.path}: {error.strerror}") from error
        data = self._regions[1]
        self._leaves[data.first :] = part.tables.leaves[part.data.first :]
        self._hashed[data.first :] = b"\1" * data.leaves
        self._missing.clear()
        self._taken = True

    def chunks(self, name: str) -> list[range]:
        """Cut the bytes of a tensor's largest plane at ends of leaves, into ranges for ``write_rows``.

        A chunk is one leaf, or as many as fill a page of the file, which otherwise would be filled in parts.
        The result is empty if the tensor must be written as a whole: it has no bytes, its scheme does not encode by
        rows, or its rows are so long that encoding a row on both sides of each cut would cost too much.
        """
        info = self.info.tensor(name)
        bulk = _largest(info)
        if not bulk.length or not info.scheme.by_rows(info.shape) or bulk.length // matrix(info.shape)[0] > _LONG_ROW:
            return []
        self._wait_for_room()
        first = self._chunk_size - (bulk.offset - self._region(bulk.offset).start) % self._chunk_size
        cuts = [0, *range(first, bulk.length, self._chunk_size), bulk.length]
        return [range(start, end) for start, end in itertools.pairwise(cuts)]

    def write_rows(self, name: str, rows: range, planes: Mapping[str, np.ndarray], chunk: range) -> None:
        """Write the planes of some rows of a tensor; all rows together write what ``write`` would.

        Args:
            name: the tensor.
            rows: of the tensor seen as a matrix.
            planes: of these rows, as a tensor [rows, columns].
            chunk: one of ``chunks``, which these rows must cover. Only its bytes of the largest plane are written, so
                a row on both sides of a cut is passed twice.
        """
        held = self._held(name)
        info, bulk = held.info, held.bulk
        _check(self.path, info, planes, (len(rows), held.columns), held.specs(len(rows)))
        for role, plane in held.small.items():
            plane[rows.start : rows.stop] = planes[role].reshape(len(rows), -1)
        begin = rows.start * held.row_bytes
        if chunk not in held.missing or chunk.start < begin or chunk.stop > rows.stop * held.row_bytes:
            raise WriteError(f"{self.path}: tensor {name!r}: no {chunk} is missing that lies in the {rows} of rows")
        data = np.ascontiguousarray(planes[bulk.role]).reshape(-1).view(np.uint8)
        self._write_plane(bulk.offset + chunk.start, data[chunk.start - begin : chunk.stop - begin])
        with self._counting:
            held.missing.discard(chunk)
            done = not held.missing and self._by_rows.pop(name, None) is held
        if done:
            for plane in info.planes:
                if plane is not bulk:
                    self._write_plane(plane.offset, held.small[plane.role])
            self._missing.discard(name)

    def _held(self, name: str) -> _ByRows:
        with self._counting:
            if name not in self._by_rows:
                self._by_rows[name] = _ByRows.of(self.info.tensor(name), self.chunks(name))
            return self._by_rows[name]

    def commit(self, metadata: Mapping[str, Value] | None = None, sign: Sign | None = None) -> FileInfo:
        """Finish the file and give it its name: ``finish``, then ``publish``."""
        info = self.finish(metadata, sign)
        self.publish()
        return info

    def finish(self, metadata: Mapping[str, Value] | None = None, sign: Sign | None = None) -> FileInfo:
        """Sync the whole file to the disk. ``metadata`` may replace the planned values, but not change their sizes.

        ``sign`` is called with the finished tables, to fill in signatures.

        Raises:
            WriteError: something planned was not written, or the disk failed.
        """
        if self._missing or self._missing_documents:
            lacking = sorted(self._missing | self._missing_documents)
            raise WriteError(f"{self.path}: not written: {', '.join(lacking[:5])} ({len(lacking)} in all)")
        self._wait_for_room()
        try:
            self._disk.shutdown()
            self._hash_shared()
            info = replace(self.info, leaves=self._leaves)
            if metadata is not None:
                info = replace(info, metadata_bytes=encode_metadata(metadata))
            if info.front_matter_length != self.info.front_matter_length:
                raise WriteError(f"{self.path}: metadata take more or less room than planned")
            info = self._write_front(info)
            if sign is not None:
                info = self._write_front(sign(info))
            os.fsync(self._file)
            self._file = -1  # once finished, it is never written to again
        except OSError as error:
            raise WriteError(f"{self.path}: {error.strerror}") from error
        return info

    def _write_front(self, info: FileInfo) -> FileInfo:
        info, data = as_read(info)
        self.root = data[ROOT_OFFSET:HEADER_SIZE]
        _write_all(self._file, data, 0)
        return info

    def publish(self) -> None:
        """Give the finished file its name.

        Raises:
            WriteError: the name was taken meanwhile, or the disk failed.
        """
        try:
            self._partial.publish()
        except OSError as error:
            raise WriteError(f"{self.path}: {error.strerror}") from error

    @property
    def _from(self) -> Origin:
        if self._origin is None:
            raise WriteError(f"{self.path}: there is no source to take planes from")
        return self._origin

    def _make_room(self) -> int:
        """Share first, as what is shared takes no room; then reserve the rest."""
        shared = [] if self._origin is None else self._origin.clone()
        return make_room(self._file, self.info.file_size, shared)

    def _write_plane(self, offset: int, plane: np.ndarray, put: Put | None = None) -> None:
        if self._taken:
            raise WriteError(f"{self.path}: all planes were taken from the source, with their digests")
        try:
            if plane.size:
                self._write(offset, np.ascontiguousarray(plane).reshape(-1).view(np.uint8), put)
        except OSError as error:
            raise WriteError(f"{self.path}: {error.strerror}") from error

    def _region(self, offset: int) -> Region:
        documents, data = self._regions
        return data if offset >= documents.end else documents

    def _write(self, offset: int, data: np.ndarray, put: Put | None = None) -> None:
        """Write u8 ``data`` in pieces that end where leaves end, and compute the digests of the leaves in them.

        ``put`` brings a piece into the file in another way than by writing it.
        """
        if self._file < 0:
            raise WriteError(f"{self.path}: is already written")
        self._wait_for_room()
        region = self._region(offset)
        position = 0
        while position < len(data):
            end = min(position + _WRITE_BYTES, len(data))
            if end < len(data):
                end -= (offset + end - region.start) % layout.LEAF
            self._write_piece(offset + position, data[position:end], region, put)
            position = end

    def _write_piece(self, offset: int, data: np.ndarray, region: Region, put: Put | None) -> None:
        for i in region.covering(offset, len(data)):
            start, end = region.leaf(i)
            if start >= offset and end <= offset + len(data):
                self._leaves[region.first + i] = checksums.leaf(data[start - offset : end - offset].data)
                self._hashed[region.first + i] = 1
        if put is None:
            _write_all(self._file, data.data, offset)
        self._count(put(offset, len(data)) if put is not None else len(data))

    def _count(self, written: int) -> None:
        """Count bytes that were written, and start syncing when there are many."""
        self._unsynced += written  # a race between threads may lose a count: it only decides when to sync
        if self._unsynced > _SYNC_EVERY and (self._syncing is None or self._syncing.done()):
            self._unsynced = 0
            self._syncing = self._disk.submit(_sync, self._file)

    def _wait_for_room(self) -> None:
        if (room := self._room) is not None:
            try:
                page = room.result()
            except OSError as error:
                raise self._no_room(error) from error
            self._chunk_size = min(max(page // layout.LEAF, 1), _MOST_LEAVES) * layout.LEAF
            self._room = None

    def _no_room(self, error: OSError) -> WriteError:
        return WriteError(f"{self.path}: cannot write {self.info.file_size} bytes: {error.strerror}")

    def _hash_shared(self) -> None:
        """Compute the digests of leaves that no single write covered, by reading them back."""

        def digests(leaves: Sequence[tuple[int, int, int]]) -> list[None]:
            buffer = memoryview(bytearray(layout.LEAF))  # reused: fresh memory costs more than reading into it
            for i, start, end in leaves:
                piece = buffer[: end - start]
                os.preadv(self._file, [piece], start)
                self._leaves[i] = checksums.leaf(piece)
            return []

        leaves = [(region.first + i, *region.leaf(i)) for region in self._regions for i in range(region.leaves)]
        checksums.in_threads(digests, [leaf for leaf in leaves if not self._hashed[leaf[0]]])


@dataclass(slots=True)
class _ByRows:
    """Collect a tensor that is being written by rows: all its planes except the largest."""

    info: TensorInfo
    bulk: Plane  # the largest plane
    row_bytes: int  # bytes of a row in it
    columns: int  # of the tensor
    small: dict[str, np.ndarray]  # the other planes, [rows, elements of a row]
    missing: set[range]  # chunks of the largest plane that are not written yet
    counts: dict[int, tuple[PlaneSpec, ...]] = field(default_factory=dict)

    def specs(self, count: int) -> tuple[PlaneSpec, ...]:
        """Return the planes of ``count`` rows."""
        if count not in self.counts:
            self.counts[count] = self.info.scheme.planes((count, self.columns), self.info.dtype)
        return self.counts[count]

    @classmethod
    def of(cls, info: TensorInfo, chunks: list[range]) -> _ByRows:
        rows, columns = matrix(info.shape)
        bulk = _largest(info)
        others = [plane for plane in info.planes if plane is not bulk]
        small = {p.role: np.zeros((rows, p.length // rows), np.uint8).view(DTYPES[p.dtype].numpy) for p in others}
        return cls(info, bulk, bulk.length // rows, columns, small, set(chunks))


def _check(
    path: str,
    info: TensorInfo,
    planes: Mapping[str, np.ndarray],
    shape: tuple[int, ...],
    specs: Sequence[PlaneSpec],
) -> None:
    """Raise WriteError or SchemeError unless these are planes of the tensor, or of rows of it with this shape."""
    if list(planes) != [spec.role for spec in specs] or info.alias_of:
        raise WriteError(f"{path}: tensor {info.name!r}: planes {list(planes)} do not fit {info.scheme.name}")
    for spec in specs:
        array = planes[spec.role]
        stored = storage_of(spec.dtype), stored_shape(spec.dtype, spec.shape)
        if (array.dtype, array.shape) != stored:
            raise WriteError(
                f"{path}: tensor {info.name!r} plane {spec.role!r}: {array.dtype}{list(array.shape)}, "
                f"planned {spec.dtype}{list(spec.shape)}"
                + (f", packed as {stored[0]}{list(stored[1])}" if stored[1] != spec.shape else "")
            )
    tails = () if isinstance(info.scheme, Opaque) else bad_tails(specs, planes)
    for role, reason in (*info.scheme.bad_values(planes), *tails, *info.scheme.bad_codes(planes, shape)):
        raise SchemeError(f"tensor {info.name!r} plane {role!r}: {reason}")


def _largest(info: TensorInfo) -> Plane:
    return max(info.planes, key=lambda plane: plane.length)


def _pieces(plane: Plane) -> Iterator[range]:
    """Cut the bytes of a plane into pieces that are written at a time."""
    end = plane.offset + plane.length
    return (range(start, min(start + _WRITE_BYTES, end)) for start in range(plane.offset, end, _WRITE_BYTES))


def _sync(file: int) -> None:
    """Sync a file's data to the disk; macOS has no ``fdatasync``."""
    getattr(os, "fdatasync", os.fsync)(file)


def _write_all(file: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def write(
    path: Path,
    tensors: Mapping[Tensor, Mapping[str, np.ndarray]],
    metadata: Mapping[str, Value] | None = None,
    texts: Mapping[str, bytes] | None = None,
    *,
    alignment: int = layout.DEFAULT_ALIGNMENT,
    overwrite: bool = False,
) -> FileInfo:
    """Write a whole file from planes in memory (aliases map to an empty dict) and documents by name."""
    texts = texts or {}
    info = plan(tensors, metadata or {}, {name: len(data) for name, data in texts.items()}, alignment)
    with Writer(path, info, overwrite=overwrite) as writer:
        for name in sorted(texts):
            writer.write_document(name, texts[name])
        for tensor, planes in tensors.items():
            if tensor.alias_of is None:
                writer.write(tensor.name, planes)
        return writer.commit()
