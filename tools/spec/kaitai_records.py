"""Make the records and enums of `spec/aibit.ksy` from the layout; `make_spec.py` puts them between its markers there.

A generated part ends in "# ", as the end marker stands in a comment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from aibit_format.container import layout
from aibit_format.dtypes import DTYPES

RECORDS = ("header", "section", "metadata", "scheme", "document", "tensor", "plane", "signature")  # those of a file
METADATA_TYPES = {1: "int", 2: "float", 3: "bool", 4: "string", 5: "bytes"}
ENUMS: dict[str, Mapping[int, str]] = {
    "section_kind": layout.SECTION_NAMES,
    "value_type": METADATA_TYPES,
    "dtype": {dtype.code: name for name, dtype in DTYPES.items()},
    "role": layout.ROLE_NAMES,
}
# Fields whose numbers have names, and fields that have one value in a file that can be read.
NAMED = {
    ("section", "kind"): "section_kind",
    ("metadata", "type"): "value_type",
    ("tensor", "dtype"): "dtype",
    ("plane", "role"): "role",
    ("plane", "dtype"): "dtype",
}
FIXED = {("header", "major"): layout.VERSION[0], ("header", "incompatible"): layout.KNOWN_INCOMPATIBLE}


def records() -> str:
    """A Kaitai type for each record, called `NAME_record`."""
    lines = []
    for name in RECORDS:
        struct = layout.RECORDS[name]
        lines += [f"  {name}_record:", f"    doc: {struct.sizeof()} bytes", "    seq:"]
        for field in layout.fields_of(struct):
            keys = [f"{key}: {value}" for key, value in _keys(name, field)]
            lines += [f"      - {keys[0]}", *(f"        {line}" for line in keys[1:])]
    return _joined(lines)


def _keys(record: str, field: layout.Field) -> Iterator[tuple[str, Any]]:
    yield "id", field.name
    kind, _, count = field.type.rstrip("]").partition("[")
    if (record, field.name) == ("header", "signature"):
        yield "contents", list(layout.SIGNATURE)
    elif field.name.startswith("reserved"):
        yield "contents", [0] * field.size
    elif kind == "bytes":
        yield "size", field.size
    else:
        yield "type", f"u{field.size // int(count or 1)}"
        if count:
            yield "repeat", "expr"
            yield "repeat-expr", count
    if (record, field.name) in NAMED:
        yield "enum", NAMED[record, field.name]
    if (record, field.name) in FIXED:
        yield "valid", FIXED[record, field.name]
    yield "doc", json.dumps(field.text)


def enums() -> str:
    lines = []
    for name, members in ENUMS.items():
        lines += [f"  {name}:", *(f"    {code}: {member}" for code, member in members.items())]
    return _joined(lines)


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines) + "# "
