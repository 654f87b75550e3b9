"""Reads one file of ``torch.save``, a flat state dict, and returns its tensors as views of the file's bytes.

torch's restricted unpickler reads the structure (``weights_only``: no code runs), with storages that have a size and an
offset in the file but no memory; the values are then mapped by numpy. See "Getting record offsets" in the documentation
of ``torch.load``. Files from before torch 1.6 are not ZIP archives and state no offsets: those are read whole.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import interop
from ...dtypes import DTYPES
from ...errors import MissingPackageError, SourceError, told_by
from ..files import pages
from ..source import SourceTensor

if TYPE_CHECKING:
    import torch

ZIP_MAGIC = b"PK\x03\x04"
# At the front of a file from before torch 1.6: magic number, version, system, state dict, keys of storages.
_PICKLES = 5
_MAX_STRUCTURE = 256 << 20  # bytes of pickles; a thousand tensors take 150 kB
_LINE = 1 << 10  # bytes searched at a time
# Module and name of what a pickle of tensors refers to, of what torch allows: in lower case it allows dtypes alone.
# Kinds of tensors that are not read are refused by their names later.
_CALLED = re.compile(
    r"collections OrderedDict|torch\.nn\.parameter Parameter|torch (Size|device|[A-Za-z0-9]*Storage|[a-z][a-z0-9_]*)|"
    r"torch\.storage (Untyped|Typed)Storage|torch\.serialization _get_layout|"
    r"torch\._utils _rebuild_(tensor(_v[23])?|parameter(_with_state)?|sparse_tensor|qtensor|meta_tensor_no_storage)"
)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a ZIP member: magic, lengths of its name and of its extra field


class PickledFile:
    """Read the tensors of one file.

    Args:
        path: of the file, also for messages.
        data: its bytes, u8, if it is only a part of the file at ``path``, or has been unpacked.
        start: the offset of its bytes in the file at ``path``; ``None`` if they are unpacked.
        label: its name in messages, ``path`` by default.

    Raises:
        SourceError: it is damaged, or holds anything but a state dict of plain tensors.
    """

    def __init__(
        self, path: str, data: np.ndarray | None = None, start: int | None = 0, label: str | None = None
    ) -> None:
        if not interop.has_torch():
            raise MissingPackageError("torch files need torch: pip install 'aibit-format[hf]'")
        self.path, self.label = path, label or path
        self.size = len(pages(path))
        if data is None:
            data = pages(path)
        self._data, self._start = data, start
        zipped = data[:4].tobytes() == ZIP_MAGIC
        self._records: dict[int, int] = {}
        if zipped:
            self._find_records()
        else:
            self._check_structure(self._data, _PICKLES)
            self._check_claims()
        self.tensors: dict[str, SourceTensor] = {}
        self._found: dict[str, torch.Tensor] = {}
        for name, value in self._load(zipped).items():
            self._add(name, value)

    def read(self, name: str) -> np.ndarray:
        """Return the tensor's values: a view of the file, or a copy if numpy cannot view them.

        That is so if their strides or alignment are unusual, or if torch negates them when they are read.
        """
        tensor, found = self.tensors[name], self._found[name]
        if not self._records:
            return interop.to_numpy(found)[0]
        dtype = DTYPES[tensor.dtype].numpy
        start = self._offset(found, dtype.itemsize)
        strides = [stride * dtype.itemsize for stride in found.stride()]
        if not found.numel():
            return np.zeros(tensor.shape, dtype)
        values = np.require(np.ndarray(tensor.shape, dtype, self._data, start, strides), requirements=["C", "A"])
        return interop.to_numpy(interop.to_torch(values, tensor.dtype).neg())[0] if found.is_neg() else values

    def _offset(self, found: torch.Tensor, itemsize: int) -> int:
        """Return the offset of a tensor's first element in the data."""
        return _place(found) + int(found.storage_offset()) * itemsize

    def _check_structure(self, data: np.ndarray, pickles: int) -> None:
        """Check the pickles at the front of ``data`` before torch reads them: their length, and what they call.

        torch allows more than a state dict needs, such as ``bytearray(2 << 30)``.
        """
        stream: Any = Bytes(data[:_MAX_STRUCTURE])
        try:
            for _ in range(pickles):
                for code, argument, _ in pickletools.genops(stream):  # reads, and makes nothing
                    if code.name == "GLOBAL" and not _CALLED.fullmatch(str(argument)):
                        raise SourceError(
                            f"{self.label}: refused by torch.load(weights_only=True): unsupported global {argument!r}, "
                            "which no state dict of plain tensors needs"
                        )
        except SourceError:
            raise
        except Exception as error:  # ValueError for most, struct's and Unicode's errors for others
            raise SourceError(
                f"{self.label}: refused by torch.load(weights_only=True): not a torch file, or truncated: no pickles "
                f"in the first {min(len(data), _MAX_STRUCTURE)} bytes ({type(error).__name__}: {str(error)[:200]})"
            ) from error

    def _check_claims(self) -> None:
        """Check that the storages of a file from before torch 1.6 take no more bytes than it has."""
        import torch

        found = [value for value in self._load(True).values() if isinstance(value, torch.Tensor)]
        parts = [value.untyped_storage() for value in found if value.layout == torch.strided]
        claimed = sum({part._cdata: part.nbytes() for part in parts}.values())
        if claimed > len(self._data):
            raise SourceError(f"{self.label}: storages of {claimed} bytes in a file of {len(self._data)}: truncated")

    def _find_records(self) -> None:
        """Map the offset of each member of torch's archive to its size in bytes, and check the pickle."""
        try:
            with zipfile.ZipFile(Bytes(self._data)) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise SourceError(f"{self.label}: not a torch file, or truncated: {told_by(error)}") from error
        for member in members:
            start = self._start_of(member)
            self._records[start] = member.file_size
            if member.filename.endswith("/data.pkl"):
                self._check_structure(self._data[start : start + member.file_size], 1)
            order = self._data[start : start + member.file_size][:8].tobytes()
            if member.filename.endswith("/byteorder") and order != b"little":
                raise SourceError(f"{self.label}: byte order {order!r}, expected b'little'")

    def _start_of(self, member: zipfile.ZipInfo) -> int:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise SourceError(
                f"{self.label}: member {member.filename!r} is compressed, {member.compress_size} bytes for "
                f"{member.file_size}; torch.save stores them"
            )
        return member_start(self._data, member, self.label)

    def _load(self, mapped: bool) -> Mapping[str, Any]:
        try:
            import torch
            from torch._subclasses.fake_tensor import FakeTensorMode
        except ImportError as error:
            raise MissingPackageError("torch files need torch: pip install 'aibit-format[hf]'") from error
        stream: Any = Bytes(self._data)
        try:
            if not mapped:
                found = torch.load(stream, map_location="cpu", weights_only=True)
            else:
                with FakeTensorMode():
                    found = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds: unpickling runs all of torch's own checks
            raise SourceError(f"{self.label}: refused by torch.load(weights_only=True): {_reason(error)}") from error
        if not isinstance(found, dict):
            raise SourceError(f"{self.label}: holds a {type(found).__name__}, not a state dict")
        return found

    def _add(self, name: Any, value: Any) -> None:
        import torch

        where = f"{self.label}: tensor {name!r}"
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise SourceError(f"{where}: a {type(value).__name__}, not a tensor; only flat state dicts are read")
        dtype = plain_dtype(value, where)
        if value.numel():
            size, storage = DTYPES[dtype].numpy.itemsize, value.untyped_storage()
            end = (value.storage_offset() + _extent(value)) * size
            if value.numel() * size > storage.nbytes() or end > storage.nbytes():
                raise SourceError(f"{where}: {dtype}{list(value.shape)} in {storage.nbytes()} bytes of storage")
            # torch trusts the pickle for the size, and computes offsets by the rules of its own writer.
            if self._records and (member := self._records.get(_place(value))) != storage.nbytes():
                raise SourceError(
                    f"{where}: {storage.nbytes()} bytes of storage at {_place(value)}, where the archive has "
                    f"{'no member' if member is None else f'a member of {member}'}: not as torch.save wrote it"
                )
        self._found[name] = value
        offset = None
        as_it_is = value.is_contiguous() and not value.is_neg()
        if self._records and self._start is not None and value.numel() and as_it_is:
            offset = self._start + self._offset(value, DTYPES[dtype].numpy.itemsize)
        self.tensors[name] = SourceTensor(name, tuple(value.shape), dtype, os.path.basename(self.path), offset=offset)


class Bytes(io.RawIOBase):
    """Present a u8 array as a readable file, without copying it."""

    def __init__(self, data: np.ndarray) -> None:
        self._data, self._position = memoryview(data.data), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most what is there; the base class would first allocate ``size`` bytes, which a file may claim."""
        end = len(self._data) if size is None or size < 0 else self._position + size
        piece = self._data[self._position : end].tobytes()
        self._position += len(piece)
        return piece

    def readline(self, size: int | None = -1, /) -> bytes:
        left = self._data[self._position :]
        for start in range(0, len(left), _LINE):
            piece = left[start : start + _LINE].tobytes()
            if (at := piece.find(b"\n")) >= 0:
                return self.read(start + at + 1)
        return self.read()

    def readinto(self, buffer: Any) -> int:
        piece = self._data[self._position : self._position + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self._position = base + offset
        return self._position


def member_start(data: np.ndarray, member: zipfile.ZipInfo, label: str) -> int:
    """Return the offset in ``data`` of a ZIP member's bytes: after its local header, name and extra field.

    Raises:
        SourceError: there is no header, or the member does not end inside ``data``.
    """
    header = data[member.header_offset : member.header_offset + _LOCAL_HEADER.size].tobytes()
    if len(header) == _LOCAL_HEADER.size:
        magic, name, extra = _LOCAL_HEADER.unpack(header)
        start = member.header_offset + _LOCAL_HEADER.size + name + extra
        if magic == ZIP_MAGIC and start + member.compress_size <= len(data):
            return start
    raise SourceError(
        f"{label}: member {member.filename!r} of {member.compress_size} bytes at {member.header_offset} "
        f"is not inside the {len(data)} bytes of the archive"
    )


def plain_dtype(tensor: torch.Tensor, where: str) -> str:
    """Return this package's name for the dtype of a dense, unquantized tensor in memory.

    Raises:
        SourceError: it is any other kind of tensor.
    """
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise SourceError(f"{where}: layout {tensor.layout}, quantized {tensor.is_quantized}; only dense ones are read")
    if tensor.device.type == "meta":
        raise SourceError(f"{where}: is on the meta device and has no values")
    try:
        return interop.dtype_name(tensor.dtype)
    except KeyError as error:
        raise SourceError(f"{where}: dtype {tensor.dtype}; known: {', '.join(DTYPES)}") from error


def _place(tensor: torch.Tensor) -> int:
    return getattr(tensor.untyped_storage(), "_checkpoint_offset", -1)


def _extent(tensor: torch.Tensor) -> int:
    """Count the elements of its storage that a tensor spans, from its first to its last."""
    return 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _reason(error: Exception) -> str:
    """Return the line of torch's long message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "nsupported" in line or "blocked" in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {told[:300]}"
