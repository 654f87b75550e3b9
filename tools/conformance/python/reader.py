"""Read `.aibit` with Python alone, in the order of spec/aibit-1.md and written from it.

    python -m tools.conformance.python.reader FILE           # check every rule, list tensors, or exit 3 and say why
    python -m tools.conformance.python.reader FILE --json    # everything, in the form of the fixtures' twins

It shares no code with the package: where the two differ, one of them or the text is wrong. What names, metadata, JSON
and signatures may be is in `contents.py`, schemes in `schemes.py`, xxh3 in `xxh3.py`. It
handles every value one by one: a model takes hours.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import stat
import struct
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from . import contents
from .numbers import BY_NAME, DTYPES, Record, RuleError, align, in_json, need, product, size_of, unpack
from .places import LEAF, check_leaf_tables, check_places
from .schemes import SCHEMES
from .xxh3 import xxh3_64, xxh3_128

# 2. The file


class File:
    """All of a file after every check; what its tables say is in lists of records."""

    def __init__(self, path: str):
        self.path, (self.data, self.state) = path, opened(path)
        self.header = read_header(self.data)
        self.sections = read_section_table(self.data, self.header)
        body = {s["name"]: self.data[s["offset"] : s["offset"] + s["length"]] for s in self.sections}
        counts = {s["name"]: s["count"] for s in self.sections}
        self.metadata = contents.read_metadata(body["metadata"], counts["metadata"])
        self.schemes, self.documents, self.tensors, self.planes = (records(name, body[name]) for name in TABLES)
        self.pool = name_all(body["strings"], self.schemes, self.documents, self.tensors)
        check_schemes(self.schemes, self.tensors)
        check_tensors(self.tensors, self.schemes)
        check_planes(self.planes, self.tensors)
        check_documents(self.documents)
        self.regions = check_places(self)
        self.leaves, self.strong_leaves = check_leaf_tables(body, counts, self.regions)
        self.signatures = {name: contents.read_signatures(name, body, counts[name]) for name in SIGNED if name in body}
        parameters = sum(product(t["shape"]) for t in self.tensors if not t["flags"] & ALIAS)
        contents.check_known_keys(self.metadata, self.documents, parameters, len(self.tensors))

    def piece(self, record: Record) -> bytes:
        return self.data[record["offset"] : record["offset"] + record["length"]]

    def elements(self, tensor: Record) -> dict[str, list]:
        """The planes of a tensor, or of the one that it is an alias of, as numbers."""
        owner = self.tensors[tensor["target"]] if tensor["flags"] & ALIAS else tensor
        planes = self.planes[owner["first_plane"] :][: owner["plane_count"]]
        return {p["role"]: BY_NAME[p["dtype"]].numbers(self.piece(p), p["shape"]) for p in planes}

    def unknown(self, tensor: Record) -> tuple[str, str] | None:
        """Why nobody here knows the tensor's values: a code and a text."""
        scheme = self.schemes[tensor["scheme"]]
        if (scheme["name"], scheme["version"]) not in SCHEMES:
            return "AIB-E406", f"scheme {scheme['name']} of version {scheme['version']}"
        return None if tensor["dtype"] in BY_NAME else ("AIB-E404", f"{tensor['name']}: dtype {tensor['dtype']}")

    def values(self, tensor: Record) -> list[float]:
        if why := self.unknown(tensor):
            raise RuleError(*why)
        scheme = self.schemes[tensor["scheme"]]
        return of(scheme).decode(scheme["parameters"] + tensor["parameters"], tensor["shape"], self.elements(tensor))


def opened(path: str) -> tuple[Any, tuple[int, int]]:
    """Its bytes, mapped; its size and modification time."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe must not keep us waiting
    except OSError as error:
        raise RuleError("AIB-E803", str(error)) from error
    try:
        need(stat.S_ISREG(os.fstat(fd).st_mode), "AIB-E801", "not a regular file")
        state = state_of(fd)
        return mmap.mmap(fd, 0, access=mmap.ACCESS_READ) if state[0] else b"", state
    finally:
        os.close(fd)


def state_of(file: int | str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


# 3. Header

HEADER = "10s signature H major H minor 2s - Q file_size Q front_matter_length Q incompatible Q compatible I alignment"
HEADER += " I section_count 56s - 16s root"
SIGNATURE = bytes.fromhex("8961696269740D0A1A0A")


def read_header(data: Any) -> Record:
    start = bytes(data[:10])
    if start != SIGNATURE[: len(start)]:
        damaged = re.match(rb"[\x89\x09]?aibit", start)
        raise RuleError("AIB-E103" if damaged else "AIB-E102", f"begins with {start.hex(' ')}")
    need(len(data) >= 128, "AIB-E101", f"{len(data)} bytes")
    major, incompatible = struct.unpack_from("<H", data, 10)[0], struct.unpack_from("<Q", data, 32)[0]
    need(major == 1, "AIB-E104", f"major version {major}")
    need(incompatible == 0, "AIB-E105", f"feature bits {incompatible:#x}")
    h = unpack(HEADER, data, 0, "AIB-E106")
    need(h["alignment"] in (64, 4096, 2 << 20), "AIB-E107", f"alignment {h['alignment']}")
    need(h["file_size"] == len(data), "AIB-E108", f"file_size {h['file_size']}, and {len(data)} bytes are there")
    need(7 <= h["section_count"] <= 64, "AIB-E110", f"{h['section_count']} sections")
    front = h["front_matter_length"]
    least, most = align(32 * h["section_count"], 64), min(1 << 26, len(data) - 128)
    need(front % 64 == 0 and least <= front <= most, "AIB-E109", f"front_matter_length {front}")
    need(xxh3_128(data[:112] + data[128 : 128 + front]) == h["root"], "AIB-E111", "the root is another")
    return h


# 4. Section table

SECTION = "H kind H flags I count Q offset Q length 8s -"
NAMES = {1: "metadata", 2: "schemes", 3: "documents", 4: "tensors", 5: "planes", 6: "strings", 7: "leaves"}
OPTIONAL = {8: "signatures", 10: "strong_leaves", 11: "front_signatures", 12: "slack"}
SIGNED = ("signatures", "front_signatures")
TABLES = {  # sections 7, 11, 8 and 9
    "schemes": "IH name H version 6I parameters",
    "documents": "IH name 10s - Q offset Q length",
    "tensors": "IH name 2s - I first_plane I target H flags H scheme B dtype B rank H plane_count"
    " 2I parameters 8Q shape",
    "planes": "I tensor H role B dtype 9s - Q offset Q length",
}
MOST = {"metadata": 1 << 16, "schemes": 1 << 12, "documents": 1 << 12, "tensors": 1 << 20}  # section 15


def read_section_table(data: bytes, header: Record) -> list[Record]:
    count, end = header["section_count"], 128 + header["front_matter_length"]
    rows = [unpack(SECTION, data, 128 + 32 * i, "AIB-E205") for i in range(count)]
    kinds = [row["kind"] for row in rows]
    need(kinds == sorted({*kinds} - {0}) and kinds[:7] == [*NAMES], "AIB-E201", f"kinds {kinds}")
    position, used = 128 + align(32 * count, 64), 128 + 32 * count
    for row in rows:
        kind, flags = row["kind"], row["flags"]
        need(kind in NAMES or not flags & 1, "AIB-E202", f"critical section of kind {kind}")
        need(flags == (kind in NAMES), "AIB-E205", f"section {kind} has flags {flags}")
        need(row["offset"] == position and row["length"] <= end - position, "AIB-E208", f"place of section {kind}")
        need(not any(data[used:position]), "AIB-E209", f"bytes before section {kind} are not zero")
        used = position + row["length"]
        position = align(used, 64)
        row["name"] = (NAMES | OPTIONAL).get(kind, "unknown")
    need(position == end, "AIB-E208", f"sections end at {position}, the front matter at {end}")
    need(not any(data[used:end]), "AIB-E209", "bytes after the last section are not zero")
    for row in rows:
        name, count = row["name"], row["count"]
        if name in TABLES:
            right = row["length"] == count * size_of(TABLES[name])
            need(right, "AIB-E203", f"{name}: {count} records in {row['length']} bytes")
        need(count <= MOST.get(name, count), "AIB-E204", f"{count} {name}")
        need(name not in ("strings", "slack") or count == 0, "AIB-E203", f"{name}: a count of {count}")
        if name == "slack":
            length, end = row["length"], row["offset"] + row["length"]
            need(length % 64 == 0 and length <= 1 << 24, "AIB-E204", f"{length} bytes of slack")
            need(not any(data[row["offset"] : end]), "AIB-E209", "slack is not zero")
    return rows


def records(name: str, body: bytes) -> list[Record]:
    size = size_of(TABLES[name])
    return [unpack(TABLES[name], body, at, "AIB-E415") for at in range(0, len(body), size)]


# 6. String pool


def name_all(pool: bytes, schemes: list[Record], documents: list[Record], tensors: list[Record]) -> str:
    """Give every record its name."""
    named = schemes + documents + tensors
    for record in named:
        start, length = record["name_offset"], record["name_length"]
        need(1 <= length <= 255, "AIB-E211", f"a name of {length} bytes")
        need(start <= len(pool) and length <= len(pool) - start, "AIB-E210", f"a name at {start} of {length} bytes")
        record["name"] = bytes(pool[start : start + length])
    for kind, table in (("scheme", schemes), ("document", documents), ("tensor", tensors)):
        for record in table:
            contents.NAMES[kind](record["name"])
    position = 0
    for record in named:
        need(record["name_offset"] == position, "AIB-E212", f"{record['name']!r} lies at {record['name_offset']}")
        position += record["name_length"] + 1
    joined = b"".join(record["name"] + b"\n" for record in named)
    need(bytes(pool) == joined, "AIB-E212", "the pool is not the names and line feeds")
    for record in named:
        record["name"] = record["name"].decode("ascii")
    return joined.decode("ascii")


# 7. Schemes


def of(record: Record) -> Any:
    return SCHEMES[record["name"], record["version"]]


def check_schemes(schemes: list[Record], tensors: list[Record]) -> None:
    keys = [(s["name"], s["version"], s["parameters"]) for s in schemes]
    for name, version, parameters in keys:
        scheme = SCHEMES.get((name, version))
        need(not scheme or scheme.parameters(parameters), "AIB-E407", f"parameters {parameters} of {name}")
    need(all(a < b for a, b in pairwise(keys)), "AIB-E416", "schemes are not strictly increasing")
    used = {tensor["scheme"] for tensor in tensors}
    need(used == {*range(len(schemes))}, "AIB-E416", f"{len(schemes)} schemes, and tensors use {sorted(used)[-5:]}")


# 8. Tensor directory

ALIAS, TRANSPOSED = 1, 2


def check_tensors(tensors: list[Record], schemes: list[Record]) -> None:
    first = 0
    for i, t in enumerate(tensors):
        name, alias = t["name"], t["flags"] & ALIAS
        flags = t["flags"] <= 3 and not (t["flags"] & TRANSPOSED and t["rank"] not in (2, 3))
        need(flags, "AIB-E415", f"{name}: flags {t['flags']}, rank {t['rank']}")
        need(t["rank"] <= 8 and not any(t["shape"][t["rank"] :]), "AIB-E402", f"{name}: rank {t['rank']}")
        t["shape"] = t["shape"][: t["rank"]]
        t["dtype"] = name_of(t["dtype"])
        elements = product([d for d in t["shape"] if d])
        need(elements < 1 << 60, "AIB-E403", f"{name}: shape {t['shape']}")
        if alias:
            need(t["target"] < i, "AIB-E411", f"{name}: alias of tensor {t['target']}")
            other = tensors[t["target"]]
            same = all(t[field] == other[field] for field in ("scheme", "dtype", "rank", "parameters", "shape"))
            flags = (other["flags"] ^ t["flags"]) == ALIAS
            need(same and flags, "AIB-E411", f"{name} is not as {other['name']}, which it is an alias of")
        need(alias or t["target"] == 0, "AIB-E411", f"{name}: target {t['target']}, and no alias")
        stated = schemes[t["scheme"]]
        scheme, parameters = SCHEMES.get((stated["name"], stated["version"])), stated["parameters"] + t["parameters"]
        unused = t["parameters"][scheme.of_tensor :] if scheme else []
        need(not any(unused), "AIB-E415", f"{name}: parameters {t['parameters']} in {stated['name']}")
        if scheme and t["dtype"] in BY_NAME:
            takes = t["dtype"] in scheme.dtypes and scheme.takes(parameters, t["shape"])
            need(takes, "AIB-E413", f"{name}: {t['dtype']} {t['shape']} in {stated['name']}")
            t["planes"] = [] if alias else scheme.planes(parameters, t["shape"], t["dtype"])
        else:  # as many as it says, of which nothing is known
            t["planes"] = [] if alias else [None] * t["plane_count"]
        need(t["plane_count"] == len(t["planes"]), "AIB-E401", f"{name}: {t['plane_count']} planes")
        need(t["first_plane"] == (first if t["planes"] else 0), "AIB-E401", f"{name}: first plane {t['first_plane']}")
        first += len(t["planes"])
    names = {t["name"] for t in tensors}
    need(len(names) == len(tensors), "AIB-E414", "two tensors have one name")


# 9. Plane table

ROLES = "values codes row_absmax absmax nested_absmax nested_offset scale zero_point codebook group_index outlier_index"
ROLES = dict(
    enumerate(
        (
            ROLES + " outlier_values tiles blocks tile_absmax global_scale bias column_order"
            " input_scale input_zero_point"
        ).split(),
        1,
    )
)


def check_planes(planes: list[Record], tensors: list[Record]) -> None:
    wanted = [(i, spec) for i, tensor in enumerate(tensors) for spec in tensor["planes"]]
    need(len(planes) == len(wanted), "AIB-E401", f"{len(planes)} planes, and the tensors have {len(wanted)}")
    seen = set()
    for plane, (tensor, spec) in zip(planes, wanted, strict=True):
        need(plane["tensor"] == tensor, "AIB-E412", f"plane of tensor {plane['tensor']}, not {tensor}")
        found = ROLES.get(plane["role"], role_name(plane["role"])), name_of(plane["dtype"])
        if spec is None:
            need((tensor, plane["role"]) not in seen, "AIB-E412", f"tensor {tensor}: two planes of role {found[0]}")
            seen.add((tensor, plane["role"]))
            bits = BY_NAME[found[1]].bits if found[1] in BY_NAME else 8
            whole = bits < 8 or plane["length"] % (bits // 8) == 0
            need(whole, "AIB-E405", f"tensor {tensor}, {found[0]}: {plane['length']} bytes")
            plane |= {"role": found[0], "dtype": found[1], "shape": [8 * plane["length"] // bits]}
            continue
        role, dtype, shape = spec
        need(found == (role, dtype), "AIB-E412", f"plane {found}, and tensor {tensor} has {role} of {dtype}")
        length = BY_NAME[dtype].nbytes(shape)
        need(plane["length"] == length, "AIB-E405", f"tensor {tensor}, {role}: {plane['length']} bytes, not {length}")
        plane |= {"role": role, "dtype": dtype, "shape": shape}


def name_of(dtype: int) -> str:
    return DTYPES[dtype].name if dtype in DTYPES else f"unknown_{dtype}"


def role_name(role: int) -> str:
    return f"private_{role:04x}" if role >= 0x8000 else f"unknown_{role}"


# 11. Documents


def check_documents(documents: list[Record]) -> None:
    names = [d["name"] for d in documents]
    need(names == sorted({*names}), "AIB-E703", "documents are not strictly increasing by name")
    lower = [name.lower() for name in names]
    folders = {name[:i] for name in lower for i, letter in enumerate(name) if letter == "/"}
    need(len({*lower}) == len(lower) and not folders & {*lower}, "AIB-E703", "names of documents clash")
    for document in documents:
        need(document["length"] <= 1 << 28, "AIB-E702", f"{document['name']}: {document['length']} bytes")


# 14. Verification


def verify(file: File) -> None:
    """The rules of level full; opening has checked the others."""
    data, leaves, strong = file.data, iter(file.leaves), iter(file.strong_leaves or ())
    for region in file.regions:
        for at in range(region.start, region.stop, LEAF):
            piece, leaf = data[at : min(at + LEAF, region.stop)], next(leaves)
            found = xxh3_64(piece)
            need(found == leaf, "AIB-E602", f"leaf at {at}: {found:016x}, not {leaf:016x}")
            if file.strong_leaves is not None:
                found, leaf = hashlib.sha256(piece).hexdigest(), next(strong)
                need(found == leaf, "AIB-E602", f"strong leaf at {at}: {found}, not {leaf}")
    position = file.regions[0].start
    pieces = sorted((p["offset"], p["length"]) for p in file.documents + file.planes)
    for offset, length in [*pieces, (len(data), 0)]:
        need(not any(data[position:offset]), "AIB-E603", f"padding from {position} to {offset} is not zero")
        position = max(position, offset + length)
    for tensor in file.tensors:
        scheme = file.schemes[tensor["scheme"]]
        if not tensor["flags"] & ALIAS and not file.unknown(tensor):
            parameters = scheme["parameters"] + tensor["parameters"]
            of(scheme).check(parameters, tensor["shape"], file.elements(tensor))
    for document in file.documents:
        if (name := document["name"].lower()).endswith(".json"):
            contents.check_json(name, file.piece(document))
        contents.check_kept(document["name"], file.piece(document), file.metadata)
    need(state_of(file.path) == file.state, "AIB-E802", "the file has changed while it was read")


# What the twins in fixtures/container/ say


def describe(file: File) -> Record:
    header, planes = file.header, [plane | {"data": file.piece(plane).hex()} for plane in file.planes]
    more = {name: lambda s: {"records": file.signatures[s["name"]]} for name in SIGNED}
    more |= {"strings": lambda s: {"text": file.pool}, "strong_leaves": lambda s: {"digests": file.strong_leaves}}
    more["unknown"] = lambda s: {"data": file.piece(s).hex()}
    return {
        "header": header | {"signature": header["signature"].hex(), "root": header["root"].hex()},
        "sections": [{"name": s["name"]} | s | more.get(s["name"], lambda s: {})(s) for s in file.sections],
        "metadata": file.metadata,
        "schemes": [row(s, "name version parameters") for s in file.schemes],
        "documents": [row(d, "name offset length") | {"data": file.piece(d).hex()} for d in file.documents],
        "tensors": [
            row(t, "name shape dtype scheme flags target first_plane plane_count")
            | {"alias_of": file.tensors[t["target"]]["name"] if t["flags"] & ALIAS else None}
            | {"transposed": bool(t["flags"] & TRANSPOSED)}
            | ({"parameters": t["parameters"]} if any(t["parameters"]) else {})
            | ({"unknown": why[0]} if (why := file.unknown(t)) else {"values": [in_json(x) for x in file.values(t)]})
            for t in file.tensors
        ],
        "planes": [row(plane, "tensor role dtype shape offset length data") for plane in planes],
        "leaves": [f"{leaf:016x}" for leaf in file.leaves],
    }


def row(record: Record, fields: str) -> Record:
    return {field: record[field] for field in fields.split()}


def main(arguments: Sequence[str]) -> int:
    paths = [argument for argument in arguments if argument != "--json"]
    if len(paths) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        file = File(paths[0])
        verify(file)
        if "--json" in arguments:
            print(json.dumps(describe(file), ensure_ascii=False))
        else:
            for tensor in file.tensors:
                scheme = file.schemes[tensor["scheme"]]["name"]
                print(tensor["name"], scheme, tensor["dtype"], tensor["shape"], sep="\t")
    except RuleError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
