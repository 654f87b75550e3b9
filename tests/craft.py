"""Good files, and good files broken in exactly one place.

A breaker is a function from the bytes of a good file to the bytes of a bad one. It *reseals* what it touched: the leaf
table and the root digest are computed again, here and from the records alone, so that nothing but the intended rule is
broken. Where bytes lie comes from ``layout``; how they are placed is stated here once more, in plain integers.
"""

import math
import os
import tempfile
from functools import cache

import numpy as np
import xxhash

from aibit_format.container import layout
from aibit_format.container.layout import align, dtype_of
from aibit_format.dtypes import DTYPES
from aibit_format.file.writer import Tensor, write
from aibit_format.schemes import make

HEAD = layout.HEADER.sizeof()
KINDS = {name: kind for kind, name in layout.SECTIONS.items()}
PLACED = (("document", "length"), ("plane", "length"), ("plane", "role"))  # what placement depends on
TABLES = {"scheme": "schemes", "document": "documents", "tensor": "tensors", "plane": "planes"}
LARGEST = 1 << 27  # bytes of a file that is built here, whatever its records claim
EVIL = (0, 1, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)

# The good file's tensors: name, scheme, dtype, shape, alias of. Two pairs have planes of one size.
TENSORS = (
    ("first", "f16", "f16", (40, 64), None),
    ("quant", "int8", "f32", (80, 64), None),
    ("second", "f16", "f16", (40, 64), None),
    ("quant.twin", "int8", "f32", (80, 64), None),
    ("tied", "f16", "f16", (40, 64), "first"),
    ("tied.again", "f16", "f16", (40, 64), "second"),
    ("scalar", "f32", "f32", (), None),
    ("nothing", "f32", "f32", (0, 3), None),
    ("mask", "bool", "bool", (5,), None),
    ("norm", "bf16", "bf16", (8,), None),
)
NAMES = [name for name, *_ in TENSORS]
TENSOR = {name: i for i, name in enumerate(NAMES)}
PLANES = [
    (name, role)
    for name, scheme, _, _, alias in TENSORS
    if not alias
    for role in (("codes", "row_absmax") if scheme == "int8" else ("values",))
]
PLANE = {place: i for i, place in enumerate(PLANES)}
METADATA = {
    "model.parameters": sum(math.prod(shape) for *_, shape, alias in TENSORS if not alias),
    "test.blob": b"\x00\xff",
    "test.flag": True,
    "test.flags": [True, False],
    "test.floats": np.array([0.5, -2.0]),
    "test.ints": np.array([1, -(1 << 63)]),
    "test.name": "caf\u00e9\n",
    "test.names": ["a", "", "b"],
    "test.none": [],
    "test.number": 1.5,
}
DOCUMENTS = {"config.json": b'{"a": 1}', "empty.txt": b"", "notes/read.md": b"words " * 50}


def values(dtype, shape, seed=0):
    """Random elements of a dtype, every one finite."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype in ("f16", "f32", "f64"):
        return rng.standard_normal(shape).astype(DTYPES[dtype].numpy)
    # bf16: the upper half of floats around one; fp8 and integers: small codes
    low, high = (0x3F00, 0x4100) if dtype == "bf16" else (0, 100)
    return np.asarray(rng.integers(low, high, shape)).astype(DTYPES[dtype].numpy)


def planes_of(name, scheme, dtype, shape, alias_of=None):
    if alias_of:
        return {}
    seed = xxhash.xxh32_intdigest(name.encode())
    return make(scheme).encode(values(dtype, shape, seed), dtype)


def written(tensors, metadata=None, documents=None, alignment=4096):
    """The bytes of a file. ``tensors`` maps ``writer.Tensor`` to planes."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "m.aibit")
        write(path, tensors, metadata, documents, alignment=alignment)
        with open(path, "rb") as file:
            return file.read()


def good(tensors=TENSORS, metadata=METADATA, documents=DOCUMENTS, alignment=4096):
    """The bytes of a good file with everything in it: schemes, aliases, rank 0, no elements, all metadata types."""
    content = {
        Tensor(name, shape, dtype, make(scheme), alias): planes_of(name, scheme, dtype, shape, alias)
        for name, scheme, dtype, shape, alias in tensors
    }
    return written(content, metadata, documents, alignment)


# Records in place


def table(data, record):
    """The records of one kind as an array over ``data``: writing to it changes ``data`` if that is a bytearray."""
    if record == "header":
        return np.frombuffer(data, dtype_of(layout.HEADER), 1)
    if record == "section":
        count = int(table(data, "header")["section_count"][0])
        return np.frombuffer(data, dtype_of(layout.SECTION), count, HEAD)
    row = section(data, TABLES[record])
    return np.frombuffer(data, dtype_of(layout.RECORDS[record]), int(row["count"]), int(row["offset"]))


def section(data, name):
    """The section table's entry of this name."""
    rows = table(data, "section")
    return rows[rows["kind"] == KINDS[name]][0]


@cache
def spots(data, record):
    """(offset, width) of every number in the records of one kind; of shapes, the first dimensions."""
    base = np.frombuffer(data, np.uint8)
    rows, found = table(data, record), []
    first = rows.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    for i in range(len(rows)):
        for name in rows.dtype.names:
            kind, at = rows.dtype.fields[name]
            if kind.base.kind == "u":
                start, width = first + i * rows.itemsize + at, kind.base.itemsize
                found += [(start + k * width, width) for k in range(min(kind.itemsize // width, 4))]
    return found


def section_index(name):
    return list(KINDS).index(name)


def body(data, name):
    row = section(data, name)
    return bytes(data[int(row["offset"]) : int(row["offset"] + row["length"])])


def front_end(data):
    """Where header and front matter end."""
    return HEAD + int(table(data, "header")["front_matter_length"][0])


def reseal(data, leaves=False):
    """``data`` with a right root and, on request, right leaves."""
    data = bytearray(data)
    if leaves and front_end(data) < len(data):  # without a body there are no leaves
        digests = leaf_table(data)
        start = int(section(data, "leaves")["offset"])
        data[start : start + len(digests)] = digests
    root = xxhash.xxh3_128(bytes(data[: HEAD - 16]) + bytes(data[HEAD : front_end(data)])).digest()
    data[HEAD - 16 : HEAD] = root
    return bytes(data)


def leaf_table(data):
    """The leaf table that belongs to the documents and planes of ``data``."""
    documents, planes = table(data, "document"), table(data, "plane")
    alignment = int(table(data, "header")["alignment"][0])
    _, documents_end, data_start, _, end = place(
        front_end(data), documents["length"].tolist(), planes["length"].tolist(), planes["role"].tolist(), alignment
    )
    return leaves_of(data[front_end(data) : documents_end]) + leaves_of(data[data_start:end])


def leaves_of(region):
    pieces = [bytes(region[i : i + layout.LEAF]) for i in range(0, len(region), layout.LEAF)]
    return b"".join(xxhash.xxh3_64_intdigest(piece).to_bytes(8, "little") for piece in pieces)


def place(start, documents, planes, roles, alignment):
    """Placement as the spec's text has it: document offsets, their end, data start, plane offsets, end of file."""
    document_offsets, position = [], start
    for length in documents:
        document_offsets.append(position)
        position = align(position + length, 64)
    documents_end = position
    offsets, position, end = [0] * len(planes), 0, 0
    weights = (1, 2, 13, 14)
    bulk = [i for i, n in enumerate(planes) if n >= alignment and (roles[i] in weights or roles[i] >= 0x8000)]
    small = [i for i in range(len(planes)) if i not in bulk]
    for indices, step in ((small, 64), (bulk, alignment)):
        for i in indices:
            offsets[i] = position = align(position, step)
            end = position = position + planes[i]
    data_start = documents_end
    if end:
        alignment = alignment if bulk else 64
        data_start = align(documents_end, max(alignment, layout.LARGE_ALIGNMENT if end >= layout.LARGE_DATA else 0))
    return document_offsets, documents_end, data_start, [data_start + o for o in offsets], data_start + end


# Breakers


def put(record, index=0, /, **fields):
    """Other values in fields of one record; a function gets the old value."""

    def breaks(data):
        data = bytearray(data)
        row = table(data, record)[index]
        for name, value in fields.items():
            row[name] = value(row[name]) if callable(value) else value
        return reseal(data)

    return breaks


def put_section(name, /, **fields):
    return put("section", section_index(name), **fields)


def put_tensor(name, /, **fields):
    return put("tensor", TENSOR[name], **fields)


def put_plane(name, role, /, **fields):
    return put("plane", PLANE[name, role], **fields)


def swapped(record, i, j, *fields):
    """Two records of a table in each other's place, or the named fields of them."""

    def breaks(data):
        data = bytearray(data)
        rows = table(data, record)
        for field in fields or rows.dtype.names:
            rows[field][[i, j]] = rows[field][[j, i]]
        return reseal(data)

    return breaks


def both(*breakers):
    def breaks(data):
        for breaker in breakers:
            data = breaker(data)
        return data

    return breaks


def flip(offset, leaves=False, seal=False):
    """One bit changed at an offset, or at what a function of the data says; nothing is resealed unless asked for."""

    def breaks(data):
        data = bytearray(data)
        data[offset(data) if callable(offset) else offset] ^= 1
        return reseal(data, leaves) if seal or leaves else bytes(data)

    return breaks


def put_values(name, role, array):
    """Other contents for one plane, digests made right."""

    def breaks(data):
        data = bytearray(data)
        start = int(table(data, "plane")["offset"][PLANE[name, role]])
        data[start : start + array.nbytes] = array.tobytes()
        return reseal(data, leaves=True)

    return breaks


def rebuilt(sections=None, /, **bodies):
    """Other section bodies, ``name=(count, bytes)``, everything laid out again around them.

    ``sections`` maps the list of (kind, flags, count, body) to another one, to drop, repeat or add sections.
    Planes keep their contents as far as their lengths are the same.
    """
    return lambda data: _rebuild(data, sections or list, bodies)


def _rebuild(data, sections, bodies):
    rows = table(data, "section")
    pieces = [bytes(data[p["offset"] : p["offset"] + p["length"]]) for p in table(data, "document")]
    planes = [bytes(data[p["offset"] : p["offset"] + p["length"]]) for p in table(data, "plane")]
    entries = []
    for row in rows.tolist():
        kind, flags, count, offset, length = row[:5]
        count, content = bodies.get(layout.SECTIONS.get(kind), (count, bytes(data[offset : offset + length])))
        entries.append((kind, flags, count, content))
    entries = list(sections(entries))
    lengths = [len(content) for *_, content in entries]
    start = HEAD + sum(align(length, 64) for length in [len(entries) * rows.itemsize, *lengths])
    alignment = int(table(data, "header")["alignment"][0])
    by_kind = {kind: content for kind, _, _, content in entries}
    tables = {
        record: np.frombuffer(bytearray(by_kind.get(KINDS[name], b"")), dtype_of(layout.RECORDS[record]))
        for record, name in TABLES.items()
    }
    document_offsets, documents_end, data_start, offsets, end = place(
        start, *(tables[t][field].tolist() for t, field in PLACED), alignment
    )
    tables["document"]["offset"], tables["plane"]["offset"] = document_offsets, offsets
    if end > LARGEST:
        raise ValueError(f"its records claim {end} bytes")
    out = bytearray(end)
    for record, places, kept in (("document", document_offsets, pieces), ("plane", offsets, planes)):
        for offset, length, piece in zip(places, tables[record]["length"].tolist(), kept, strict=False):
            out[offset : offset + min(length, len(piece))] = piece[:length]
    fixed = {KINDS[name]: tables[record].tobytes() for record, name in TABLES.items()}
    if "leaves" not in bodies:
        fixed[KINDS["leaves"]] = leaves_of(out[start:documents_end]) + leaves_of(out[data_start:end])
    records = np.zeros(len(entries), rows.dtype)
    position = HEAD + align(records.nbytes, 64)
    for row, (kind, flags, count, content) in zip(records, entries, strict=True):
        content = fixed.get(kind, content)
        row["kind"], row["flags"], row["count"], row["offset"], row["length"] = (
            kind, flags, count, position, len(content)
        )  # fmt: skip
        out[position : position + len(content)] = content
        position = align(position + len(content), 64)
    out[HEAD : HEAD + records.nbytes] = records.tobytes()
    out[:HEAD] = data[:HEAD]
    header = table(out, "header")
    header["file_size"], header["front_matter_length"] = len(out), start - HEAD
    header["section_count"] = len(entries)
    del header
    return reseal(out)


def renamed(record, index, name):
    """Another name for one scheme, document or tensor, the string pool made again around it."""

    def breaks(data):
        strings, pool, bodies = body(data, "strings"), b"", {}
        for kind in ("scheme", "document", "tensor"):
            rows = table(data, kind).copy()
            for i, row in enumerate(rows):
                old = strings[row["name_offset"] : int(row["name_offset"]) + int(row["name_length"])]
                new = name if (kind, i) == (record, index) else old
                row["name_offset"], row["name_length"] = len(pool), len(new)
                pool += new + b"\n"
            bodies[TABLES[kind]] = (len(rows), rows.tobytes())
        return rebuilt(**bodies, strings=(0, pool))(data)

    return breaks


def resized(plane, length):
    """Another length for one plane, by its place in the table, and everything placed again around it."""

    def breaks(data):
        rows = table(data, "plane").copy()
        rows["length"][plane] = length
        return rebuilt(planes=(len(rows), rows.tobytes()))(data)

    return breaks


def entry(key, kind, content, is_array=0, count=1, **head):
    """One metadata entry; ``head`` overrides what follows from key and content."""
    fields = {
        "key_length": len(key), "type": kind, "is_array": is_array, "count": count, "length": len(content), **head
    }  # fmt: skip
    return layout.METADATA.build(fields) + key + content


def with_metadata(*entries, count=None):
    """These entries as the whole metadata section."""
    return rebuilt(metadata=(len(entries) if count is None else count, b"".join(entries)))
