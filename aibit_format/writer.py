"""Writing: plan, check, stream, sync, rename.

Sizes follow from shapes, so the whole front matter but the digests is known before the first weight is read. Planes
go straight to their offsets under a temporary name; digests are taken from the bytes while they are still at
hand; the file gets its own name when it is whole and on disk, and not before.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np

from . import digest, documents, frontmatter, layout, validate
from .dtypes import DTYPES
from .errors import FormatError, Problem, SchemeError, WriteError
from .layout import dtype_of
from .manifest import FileInfo
from .metadata import Value
from .metadata import encode as encode_metadata
from .placement import Placement, Region
from .schemes import PlaneSpec, Scheme
from .storage import Path

_PIECE = 16 << 20  # bytes of one write: large, so that the page cache fills with large folios
_IN_FLIGHT = 8  # pieces that may wait for the disk


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to be written: its planes follow from these. An alias has ``alias_of`` and no planes of its own."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scheme: Scheme
    alias_of: str | None = None
    transposed: bool = False


def plan(
    tensors: Iterable[Tensor],
    metadata: Mapping[str, Value],
    document_sizes: Mapping[str, int],
    alignment: int = layout.DEFAULT_ALIGNMENT,
) -> FileInfo:
    """The file that these tensors and documents (name: length) make, complete but for its digests.

    Raises:
        FormatError: the plan breaks a rule that a reader would refuse the file for.
        SchemeError: a scheme cannot hold its tensor.
    """
    if alignment not in layout.ALIGNMENTS:
        raise FormatError(Problem("AIB-E107", "alignment", expected="one of 64, 4096, 2097152", found=alignment))
    tensors = list(tensors)
    for tensor in tensors:
        _check_shape(tensor)
    index = {tensor.name: i for i, tensor in enumerate(tensors)}
    schemes = sorted({tensor.scheme for tensor in tensors}, key=_scheme_key)
    numbers = {scheme: i for i, scheme in enumerate(schemes)}
    names = _Pool()
    scheme_table = np.zeros(len(schemes), dtype_of(layout.SCHEME))
    for row, scheme in zip(scheme_table, schemes, strict=True):
        row["name_offset"], row["name_length"] = names.add(scheme.name)
        row["version"] = scheme.version
        row["parameters"][: len(scheme.parameters)] = scheme.parameters
    document_table = np.zeros(len(document_sizes), dtype_of(layout.DOCUMENT))
    for row, name in zip(document_table, sorted(document_sizes), strict=True):
        row["name_offset"], row["name_length"] = names.add(name)
        row["length"] = document_sizes[name]
    tensor_table = np.zeros(len(tensors), dtype_of(layout.TENSOR))
    planes: list[tuple[int, int, int, int]] = []
    for i, (row, tensor) in enumerate(zip(tensor_table, tensors, strict=True)):
        row["name_offset"], row["name_length"] = names.add(tensor.name)
        row["scheme"], row["dtype"] = numbers[tensor.scheme], DTYPES[tensor.dtype].code
        row["rank"] = len(tensor.shape)
        row["shape"][: len(tensor.shape)] = tensor.shape
        row["flags"] = layout.TENSOR_TRANSPOSED * tensor.transposed
        if tensor.alias_of is not None:
            row["flags"] |= layout.TENSOR_ALIAS
            row["target"] = index.get(tensor.alias_of, i)
            continue
        specs = _specs(tensor)
        row["first_plane"], row["plane_count"] = len(planes), len(specs)
        planes += [(i, layout.role_code(s.role), DTYPES[s.dtype].code, s.nbytes) for s in specs]
    plane_table = np.zeros(len(planes), dtype_of(layout.PLANE))
    for field, column in zip(("tensor", "role", "dtype", "length"), zip(*planes, strict=True), strict=False):
        plane_table[field] = column
    info = FileInfo(
        metadata_bytes=encode_metadata(metadata), scheme_table=scheme_table, document_table=document_table,
        tensor_table=tensor_table, plane_table=plane_table, strings=names.bytes(),
        leaves=np.zeros(0, np.uint64), file_size=0, alignment=alignment,
    )  # fmt: skip
    return _placed(info)


def _placed(info: FileInfo) -> FileInfo:
    """``info`` with offsets, file size and an empty leaf table of the right length, found valid."""
    # The leaf table lengthens the front matter, which moves the regions but does not change their lengths.
    total = sum(info.plane_table["length"].tolist())
    if total // layout.LEAF * 8 > layout.MAX_FRONT_MATTER:
        most = layout.MAX_FRONT_MATTER // 8 * layout.LEAF
        raise FormatError(Problem("AIB-E109", "leaf table of the data", expected=f"at most {most} bytes", found=total))
    info = replace(info, leaves=np.zeros(validate.locate(info).leaves, np.uint64))
    placed = validate.locate(info)
    info.document_table["offset"], info.plane_table["offset"] = placed.document_offsets, placed.plane_offsets
    info = replace(info, file_size=placed.data_end)
    _as_read(info)
    return info


def _as_read(info: FileInfo) -> bytes:
    """Header and front matter of ``info``, after a reader has read them: what it refuses is not written.

    Raises:
        FormatError: with every problem it found.
    """
    front_matter = info.front_matter()
    head = info.header(front_matter)
    found = frontmatter.read_front_matter(head, frontmatter.read_header(head, info.file_size), front_matter)
    if problems := validate.check(found, info.file_size):
        raise FormatError(problems)
    return head + front_matter


def _scheme_key(scheme: Scheme) -> tuple[str, int, tuple[int, ...]]:
    return scheme.name, scheme.version, scheme.parameters


def _check_shape(tensor: Tensor) -> None:
    """What the record's fields cannot hold cannot be left to the validator."""
    if len(tensor.shape) > layout.MAX_RANK:
        limit = f"at most {layout.MAX_RANK}"
        raise FormatError(Problem("AIB-E402", "rank", tensor.name, expected=limit, found=len(tensor.shape)))
    if not all(0 <= size <= layout.MAX_SIZE for size in tensor.shape):
        raise FormatError(Problem("AIB-E403", "shape is larger than any file", tensor.name, found=tensor.shape))
    if tensor.dtype not in DTYPES:
        raise FormatError(Problem("AIB-E404", "unknown dtype", tensor.name, found=tensor.dtype))


def _specs(tensor: Tensor) -> tuple[PlaneSpec, ...]:
    try:
        specs = tensor.scheme.planes(tensor.shape, tensor.dtype)
    except SchemeError as error:
        raise SchemeError(f"tensor {tensor.name!r}: {error}") from error
    if math.prod(size for size in tensor.shape if size) > layout.MAX_ELEMENTS:
        raise FormatError(Problem("AIB-E403", "shape is larger than any file", tensor.name, found=tensor.shape))
    return specs


class _Pool:
    """The string pool as it grows."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, name: str) -> tuple[int, int]:
        data = name.encode("utf-8", "surrogatepass")  # the validator says what is wrong with it
        self._parts.append(data)
        self._size += len(data)
        if len(data) > layout.MAX_NAME:  # the record's field is wider than the rule; never truncate
            raise WriteError(f"name of {len(data)} bytes, at most {layout.MAX_NAME}: {name[:60]!r}...")
        return self._size - len(data), len(data)

    def bytes(self) -> bytes:
        return b"".join(self._parts)


class Writer:
    """Writes the file that ``info`` plans. Use it as a context: leaving it without ``commit`` leaves nothing.

    Args:
        path: the final name.
        info: from ``plan``.
        overwrite: replace an existing file; without it an existing one is an error.
        jobs: threads that hash and write.
    """

    def __init__(self, path: Path, info: FileInfo, *, overwrite: bool = False, jobs: int = 2) -> None:
        self.path, self.info, self.overwrite = os.fspath(path), info, overwrite
        if not overwrite and os.path.lexists(self.path):
            raise WriteError(f"{self.path}: exists; say overwrite=True (--force) to replace it")
        self._placed: Placement = validate.locate(info)
        self._partial = os.path.join(os.path.dirname(self.path), f".aibit-{secrets.token_hex(8)}.partial")
        self._leaves = np.zeros(len(info.leaves), np.uint64)
        self._hashed = np.zeros(len(info.leaves), bool)
        stored = (info.tensor_table["flags"] & layout.TENSOR_ALIAS) == 0
        self._missing = {info.names[i] for i in np.flatnonzero(stored)}
        self._missing_documents = set(info.document_names)
        self._pool = ThreadPoolExecutor(max(jobs, 1))
        self._slots = threading.Semaphore(_IN_FLIGHT)
        self._pending: list[Future[None]] = []
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
            self._file = os.open(self._partial, flags, 0o666)
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(self._file, 0, info.file_size)  # a full disk is found out now
                else:
                    os.truncate(self._file, info.file_size)
            except OSError:
                self._discard()
                raise
        except OSError as error:
            self._pool.shutdown()
            raise WriteError(f"{self.path}: cannot write {info.file_size} bytes: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._pool.shutdown(cancel_futures=True)
        self._discard()

    def write_document(self, name: str, data: bytes) -> None:
        """Write one document; its length must be the planned one, and its contents what a reader accepts."""
        info = self.info.documents[name]
        if len(data) != info.length:
            raise WriteError(f"{self.path}: document {name!r}: {len(data)} bytes, planned {info.length}")
        documents.check(name, data)
        self._missing_documents.discard(name)
        self._write(info.offset, np.frombuffer(data, np.uint8))

    def write(self, name: str, planes: Mapping[str, np.ndarray]) -> None:
        """Write one tensor's planes; roles, dtypes and shapes must be the planned ones.

        The arrays must not change until ``commit``: they are written by threads.
        """
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
        for role, reason in info.scheme.bad_values(planes):
            raise SchemeError(f"tensor {name!r} plane {role!r}: {reason}")
        self._missing.discard(name)
        try:
            for plane in info.planes:
                if plane.length:
                    self._write(plane.offset, np.ascontiguousarray(planes[plane.role]).reshape(-1).view(np.uint8))
        except OSError as error:
            raise WriteError(f"{self.path}: {error.strerror}") from error

    def commit(self, metadata: Mapping[str, Value] | None = None) -> FileInfo:
        """Finish the file and give it its name. ``metadata`` may replace the planned values, not their sizes.

        Raises:
            WriteError: something planned was not written, or the disk failed.
        """
        if self._missing or self._missing_documents:
            lacking = sorted(self._missing | self._missing_documents)
            raise WriteError(f"{self.path}: not written: {', '.join(lacking[:5])} ({len(lacking)} in all)")
        try:
            for future in self._pending:
                future.result()
            self._hash_shared()
            info = replace(self.info, leaves=self._leaves)
            if metadata is not None:
                info = replace(info, metadata_bytes=encode_metadata(metadata))
            if info.front_matter_length != self.info.front_matter_length:
                raise WriteError(f"{self.path}: metadata grew from what was planned")
            _write_all(self._file, _as_read(info), 0)
            os.fsync(self._file)
            self._rename()
            self._close()  # what is published is not written to again
        except OSError as error:
            raise WriteError(f"{self.path}: {error.strerror}") from error
        return info

    def _write(self, offset: int, data: np.ndarray) -> None:
        """Queue u8 ``data`` for ``offset``, in pieces that end where leaves end."""
        if self._file < 0:
            raise WriteError(f"{self.path}: is already written")
        region = self._placed.region(offset)
        if len(data) < layout.LEAF:  # not worth a thread
            self._write_piece(offset, data, region)
            return
        position = 0
        while position < len(data):
            end = min(position + _PIECE, len(data))
            if end < len(data):
                end -= (offset + end - region.start) % layout.LEAF
            self._slots.acquire()
            piece = self._pool.submit(self._write_piece, offset + position, data[position:end], region)
            piece.add_done_callback(lambda _: self._slots.release())
            self._pending.append(piece)
            position = end

    def _write_piece(self, offset: int, data: np.ndarray, region: Region) -> None:
        """Write these bytes, and take the digests of the leaves that lie wholly in them."""
        _write_all(self._file, data.data, offset)
        for i in region.covering(offset, len(data)):
            start, end = region.leaf(i)
            if start >= offset and end <= offset + len(data):
                self._leaves[region.first + i] = digest.leaf(data[start - offset : end - offset].data)
                self._hashed[region.first + i] = True

    def _hash_shared(self) -> None:
        """Digests of the leaves that no single write covers, from what was written."""
        for region in self._placed.regions:
            for i in range(region.leaves):
                if not self._hashed[region.first + i]:
                    start, end = region.leaf(i)
                    self._leaves[region.first + i] = digest.leaf(os.pread(self._file, end - start, start))

    def _rename(self) -> None:
        if self.overwrite:
            os.replace(self._partial, self.path)
        else:
            # A link fails if the name has been taken meanwhile; a rename would replace it.
            try:
                os.link(self._partial, self.path)
                os.unlink(self._partial)
            except FileExistsError:
                raise WriteError(f"{self.path}: appeared while it was being written") from None
            except PermissionError:  # a file system without links
                if os.path.lexists(self.path):
                    raise WriteError(f"{self.path}: appeared while it was being written") from None
                os.rename(self._partial, self.path)
        folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _discard(self) -> None:
        """Close, and remove the temporary file if it still has its temporary name."""
        self._close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._partial)


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
