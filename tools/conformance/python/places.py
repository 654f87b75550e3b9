"""Where everything lies: the leaf table and the placement of documents and planes, sections 12 and 13."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from .numbers import align, need, up

# 12. Leaf table

LEAF = 1 << 20


def check_leaf_tables(
    bodies: Mapping[str, bytes], counts: Mapping[str, int], regions: Sequence[range]
) -> tuple[list[int], list[str] | None]:
    """The digests of the leaves, and the strong ones in hex, if there are any."""
    wanted, sizes = sum(up(len(region), LEAF) for region in regions), {"leaves": 8, "strong_leaves": 32}
    for name in sizes.keys() & bodies.keys():
        right = counts[name] == wanted and len(bodies[name]) == sizes[name] * wanted
        need(right, "AIB-E601", f"{counts[name]} {name}, and {wanted} are needed")
    strong = bodies.get("strong_leaves")
    digests = None if strong is None else [bytes(strong[at : at + 32]).hex() for at in range(0, len(strong), 32)]
    return list(struct.unpack(f"<{wanted}Q", bodies["leaves"])), digests


# 13. Placement


def pack(lengths: list[int], start: int, a: int) -> tuple[list[int], int]:
    offsets, position, end = [], start, start
    for length in lengths:
        offsets.append(position)
        end = position + length
        position += align(length, a)
    return offsets, end


def check_places(file: Any) -> tuple[range, range]:
    planes, size, alignment = file.planes, file.header["file_size"], file.header["alignment"]
    need(sum(plane["length"] for plane in planes) <= size, "AIB-E408", "planes are larger than the file")
    start = 128 + file.header["front_matter_length"]
    offsets, end = pack([d["length"] for d in file.documents], start, 64)
    documents_end = align(end, 64)
    for document, offset in zip(file.documents, offsets, strict=True):
        need(document["offset"] == offset, "AIB-E704", f"{document['name']} at {document['offset']}, not {offset}")
    weights = ("values", "codes", "tiles", "blocks")
    for plane in planes:
        bulk = plane["role"] in weights or plane["role"].startswith("private_")
        plane["bulk"] = plane["length"] >= alignment and bulk
    pooled, bulk = ([p for p in planes if p["bulk"] is which] for which in (False, True))
    offsets, data_length = pack([p["length"] for p in pooled], 0, 64)
    step = alignment if bulk else 64
    if bulk:
        more, data_length = pack([p["length"] for p in bulk], align(data_length, alignment), alignment)
        offsets += more
    if data_length >= 64 << 20:
        step = max(step, 2 << 20)
    data_start = align(documents_end, step)
    for plane in planes:
        at, length, where = plane["offset"], plane["length"], f"{plane['role']} of tensor {plane['tensor']}"
        inside = data_start <= at <= size and length <= size - at
        need(inside, "AIB-E408", f"{where}: at {at}, {length} bytes")
        need(at % (alignment if plane["bulk"] else 64) == 0, "AIB-E409", f"{where}: at {at}")
    for plane, offset in zip(pooled + bulk, offsets, strict=True):
        need(plane["offset"] == data_start + offset, "AIB-E410", f"{plane['role']}: at {plane['offset']}")
    need(data_start + data_length == size, "AIB-E108", f"ends at {data_start + data_length}, and has {size} bytes")
    return range(start, documents_end), range(data_start, size)
