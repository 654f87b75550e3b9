"""Writing: stream, sync, name, after ``draft`` has planned and checked.

Planes go straight to their offsets in a file without a name; digests are taken from the bytes while they are still at
hand; the file gets its name when it is whole and on disk, and not before (``partial``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np

from . import digest, documents, layout, validate
from .draft import Tensor, as_read, plan
from .dtypes import DTYPES
from .errors import SchemeError, WriteError
from .manifest import FileInfo
from .metadata import Value
from .metadata import encode as encode_metadata
from .partial import PartialFile
from .placement import Placement, Region
from .signatures import Read
from .storage import Path

__all__ = ["Tensor", "Writer", "plan", "write"]

Sign = Callable[[FileInfo, Read], FileInfo]

_SYNC_EVERY = 128 << 20  # bytes after which the disk is set to work, so that it has little left to do at the end
_PIECE = 16 << 20  # bytes of one write: large, so that the page cache fills with large folios


class Writer:
    """Writes the file that ``info`` plans. Use it as a context: leaving it without ``commit`` leaves nothing.

    Args:
        path: the final name.
        info: from ``plan``.
        overwrite: replace an existing file; without it an existing one is an error.

    ``write`` may be called by several threads at once: each tensor has its own place.

    Room on the disk is made in a thread: in a file system in memory that takes as long as filling it, and the first to
    write waits for it.

    Raises:
        WriteError: there is such a file, or none can be made there.
    """

    def __init__(self, path: Path, info: FileInfo, *, overwrite: bool = False) -> None:
        self.path, self.info, self.overwrite = os.fspath(path), info, overwrite
        self._placed: Placement = validate.locate(info)
        self._leaves = np.zeros(len(info.leaves), np.uint64)
        self._hashed = np.zeros(len(info.leaves), bool)
        stored = (info.tensor_table["flags"] & layout.TENSOR_ALIAS) == 0
        self._missing = {info.names[i] for i in np.flatnonzero(stored)}
        self._missing_documents = set(info.document_names)
        self._unsynced = 0
        self._syncing: Future[None] | None = None
        self._disk = ThreadPoolExecutor(1)
        try:
            self._partial = PartialFile(self.path, overwrite)
            self._file = self._partial.file
        except OSError as error:
            raise self._no_room(error) from error
        self._allocation = self._disk.submit(_allocate, self._file, info.file_size)  # while the first tensor is encoded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._disk.shutdown(cancel_futures=True)
        self._file = -1
        self._partial.discard()

    @property
    def published(self) -> bool:
        """Whether the file has its name, also if the disk failed after that."""
        return self._partial.published

    def write_document(self, name: str, data: bytes) -> None:
        """Write one document; its length must be the planned one, and its contents what a reader accepts."""
        info = self.info.documents[name]
        if len(data) != info.length:
            raise WriteError(f"{self.path}: document {name!r}: {len(data)} bytes, planned {info.length}")
        documents.check(name, data)
        self._missing_documents.discard(name)
        self._write(info.offset, np.frombuffer(data, np.uint8))

    def write(self, name: str, planes: Mapping[str, np.ndarray]) -> None:
        """Write one tensor's planes; roles, dtypes and shapes must be the planned ones."""
        info = self.info.tensor(name)
        if list(planes) != [plane.role for plane in info.planes] or info.alias_of:
            raise WriteError(f"{self.path}: tensor {name!r}: planes {list(planes)} do not fit {info.scheme.name}")
        for plane in info.planes:
            array = planes[plane.role]
            if array.dtype != DTYPES[plane.dtype].numpy or array.shape != plane.shape:
                raise WriteError(
                    f"{self.path}: tensor {name!r} plane {plane.role!r}: {array.dtype}{list(array.shape)}, "
                    f"planned {plane.dtype}{list(plane.shape)}"
                )
        for role, reason in (*info.scheme.bad_values(planes), *info.scheme.bad_codes(planes, info.shape)):
            raise SchemeError(f"tensor {name!r} plane {role!r}: {reason}")
        self._missing.discard(name)
        try:
            for plane in info.planes:
                if plane.length:
                    self._write(plane.offset, np.ascontiguousarray(planes[plane.role]).reshape(-1).view(np.uint8))
        except OSError as error:
            raise WriteError(f"{self.path}: {error.strerror}") from error

    def commit(self, metadata: Mapping[str, Value] | None = None, sign: Sign | None = None) -> FileInfo:
        """Finish the file and give it its name: ``finish``, and then ``publish``."""
        info = self.finish(metadata, sign)
        self.publish()
        return info

    def finish(self, metadata: Mapping[str, Value] | None = None, sign: Sign | None = None) -> FileInfo:
        """Bring all of the file to the disk. ``metadata`` may replace the planned values, not their sizes.

        ``sign`` gets the file as it will be, and what reads its bytes, to put signatures in their place.

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
                raise WriteError(f"{self.path}: metadata grew from what was planned")
            _write_all(self._file, as_read(info), 0)
            if sign is not None:
                info = sign(info, lambda offset, length: os.pread(self._file, length, offset))
                _write_all(self._file, as_read(info), 0)
            os.fsync(self._file)
            self._file = -1  # what is finished is not written to again
        except OSError as error:
            raise WriteError(f"{self.path}: {error.strerror}") from error
        return info

    def publish(self) -> None:
        """Give the finished file its name.

        Raises:
            WriteError: the name has been taken meanwhile, or the disk failed.
        """
        try:
            self._partial.publish()
        except OSError as error:
            raise WriteError(f"{self.path}: {error.strerror}") from error

    def _write(self, offset: int, data: np.ndarray) -> None:
        """Write u8 ``data`` in pieces that end where leaves end, and take the digests of the leaves in them."""
        if self._file < 0:
            raise WriteError(f"{self.path}: is already written")
        self._wait_for_room()
        region = self._placed.region(offset)
        position = 0
        while position < len(data):
            end = min(position + _PIECE, len(data))
            if end < len(data):
                end -= (offset + end - region.start) % layout.LEAF
            self._write_piece(offset + position, data[position:end], region)
            position = end

    def _write_piece(self, offset: int, data: np.ndarray, region: Region) -> None:
        for i in region.covering(offset, len(data)):
            start, end = region.leaf(i)
            if start >= offset and end <= offset + len(data):
                self._leaves[region.first + i] = digest.leaf(data[start - offset : end - offset].data)
                self._hashed[region.first + i] = True
        _write_all(self._file, data.data, offset)
        self._unsynced += len(data)  # threads may lose a count to each other: it decides nothing but when to sync
        if self._unsynced > _SYNC_EVERY and (self._syncing is None or self._syncing.done()):
            self._unsynced = 0
            self._syncing = self._disk.submit(_sync, self._file)

    def _wait_for_room(self) -> None:
        try:
            self._allocation.result()
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> WriteError:
        return WriteError(f"{self.path}: cannot write {self.info.file_size} bytes: {error.strerror}")

    def _hash_shared(self) -> None:
        """Digests of the leaves that no single write covers, from what was written."""
        buffer = memoryview(bytearray(layout.LEAF))  # one for all: fresh memory would cost more than reading into it
        for region in self._placed.regions:
            for i in range(region.leaves):
                if not self._hashed[region.first + i]:
                    start, end = region.leaf(i)
                    piece = buffer[: end - start]
                    os.preadv(self._file, [piece], start)
                    self._leaves[region.first + i] = digest.leaf(piece)


def _allocate(file: int, size: int) -> None:
    """Make room for all of a file, so that a full disk is found out before anything is written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def _sync(file: int) -> None:
    """Bring a file's data to the disk; macOS has no ``fdatasync``."""
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
    """Write a whole file from planes that are at hand (aliases map to an empty dict) and documents by name."""
    texts = texts or {}
    info = plan(tensors, metadata or {}, {name: len(data) for name, data in texts.items()}, alignment)
    with Writer(path, info, overwrite=overwrite) as writer:
        for name in sorted(texts):
            writer.write_document(name, texts[name])
        for tensor, planes in tensors.items():
            if tensor.alias_of is None:
                writer.write(tensor.name, planes)
        return writer.commit()
