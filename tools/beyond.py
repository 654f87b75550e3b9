"""Files at the limits of the format and beyond them, for `bad_files.py` and the tests."""

from __future__ import annotations

from dataclasses import dataclass

import craft
import numpy as np
from breaking import EMPTY, INT, NOTHING, STRING, TERABYTES, TINY, documents, metadata, with_section
from craft import entry, rebuilt

from aibit_format.container import layout
from aibit_format.dtypes import DTYPES
from aibit_format.schemes import make


@dataclass(frozen=True)
class Hollow:
    """A file with a run of ``length`` zero bytes at ``offset`` that ``data`` leaves out."""

    data: bytes
    offset: int
    length: int

    @property
    def size(self) -> int:
        """Size of the whole file."""
        return len(self.data) + self.length

    @property
    def whole(self) -> bytes:
        """All of the file."""
        return self.data[: self.offset] + bytes(self.length) + self.data[self.offset :]


def hollow(data: bytes, offset: int, length: int) -> Hollow:
    """The file without some of its zeros."""
    if any(data[offset : offset + length]):
        raise ValueError("not a run of zeros")
    return Hollow(data[:offset] + data[offset + length :], offset, length)


def sparse(head: bytes) -> Hollow:
    """A file of 4 TiB that begins so."""
    return Hollow(head, len(head), TERABYTES - len(head))


def many_documents(count: int = layout.MAX_DOCUMENTS + 1) -> bytes:
    """So many empty documents."""
    names = [b"%04x" % i for i in range(count)]
    rows = np.zeros(len(names), craft.dtype_of(layout.DOCUMENT))
    rows["name_offset"], rows["name_length"] = np.arange(len(names)) * 5, 4
    content = b"".join(name + b"\n" for name in names)
    return rebuilt(documents=(len(rows), rows.tobytes()), strings=(0, content))(EMPTY)


def many_schemes(count: int = layout.MAX_SCHEMES + 1) -> bytes:
    """int8-absmax with so many of the groups that it can have, each used by a tensor without elements."""
    groups = [0, *range(16, 65536 + 1, 16), NOTHING][:count]
    scheme, word = make("int8-absmax"), b"int8-absmax\n"
    schemes = np.zeros(len(groups), craft.dtype_of(layout.SCHEME))
    tensors = np.zeros(len(groups), craft.dtype_of(layout.TENSOR))
    places = np.arange(len(groups))
    schemes["name_offset"], schemes["name_length"], schemes["version"] = places * len(word), len(word) - 1, 1
    schemes["parameters"][:, 0] = groups
    names = [b"%04x\n" % i for i in places]
    tensors["name_offset"], tensors["name_length"] = len(word) * len(groups) + places * 5, 4
    tensors["scheme"], tensors["dtype"], tensors["rank"], tensors["plane_count"] = places, 12, 2, 2
    tensors["first_plane"], tensors["shape"][:, :2] = places * 2, (0, 1)
    planes = np.zeros(2 * len(groups), craft.dtype_of(layout.PLANE))
    specs = scheme.planes((0, 1), "f32")
    planes["tensor"] = np.repeat(places, 2)
    for i, spec in enumerate(specs):
        planes["role"][i::2], planes["dtype"][i::2] = layout.role_code(spec.role), DTYPES[spec.dtype].code
    tables = {"schemes": schemes, "tensors": tensors, "planes": planes}
    bodies = {name: (len(rows), rows.tobytes()) for name, rows in tables.items()}
    content = word * len(groups) + b"".join(names)
    return rebuilt(**bodies, strings=(0, content))(EMPTY)


def many_entries(count: int = layout.MAX_METADATA + 1) -> bytes:
    """So many metadata entries, each as short as it can be."""
    letters = "0123456789_abcdefghijklmnopqrstuvwxyz"
    keys = [f"{a}.{b}{c}{d}".encode() for a in "ab" for b in letters for c in letters for d in letters]
    return metadata(*[entry(key, INT, b"", 1, 0) for key in keys[:count]], of=EMPTY)


def many_strings(count: int = layout.MAX_STRINGS + 1) -> Hollow:
    """An array of so many empty strings."""
    data = metadata(entry(b"a.b", STRING, bytes(4 * count), 1, count))
    return hollow(data, 1024, 4 * count - 1024)


def many_sections(count: int) -> bytes:
    """So many sections, all but the first seven ancillary and empty."""
    return rebuilt(lambda entries: [*entries, *((kind, 0, 1, b"") for kind in range(100, 93 + count))])(TINY)


def long_front_matter(length: int = layout.MAX_FRONT_MATTER + 64) -> Hollow:
    """A front matter of this length, most of it a private section of zeros; no documents and no planes follow."""
    least = craft.front_end(with_section(0x8001, body=b"", of=EMPTY)) - craft.HEAD
    data = with_section(0x8001, body=bytes(length - least), of=EMPTY)
    return hollow(data, 1024, len(data) - 1024)


def long_document() -> Hollow:
    """A document of a byte more than 256 MiB, all zeros, its leaves right."""
    size, mebibyte = layout.MAX_DOCUMENT + 1, bytes(layout.LEAF)
    end = layout.align(size, 64)
    digests = craft.leaves_of(mebibyte) * (end // layout.LEAF) + craft.leaves_of(mebibyte[: end % layout.LEAF])
    data = bytearray(rebuilt(leaves=(len(digests) // 8, digests))(documents(x=b"")))
    craft.table(data, "document")["length"] = size
    craft.table(data, "header")["file_size"] = len(data) + end
    sealed = craft.reseal(data)
    return Hollow(sealed, len(sealed), end)


def total_wraps() -> bytes:
    """Lengths whose sum is 2^64: right on their own, small together if the sum is allowed to wrap."""
    data = bytearray(craft.good([(f"t{i:02}", "i8", "i8", (16,), None) for i in range(17)], {}, {}, alignment=64))
    lengths = [(1 << 60) - 1] * 16 + [16]
    craft.table(data, "tensor")["shape"][:, 0] = lengths
    craft.table(data, "plane")["length"] = lengths
    return craft.reseal(data)
