"""The words in which `bad_files.py` says how each file of `fixtures/bad/` is made: good files, and ways to break them.

A recipe takes a small good file, breaks one rule and seals the file again, digests included, unless digests are the
rule. What lies where, and how a file is sealed, is said in `tests/craft.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import craft
import numpy as np
import scheme_examples
from craft import (  # noqa: F401 - words of the tables, too
    both,
    entry,
    flip,
    put,
    put_plane,
    put_section,
    put_tensor,
    put_values,
    rebuilt,
    renamed,
    resized,
    swapped,
    with_metadata,
)  # fmt: skip

from aibit_format.container import layout
from aibit_format.container.metadata import encode
from aibit_format.dtypes import DTYPES
from aibit_format.file.writer import Tensor
from aibit_format.schemes import make, parse

Recipe = Callable[[], Any]  # to the bytes of a file, or a beyond.Hollow
INT, FLOAT, BOOL, STRING, BYTES = 1, 2, 3, 4, 5
HUGE = (1 << 64) - 1
NOTHING = (1 << 32) - 1
TERABYTES = 4 << 40


# Good files to begin with

_SMALLER = {(40, 64): (4, 8), (80, 64): (16, 4)}
_TENSORS = [(*tensor[:3], _SMALLER.get(tensor[3], tensor[3]), tensor[4]) for tensor in craft.TENSORS]
# The tensors of craft.good, made small: two pairs of planes of one size, aliases, rank 0, no elements.
BASE = craft.good(_TENSORS, {"test.flag": True, "test.name": "a"},
                  {"config.json": b'{"a": 1}', "empty.txt": b"", "notes/read.md": b"words"}, alignment=64)  # fmt: skip
# As little as there can be of everything.
TINY = craft.good([("w", "f32", "f32", (2,), None)], {}, {"x": b"x"}, alignment=64)
# Nothing at all.
EMPTY = craft.good([], {}, {}, alignment=64)
# A pool with room before bulk planes, which begin pages.
PAGES = craft.good(
    [("small", "f32", "f32", (), None), *[(name, "i8", "i8", (4096,), None) for name in "ab"]], {}, {"x": b"x"}
)
# Two tensors in one scheme with two parameters, and the same planes.
PAIR = craft.good([("a", "nf4", "f16", (4,), None), ("b", "nf4", "f16", (4,), None)], {}, {}, alignment=64)
# Two bulk planes of two steps of the alignment each.
WIDE = craft.good([("a", "i8", "i8", (128,), None), ("b", "i8", "i8", (128,), None)], {}, {}, alignment=64)
ELEMENTS = 2 * 32 + 2 * 64 + 1 + 0 + 5 + 8  # of BASE, aliases aside
NESTED, ORDERED, OUTLIER = (
    "nf4,block_size=32,nested=1", "int4-group,group=16,ordered=1", "int8-outlier,threshold=2,outliers=1"
)  # fmt: skip


@cache
def example(text: str) -> bytes:
    """A file of the one tensor of ``tools/scheme_examples.py`` whose scheme users write as ``text``."""
    found = next(e for e in scheme_examples.examples(parse(text).name) if e.scheme.text == text)
    return craft.written({Tensor("w", found.shape, found.dtype, found.scheme): found.planes}, alignment=64)


@cache
def outliers() -> bytes:
    """A file of one int8-outlier tensor, rows 1 and 3 of four in float16."""
    values = np.ones((4, 8), np.float16)
    values[[1, 3], 0] = 64
    scheme = parse("int8-outlier,threshold=2").fitted(values, "f16")
    return craft.written({Tensor("w", values.shape, "f16", scheme): scheme.encode(values, "f16")}, alignment=64)


def planes_of(data: bytes | bytearray) -> dict[str, np.ndarray]:
    """The planes of a file's first tensor, in storage dtypes, as views."""
    record, names = craft.table(data, "tensor")[0], craft.body(data, "strings").split(b"\n")
    row = craft.table(data, "scheme")[record["scheme"]]
    scheme = make(names[record["scheme"]].decode(), int(row["version"]), tuple(row["parameters"].tolist()))
    shape = tuple(record["shape"][: record["rank"]].tolist())
    dtype = next(d.name for d in DTYPES.values() if d.code == record["dtype"])
    return {
        spec.role: np.frombuffer(data, DTYPES[spec.dtype].numpy, plane["length"] // DTYPES[spec.dtype].numpy.itemsize,
                                 plane["offset"]).reshape(spec.shape)
        for spec, plane in zip(scheme.planes(shape, dtype), craft.table(data, "plane"), strict=False)
    }  # fmt: skip


def altered(data: bytes, /, **changes: Any) -> bytes:
    """Other values in planes of the first tensor: by role, a function of the plane or ``{place: value}``."""
    out = bytearray(data)
    planes = planes_of(out)
    for role, change in changes.items():
        if callable(change):
            planes[role][...] = change(planes[role].copy())
        else:
            for place, value in change.items():
                planes[role].reshape(-1)[place] = value
    return craft.reseal(out, leaves=True)


def retiled(**changes: Any) -> bytes:
    """``altered``, of an nf4-cpu tensor whose tiles follow."""
    data = altered(example("nf4-cpu"), **changes)
    planes = planes_of(data)
    wanted = parse("nf4-cpu").tiled({role: planes[role] for role in ("codes", "absmax")}, (32, 64))
    return altered(data, tiles=lambda _: wanted["tiles"], tile_absmax=lambda _: wanted["tile_absmax"])


def scheme_of(text: str, parameters: tuple[int, ...]) -> bytes:
    return put("scheme", 0, parameters=[*parameters, *[0] * (6 - len(parameters))])(example(text))


def shaped(text: str, *dims: int, **fields: Any) -> bytes:
    return put("tensor", 0, rank=len(dims), shape=shape(*dims), **fields)(example(text))


def sized(text: str, role: str, by: int) -> bytes:
    """The plane of this role so many bytes longer or shorter."""
    planes = planes_of(example(text))
    return resized(list(planes).index(role), planes[role].nbytes + by)(example(text))


def byte_swapped(field: str) -> bytes:
    data = bytearray(BASE)
    header = craft.table(data, "header")
    header[field] = header[field].byteswap()
    return craft.reseal(data)


def eight(number: float, kind: str = "<i8") -> bytes:
    return np.array([number], kind).tobytes()


def shape(*dims: int) -> list[int]:
    return [*dims, *[0] * (8 - len(dims))]


def metadata(*entries: bytes, count: int | None = None, of: bytes = TINY) -> bytes:
    return with_metadata(*entries, count=count)(of)


def values(of: bytes = BASE, /, **items: Any) -> bytes:
    """This metadata, with dots for double underscores; None leaves one out."""
    found = {key.replace("__", "."): value for key, value in items.items() if value is not None}
    return rebuilt(metadata=(len(found), encode(found)))(of)


def errors(**columns: Any) -> bytes:
    """quantization.error.* metadata, right but for the columns given."""
    names = ("tensor", "relative_rms", "largest", "signal_to_noise_db")
    right = dict(zip(names, (np.array([1]), np.ones(1), np.ones(1), np.ones(1)), strict=True)) | columns
    return values(**{f"quantization__error__{name}": column for name, column in right.items()})


ROOT, ONE = "0123456789abcdef" * 2, np.arange(1)


def shard(index: int, *, count: int = 2, **said: Any) -> bytes:
    """A file that says it is this shard of so many, and has no documents."""
    return values(TINY, **{f"shard__{key}": value for key, value in ({"index": index, "count": count} | said).items()})


def sources(**columns: Any) -> bytes:
    right = {"files": ["a"], "sizes": [1], "xxh3_128": ["0" * 32]} | columns
    return values(**{f"source__{name}": column for name, column in right.items()})


def with_section(kind: int, flags: int = 0, body: bytes = b"private", of: bytes = TINY) -> bytes:
    return rebuilt(lambda entries: sorted([*entries, (kind, flags, 1, body)]))(of)


def signatures(*records: bytes, count: int = layout.SIGNATURE_ROOM, flags: int = 0, end: int | None = None) -> bytes:
    """A section of signatures with these records, filled up with zeros; ``end`` cuts it there."""
    body = b"".join(records).ljust(end or layout.SIGNATURE_ROOM * layout.SIGNATURE_RECORD.sizeof(), b"\0")[:end]
    return rebuilt(lambda entries: [*entries, (layout.SIGNATURES, flags, count, body)])(TINY)


def signature(key: int = 1, **fields: Any) -> bytes:
    """A record of signatures that nobody made."""
    values = {"algorithm": 1, "reserved": bytes(6), "key": bytes([key]) * 32, "signature": b"s" * 64}
    return layout.SIGNATURE_RECORD.build(values | fields)


def without(name: str, of: bytes) -> bytes:
    return rebuilt(lambda entries: [e for e in entries if e[0] != craft.KINDS[name]])(of)


def pool(change: Callable[[bytes], bytes]) -> bytes:
    """Another string pool, the records as they are."""
    return rebuilt(strings=(0, change(craft.body(BASE, "strings"))))(BASE)


def named(record: str, name: bytes) -> bytes:
    return renamed(record, 0, name)(TINY)


def documents(**contents: bytes) -> bytes:
    """Documents, as many as there are, to be renamed after."""
    return craft.good([], {}, contents, alignment=64)


def document(name: str, content: bytes) -> bytes:
    """A file of one document, put in under a name that nobody reads as JSON."""
    return renamed("document", 0, name.encode())(documents(x=content))


def two_documents(first: str, second: str) -> bytes:
    """Documents of one byte each under these names, in this order."""
    data = documents(x=b"1", y=b"2")
    return both(renamed("document", 0, first.encode()), renamed("document", 1, second.encode()))(data)


config = partial(document, "config.json")


def swapped_bodies(sealed: bool = False) -> bytes:
    """Two planes of one size, each with the other's contents, and leaves that say so."""
    data = bytearray(BASE)
    i, j = (int(craft.table(data, "plane")["offset"][craft.PLANE[name, "values"]]) for name in ("first", "second"))
    data[i : i + 64], data[j : j + 64] = data[j : j + 64], data[i : i + 64]
    return craft.reseal(data, leaves=True) if sealed else bytes(data)


def plane_table(change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    rows = change(craft.table(BASE, "plane"))
    return rebuilt(planes=(len(rows), rows.tobytes()))(BASE)


def moved(of: bytes, plane: int, by: int) -> bytes:
    return put("plane", plane, offset=lambda old: np.uint64(int(old) + by))(of)


def gap(record: str, i: int, data: bytes) -> int:
    """The first byte after what a record speaks of."""
    row = craft.table(data, record)[i]
    return int(row["offset"] + row["length"])


def root_changed(change: Callable[[bytes], bytes]) -> bytes:
    return BASE[: craft.HEAD - 16] + change(BASE[craft.HEAD - 16 : craft.HEAD]) + BASE[craft.HEAD :]


def leaf_table(change: Callable[[bytes], bytes]) -> bytes:
    """Another leaf table under a root that is right."""
    data, found = bytearray(BASE), change(craft.body(BASE, "leaves"))
    start = int(craft.section(data, "leaves")["offset"])
    data[start : start + len(found)] = found
    return craft.reseal(data)


def section_placed(name: str, offset: int | Callable[[Any], Any]) -> bytes:
    return put_section(name, offset=offset)(BASE)


def last_section_longer() -> bytes:
    data = bytearray(with_section(0x8001, 0, bytes(64)))
    craft.table(data, "section")["length"][-1] += 64
    return craft.reseal(data)


def last_section_gone() -> bytes:
    data = bytearray(with_section(0x8001, 0, bytes(64)))
    craft.table(data, "section")["length"][-1] = 0
    return craft.reseal(data)


def reordered_schemes() -> bytes:
    """Tensors of f16 and f32 whose schemes stand in the other order."""
    data = craft.good([("a", "f16", "f16", (2,), None), ("b", "f32", "f32", (2,), None)], {}, {}, alignment=64)
    return both(renamed("scheme", 0, b"f32"), renamed("scheme", 1, b"f16"),
                put("tensor", 0, scheme=1), put("tensor", 1, scheme=0))(data)  # fmt: skip


def blocks_of_pair(*blocks: int) -> bytes:
    """The two nf4 tensors of PAIR in two schemes of these block sizes."""
    rows = np.repeat(craft.table(PAIR, "scheme"), 2)
    tensors = craft.table(PAIR, "tensor").copy()
    rows["name_offset"], rows["parameters"][:, 0] = (0, 4), blocks
    tensors["name_offset"] += 4
    tensors["scheme"] = (0, 1)
    strings = b"nf4\n" + craft.body(PAIR, "strings")
    return rebuilt(schemes=(2, rows.tobytes()), tensors=(2, tensors.tobytes()), strings=(0, strings))(PAIR)


def aliases(**fields: Any) -> bytes:
    """An int8 tensor and an alias of it, of which fields are changed."""
    tensors = [("a", "int8", "f32", (2, 4), None), ("b", "int8", "f32", (2, 4), "a")]
    return put("tensor", 1, **fields)(craft.good(tensors, {}, {}, alignment=64))


def realigned() -> bytes:
    """Codes of 64 bytes, scales of 64: bulk and pool at alignment 64, all pool at 4096, and the same size."""
    return put("header", alignment=4096)(craft.good([("a", "int8", "f32", (16, 4), None)], {}, {}, alignment=64))


def padded_end() -> bytes:
    tensors = [("a", "f32", "f32", (2,), None), ("b", "f32", "f32", (0, 2), None)]
    return flip(-1, leaves=True)(craft.good(tensors, {}, {}, alignment=64))


def of_base(breaks: Callable[[bytes], bytes]) -> Recipe:
    return lambda: breaks(BASE)


def of_tiny(breaks: Callable[[bytes], bytes]) -> Recipe:
    return lambda: breaks(TINY)


def header(**fields: Any) -> Recipe:
    return of_tiny(put("header", **fields))


def tensor(name: str, /, **fields: Any) -> Recipe:
    return of_base(put_tensor(name, **fields))


def plane(name: str, role: str, /, **fields: Any) -> Recipe:
    return of_base(put_plane(name, role, **fields))


def section(name: str, /, **fields: Any) -> Recipe:
    return of_base(put_section(name, **fields))


def one(*arguments: Any, **fields: Any) -> Recipe:
    """One metadata entry ``a.b``."""
    return lambda: metadata(entry(b"a.b", *arguments, **fields))


def key(name: bytes) -> Recipe:
    return lambda: metadata(entry(name, INT, eight(1)))


def known(name: bytes, *arguments: Any) -> Recipe:
    return lambda: metadata(entry(name, *arguments))


def parts(head: int) -> Recipe:
    return lambda: BASE[:head]


def alter(text: str, **changes: Any) -> Recipe:
    return lambda: altered(example(text), **changes)


def block(text: str, offset: int, value: int, at: int = 0) -> Recipe:
    """Another float16, by its bits, at an offset of one of the GGML blocks."""
    size = make(text).layout.size  # type: ignore[attr-defined]
    place = at * size + offset
    return alter(text, blocks={place: value & 0xFF, place + 1: value >> 8})
