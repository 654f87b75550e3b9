"""Defines the bytes: every record of the format as a documented construct Struct, and the format's numbers.

The Structs are the definition. The numpy record dtypes that readers use (``dtype_of``) and the byte tables of
``spec/aibit-1.md`` (``fields_of``) are derived from them. Nothing else in the package states an offset.

    offset 0    header         128 bytes
    128         front matter   section table, then the sections, each 64-byte aligned
    ...         documents      each 64-byte aligned
    ...         data           planes: scales and small ones pooled, then bulk ones, page aligned

All integers are little-endian.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from struct import Struct
from typing import Any

import construct
import numpy as np

c: Any = construct  # its fields have no types that a type checker could follow

SIGNATURE = b"\x89aibit\r\n\x1a\n"
VERSION = (1, 1)

ALIGNMENT = 64  # of sections, documents and pooled planes: one cache line
ALIGNMENTS = (64, 4096, 2 << 20)  # allowed for bulk planes
DEFAULT_ALIGNMENT = 4096
LARGE_DATA = 64 << 20  # a data region of this many bytes or more...
LARGE_ALIGNMENT = 2 << 20  # ...starts on this boundary, so that the kernel can use huge pages
LEAF = 1 << 20  # bytes under one checksum

MAX_SIZE = (1 << 63) - 1
MAX_ELEMENTS = (1 << 60) - 1  # of a tensor, dimensions of zero ignored: at 8 bytes each they stay below MAX_SIZE
MAX_FRONT_MATTER = 64 << 20
MAX_DOCUMENT = 256 << 20
MAX_DOCUMENTS = 1 << 12
MAX_TENSORS = 1 << 20
MAX_SCHEMES = 1 << 12
MAX_METADATA = 1 << 16
MAX_STRINGS = 1 << 20  # strings and byte strings in all of the metadata
MAX_SECTIONS = 64
MAX_RANK = 8
MAX_NAME = 255
MAX_SHARDS = 99_999  # files of one model: the most that five digits can number
MAX_SLACK = 16 << 20

# Feature words: no bit has a meaning in version 1.0.
KNOWN_INCOMPATIBLE = 0

# Section kinds, in file order. Kinds from 0x8000 up are private and never critical for others.
SECTIONS = {1: "metadata", 2: "schemes", 3: "documents", 4: "tensors", 5: "planes", 6: "strings", 7: "leaves"}
SECTION_CRITICAL = 1
# Optional sections, never critical: a reader of 1.0 skips those that came with 1.1. Kind 9 stays without a meaning.
SIGNATURES = 8  # over the content of the whole file
STRONG_LEAVES = 10
FRONT_SIGNATURES = 11  # over header and front matter, which hold the strong leaves
SLACK = 12
SECTION_NAMES = {
    **SECTIONS,
    SIGNATURES: "signatures",
    STRONG_LEAVES: "strong_leaves",
    FRONT_SIGNATURES: "front_signatures",
    SLACK: "slack",
}

SIGNATURE_ROOM = 8  # records in the section, used or not, so that adding a signature changes nothing already signed
ED25519 = 1  # algorithm: Ed25519 over the content digest
ED25519_FRONT = 2  # algorithm: Ed25519 over the front digest
ALGORITHMS = {SIGNATURES: ED25519, FRONT_SIGNATURES: ED25519_FRONT}  # kind of section -> the algorithm in it
SHA256_PIECE = 1 << 20  # bytes under one SHA-256 of the content digest
SHA256_SIZE = 32  # bytes of a strong leaf
CONTENT_DOMAIN = b"aibit content".ljust(16, b"\0")  # hashed and signed bytes begin with their purpose, so that no
FRONT_DOMAIN = b"aibit front".ljust(16, b"\0")  # digest or signature of one kind can pass for another's
SIGNED_DOMAIN = b"aibit signature".ljust(16, b"\0")
DETACHED_MAGIC = b"\x89aibsig1\r\n\x1a\n"

TENSOR_ALIAS = 1
TENSOR_TRANSPOSED = 2
TENSOR_FLAGS = TENSOR_ALIAS | TENSOR_TRANSPOSED

# Plane roles. Numbers are never reused; 0x8000 and above are private.
ROLES = {
    "values": 1,
    "codes": 2,
    "row_absmax": 3,
    "absmax": 4,
    "nested_absmax": 5,
    "nested_offset": 6,
    "scale": 7,
    "zero_point": 8,
    "codebook": 9,
    "group_index": 10,
    "outlier_index": 11,
    "outlier_values": 12,
    "tiles": 13,
    "blocks": 14,
    "tile_absmax": 15,
    "global_scale": 16,
    "bias": 17,
    "column_order": 18,
    "input_scale": 19,
    "input_zero_point": 20,
}
ROLE_NAMES = {code: name for name, code in ROLES.items()}
# Roles of the weights themselves. Planes of other roles (scales, orders of columns) are pooled whatever their size, so
# that the codes of one tensor end where the next one's begin. So will be those of roles to come: who does not know
# a role has to find its place, too. Private roles count as weights.
WEIGHT_ROLES = ("values", "codes", "tiles", "blocks")
_PRIVATE = 0x8000
_WEIGHTS = np.array([ROLES[name] for name in WEIGHT_ROLES], np.uint16)


def role_code(name: str) -> int:
    """Return the number of a role; private roles are named ``private_8001`` and so on.

    Raises:
        KeyError: no role has this name.
    """
    if name in ROLES:
        return ROLES[name]
    if re.fullmatch("private_[89a-f][0-9a-f]{3}", name):
        return int(name.removeprefix("private_"), 16)
    number = name.removeprefix("unknown_")
    if name.startswith("unknown_") and number.isdecimal() and int(number) < _PRIVATE and int(number) not in ROLE_NAMES:
        return int(number)
    raise KeyError(name)


def pooled(roles: np.ndarray, lengths: np.ndarray, alignment: int) -> np.ndarray:
    """Tell which planes are pooled before the bulk planes, bool [planes], by u16 roles and u64 lengths in bytes."""
    return (lengths < alignment) | is_pooled_role(roles)


def is_pooled_role(roles: np.ndarray) -> np.ndarray:
    """Tell which planes have a role that is pooled whatever their size, bool [planes]."""
    return ~np.isin(roles, _WEIGHTS) & (roles < _PRIVATE)


def role_name(code: int) -> str:
    """Return the name of any role's number, also of a private or unknown one."""
    return ROLE_NAMES.get(code) or (f"private_{code:04x}" if code >= _PRIVATE else f"unknown_{code}")


HEADER = c.Struct(
    "signature" / c.Bytes(10) * "89 61 69 62 69 74 0D 0A 1A 0A",
    "major" / c.Int16ul * "format version, 1; a reader refuses another",
    "minor" / c.Int16ul * "0 in this version; a reader accepts any",
    "reserved" / c.Bytes(2) * "zero",
    "file_size" / c.Int64ul * "size of the whole file in bytes",
    "front_matter_length" / c.Int64ul * "bytes from the end of this header to the first document; a multiple of 64",
    "incompatible" / c.Int64ul * "feature bits; a reader refuses a bit it does not know; no bit is defined in 1.0",
    "compatible" / c.Int64ul * "feature bits a reader may ignore; no bit is defined in 1.0",
    "alignment" / c.Int32ul * "alignment of bulk planes: 64, 4096 or 2097152",
    "section_count" / c.Int32ul * "entries of the section table, 7 to 64",
    "reserved2" / c.Bytes(56) * "zero",
    "root" / c.Bytes(16) * "xxh3_128, canonical form, of bytes 0 to 111 followed by the front matter",
)

SECTION = c.Struct(
    "kind" / c.Int16ul * "what the section holds; see the list of kinds",
    "flags" / c.Int16ul * "bit 0: critical, a reader that does not know the kind refuses the file; others zero",
    "count" / c.Int32ul * "entries in the section",
    "offset" / c.Int64ul * "from the start of the file; a multiple of 64",
    "length" / c.Int64ul * "bytes, without the zero padding that follows",
    "reserved" / c.Bytes(8) * "zero",
)

METADATA = c.Struct(
    "key_length" / c.Int16ul * "bytes of the key, 1 to 255",
    "type" / c.Int8ul * "1 int, 2 float, 3 bool, 4 string, 5 bytes",
    "is_array" / c.Int8ul * "0: one value; 1: an array of `count` values of that type",
    "count" / c.Int32ul * "number of values; 1 when `is_array` is 0",
    "length" / c.Int64ul * "bytes of the value or values",
    # key and value bytes follow, without padding
)

SCHEME = c.Struct(
    "name_offset" / c.Int32ul * "start of the name in the string pool",
    "name_length" / c.Int16ul * "bytes of the name without its line feed, 1 to 255",
    "version" / c.Int16ul * "version of the scheme, from 1",
    "parameters" / c.Array(6, c.Int32ul) * "as the scheme's page defines them; unused ones zero",
)

DOCUMENT = c.Struct(
    "name_offset" / c.Int32ul * "start of the name in the string pool",
    "name_length" / c.Int16ul * "bytes of the name without its line feed, 1 to 255",
    "reserved" / c.Bytes(10) * "zero",
    "offset" / c.Int64ul * "from the start of the file; a multiple of 64",
    "length" / c.Int64ul * "bytes, without the zero padding that follows; at most 2^28",
)

TENSOR = c.Struct(
    "name_offset" / c.Int32ul * "start of the name in the string pool",
    "name_length" / c.Int16ul * "bytes of the name without its line feed, 1 to 255",
    "reserved" / c.Bytes(2) * "zero",
    "first_plane" / c.Int32ul * "index of the tensor's first plane; 0 for an alias",
    "target" / c.Int32ul * "for an alias: index of the tensor it stands for; otherwise 0",
    # The planes follow from the fields from here to the end: equal bytes here mean equal planes.
    "flags" / c.Int16ul * "bit 0: alias; bit 1: stored as the transpose of the architecture's tensor; others zero",
    "scheme" / c.Int16ul * "index into the scheme table",
    "dtype" / c.Int8ul * "logical dtype: what the values are to the model",
    "rank" / c.Int8ul * "number of dimensions, 0 to 8",
    "plane_count" / c.Int16ul * "planes of the tensor, as its scheme says; 0 for an alias",
    "parameters" / c.Array(2, c.Int32ul) * "of the tensor, as its scheme's page defines them; unused ones zero",
    "shape" / c.Array(8, c.Int64ul) * "dimensions, outermost first; those beyond the rank are zero",
)

PLANE = c.Struct(
    "tensor" / c.Int32ul * "index of the tensor it belongs to",
    "role" / c.Int16ul * "what it holds; see the list of roles",
    "dtype" / c.Int8ul * "dtype of its elements",
    "reserved" / c.Bytes(9) * "zero",
    "offset" / c.Int64ul * "from the start of the file",
    "length" / c.Int64ul * "bytes",
)

SIGNATURE_RECORD = c.Struct(
    "algorithm" / c.Int16ul * "1, 2: Ed25519 (RFC 8032) over the content digest, the front digest; 0 if it is not used",
    "reserved" / c.Bytes(6) * "zero",
    "key" / c.Bytes(32) * "the public key, raw: it says whose the signature claims to be, and makes nobody trusted",
    "signature" / c.Bytes(64) * "of the signed message",
)

SIGNED_MESSAGE = c.Struct(
    "domain" / c.Bytes(16) * "`aibit signature` in ASCII, and a zero",
    "key" / c.Bytes(32) * "the public key of the record",
    "digest" / c.Bytes(32) * "the digest of the file that the algorithm of the record names",
)

DETACHED = c.Struct(
    "magic" / c.Bytes(12) * "89 61 69 62 73 69 67 31 0D 0A 1A 0A",
    "count" / c.Int32ul * "records that follow, 1 to 8",
)

RECORDS: dict[str, construct.Struct] = {
    "header": HEADER,
    "section": SECTION,
    "metadata": METADATA,
    "scheme": SCHEME,
    "document": DOCUMENT,
    "tensor": TENSOR,
    "plane": PLANE,
    "signature": SIGNATURE_RECORD,
    "signed message": SIGNED_MESSAGE,
    "detached signatures": DETACHED,
}


@dataclass(frozen=True, slots=True)
class Field:
    """Describe one field of a record as the spec prints it: offset and size in bytes, type, and text."""

    name: str
    offset: int
    size: int
    type: str
    text: str


def fields_of(struct: construct.Struct) -> Iterator[Field]:
    """Yield the fields of a record in order, with their offsets."""
    offset = 0
    for renamed in _fields(struct):
        base, count = _element(renamed.subcon)
        name = {"V": "bytes"}.get(base.kind, f"{base.kind}{base.itemsize * 8}")
        label = f"{name}[{base.itemsize}]" if base.kind == "V" else f"{name}[{count}]" if count > 1 else name
        size = renamed.sizeof()
        yield Field(renamed.name, offset, size, label, renamed.docs)
        offset += size


@cache
def dtype_of(struct: construct.Struct) -> np.dtype:
    """Return the packed numpy record dtype with the same fields at the same offsets as ``struct``."""
    members: list[Any] = []
    for renamed in _fields(struct):
        base, count = _element(renamed.subcon)
        members.append((renamed.name, base, (count,)) if count > 1 else (renamed.name, base))
    dtype = np.dtype(members)
    if dtype.itemsize != struct.sizeof():
        raise TypeError(f"{struct}: {struct.sizeof()} bytes in construct, {dtype.itemsize} in numpy")
    return dtype


def _fields(struct: construct.Struct) -> list[Any]:
    return list(struct.subcons)


def struct_of(struct: construct.Struct) -> Struct:
    """Return the same record for the standard library's ``struct``, for records read one at a time."""
    fields = _fields(struct)
    while any(isinstance(field, c.Renamed) for field in fields):
        fields = [field.subcon if isinstance(field, c.Renamed) else field for field in fields]
    return Struct("<" + "".join(field.fmtstr[1] for field in fields))


def _element(subcon: Any) -> tuple[np.dtype, int]:
    """Return the numpy dtype and repeat count of one construct field; only fixed-size fields have one."""
    while isinstance(subcon, c.Renamed):
        subcon = subcon.subcon
    if isinstance(subcon, c.Array):
        base, _ = _element(subcon.subcon)
        return base, int(subcon.count)
    if isinstance(subcon, c.FormatField):
        # struct's letters mean other sizes in numpy ("L" is 8 bytes there): build the name from the size.
        order, letter = subcon.fmtstr
        return np.dtype(f"{order}{'u' if letter.isupper() else 'i'}{subcon.sizeof()}"), 1
    if isinstance(subcon, c.Bytes):
        return np.dtype(f"V{subcon.sizeof()}"), 1
    raise TypeError(f"{subcon} has no fixed-size numpy counterpart")


def align(value: int, alignment: int) -> int:
    """Return the smallest multiple of ``alignment`` that is not below ``value``."""
    return -(-value // alignment) * alignment
