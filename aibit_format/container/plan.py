"""Plans a file: from tensors, metadata and document sizes to a ``FileInfo`` that lacks only its digests.

Sizes follow from shapes, so everything but the digests is known before the first weight is read; and anything a
reader would refuse is found here, before a byte is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..dtypes import DTYPES, code_of
from ..errors import FormatError, Problem, SchemeError, WriteError
from ..schemes import PlaneSpec, Scheme
from ..schemes.opaque import Opaque
from . import layout, parse, validate
from .layout import dtype_of
from .metadata import Value
from .metadata import encode as encode_metadata
from .tables import ExtraSection, FileInfo

# Bytes of slack for changes of metadata and names, beside those for strong leaves and signatures.
ROOM = 4096
# Bytes that the first signature takes: its section, and two more entries of the section table.
_SIGNATURES = layout.SIGNATURE_ROOM * layout.SIGNATURE_RECORD.sizeof() + layout.ALIGNMENT


@dataclass(frozen=True)
class Tensor:
    """Describe a tensor to be written; its planes follow from these. An alias has no planes of its own."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scheme: Scheme
    alias_of: str | None = None
    transposed: bool = False

    @cached_property
    def planes(self) -> tuple[PlaneSpec, ...]:
        """Return the planes it is stored in; an alias's are its target's.

        Raises:
            SchemeError: the scheme cannot hold it.
        """
        return self.scheme.planes(self.shape, self.dtype)

    @property
    def nbytes(self) -> int:
        """Return the bytes of its own planes; an alias has none."""
        return 0 if self.alias_of is not None else sum(plane.nbytes for plane in self.planes)


def plan(
    tensors: Iterable[Tensor],
    metadata: Mapping[str, Value],
    document_sizes: Mapping[str, int],
    alignment: int = layout.DEFAULT_ALIGNMENT,
    front_matter_length: int | None = None,
) -> FileInfo:
    """Plan a file of these tensors and documents (name -> length), complete except for its digests.

    The result is what a reader finds in the file, with its ``placement``: nothing is planned or placed again. For
    ``front_matter_length`` see ``placed``.

    Raises:
        FormatError: the plan breaks a rule, so that a reader would refuse the file.
        SchemeError: a scheme cannot hold its tensor.
    """
    if alignment not in layout.ALIGNMENTS:
        raise FormatError(Problem("AIB-E107", "alignment", expected="one of 64, 4096, 2097152", found=alignment))
    tensors = list(tensors)
    for tensor in tensors:
        _check_shape(tensor)
    index = {tensor.name: i for i, tensor in enumerate(tensors)}
    schemes = sorted({_stated(tensor.scheme) for tensor in tensors})
    numbers = {scheme: i for i, scheme in enumerate(schemes)}
    names = _Pool()
    scheme_table = np.zeros(len(schemes), dtype_of(layout.SCHEME))
    for row, (scheme, version, parameters) in zip(scheme_table, schemes, strict=True):
        row["name_offset"], row["name_length"] = names.add(scheme)
        row["version"] = version
        row["parameters"][: len(parameters)] = parameters
    document_table = np.zeros(len(document_sizes), dtype_of(layout.DOCUMENT))
    for row, name in zip(document_table, sorted(document_sizes), strict=True):
        row["name_offset"], row["name_length"] = names.add(name)
        row["length"] = document_sizes[name]
    tensor_table = np.zeros(len(tensors), dtype_of(layout.TENSOR))
    planes: list[tuple[int, int, int, int]] = []
    for i, (row, tensor) in enumerate(zip(tensor_table, tensors, strict=True)):
        row["name_offset"], row["name_length"] = names.add(tensor.name)
        row["scheme"], row["dtype"] = numbers[_stated(tensor.scheme)], code_of(tensor.dtype)
        own = tensor.scheme.tensor_parameters
        row["parameters"][: len(own)] = own
        row["rank"] = len(tensor.shape)
        row["shape"][: len(tensor.shape)] = tensor.shape
        row["flags"] = layout.TENSOR_TRANSPOSED * tensor.transposed
        if tensor.alias_of is not None:
            row["flags"] |= layout.TENSOR_ALIAS
            row["target"] = index.get(tensor.alias_of, i)
            continue
        specs = _specs(tensor)
        row["first_plane"], row["plane_count"] = len(planes), len(specs)
        planes += [(i, layout.role_code(s.role), code_of(s.dtype), s.nbytes) for s in specs]
    plane_table = np.zeros(len(planes), dtype_of(layout.PLANE))
    for field, column in zip(("tensor", "role", "dtype", "length"), zip(*planes, strict=True), strict=False):
        plane_table[field] = column
    info = FileInfo(
        metadata_bytes=encode_metadata(metadata), scheme_table=scheme_table, document_table=document_table,
        tensor_table=tensor_table, plane_table=plane_table, strings=names.bytes(),
        leaves=np.zeros(0, np.uint64), file_size=0, alignment=alignment,
    )  # fmt: skip
    return placed(info, front_matter_length)


def placed(info: FileInfo, front_matter_length: int | None = None) -> FileInfo:
    """Return ``info`` as a reader finds it: with offsets, file size and a leaf table of the right length, all zeros.

    Args:
        info: the tables; what they say of places is ignored.
        front_matter_length: as long as this the front matter is made by slack, so that nothing after it moves. Where it
            needs more, it gets room for changes to come; so it does for 0. With ``None`` it gets no slack.
    """
    # The leaf table lengthens the front matter, which moves the regions but does not change their lengths.
    total = sum(info.plane_table["length"].tolist())
    if total // layout.LEAF * 8 > layout.MAX_FRONT_MATTER:
        most = layout.MAX_FRONT_MATTER // 8 * layout.LEAF
        raise FormatError(Problem("AIB-E109", "leaf table of the data", expected=f"at most {most} bytes", found=total))
    info = replace(info, leaves=np.zeros(info.placement.leaves, np.uint64))
    info = _with_slack(info, front_matter_length)
    places = info.placement
    documents, planes = info.document_table.copy(), info.plane_table.copy()
    documents["offset"], planes["offset"] = places.document_offsets, places.plane_offsets
    info = replace(info, document_table=documents, plane_table=planes, file_size=places.data_end)
    return as_read(info)[0]


def _with_slack(info: FileInfo, front_matter_length: int | None) -> FileInfo:
    """Return ``info`` with the slack that makes its front matter so long; see ``placed``."""
    others = tuple(extra for extra in info.extra if extra.kind < layout.SLACK)
    later = tuple(extra for extra in info.extra if extra.kind > layout.SLACK)
    without = replace(info, extra=others + later)
    if front_matter_length in (None, without.front_matter_length):
        return without

    def slack(length: int) -> FileInfo:
        return replace(info, extra=(*others, ExtraSection(layout.SLACK, 0, 0, bytes(length)), *later))

    least = slack(0).front_matter_length
    length = front_matter_length - least
    if not 0 <= length <= layout.MAX_SLACK:
        kinds = {extra.kind for extra in others}
        strong = 0 if layout.STRONG_LEAVES in kinds else len(info.leaves) * layout.SHA256_SIZE
        signatures = 0 if layout.FRONT_SIGNATURES in kinds else _SIGNATURES
        most = min(layout.MAX_SLACK, layout.MAX_FRONT_MATTER - least)
        length = min(layout.align(strong, layout.ALIGNMENT) + signatures + ROOM, max(most, 0))
    return slack(length)


def as_read(info: FileInfo) -> tuple[FileInfo, bytes]:
    """Build the header and front matter of ``info``; return what a reader finds in them, and their bytes.

    Raises:
        FormatError: a reader refuses them, so they must not be written; it carries every problem found.
    """
    front_matter = info.front_matter()
    head = info.header(front_matter)
    found = parse.read_front_matter(head, parse.read_header(head, info.file_size), front_matter)
    if problems := validate.check(found, info.file_size):
        raise FormatError(problems)
    return found, head + front_matter


def _stated(scheme: Scheme) -> tuple[str, int, tuple[int, ...]]:
    """Return what the scheme table states of a scheme, by which its entries are sorted; a tensor's own is not there."""
    return scheme.name, scheme.version, scheme.parameters


def _check_shape(tensor: Tensor) -> None:
    """Refuse a shape or dtype that the record's fields cannot hold: the validator would never see it."""
    if len(tensor.shape) > layout.MAX_RANK:
        limit = f"at most {layout.MAX_RANK}"
        raise FormatError(Problem("AIB-E402", "rank", tensor.name, expected=limit, found=len(tensor.shape)))
    if not all(0 <= size <= layout.MAX_SIZE for size in tensor.shape):
        raise FormatError(Problem("AIB-E403", "shape is larger than any file", tensor.name, found=tensor.shape))
    if tensor.dtype not in DTYPES and not isinstance(tensor.scheme, Opaque):
        raise FormatError(Problem("AIB-E404", "unknown dtype", tensor.name, found=tensor.dtype))


def _specs(tensor: Tensor) -> tuple[PlaneSpec, ...]:
    try:
        specs = tensor.planes
    except SchemeError as error:
        raise SchemeError(f"tensor {tensor.name!r}: {error}") from error
    if math.prod(size for size in tensor.shape if size) > layout.MAX_ELEMENTS:
        raise FormatError(Problem("AIB-E403", "shape is larger than any file", tensor.name, found=tensor.shape))
    return specs


class _Pool:
    """Build the string pool, name by name."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, name: str) -> tuple[int, int]:
        data = name.encode("utf-8", "surrogatepass")  # the validator says what is wrong with the name
        if len(data) > layout.MAX_NAME:  # the record's field is wider than the rule; never truncate
            raise WriteError(f"name of {len(data)} bytes, at most {layout.MAX_NAME}: {name[:60]!r}...")
        offset = self._size
        self._parts.append(data + b"\n")
        self._size += len(data) + 1
        return offset, len(data)

    def bytes(self) -> bytes:
        return b"".join(self._parts)
