"""Safetensors files are read or refused."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from aibit_format.errors import SourceError
from aibit_format.formats.safetensors.reader import SafetensorsFile
from aibit_format.schemes import make
from aibit_format.schemes.packing import unpack_plane


def raw(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too few"),
        (b"\1\2\3", "too few"),
        (struct.pack("<Q", 1 << 62) + b"{}", "header of"),
        (raw(b"{nope"), "not valid JSON"),
        (raw(b"[" * 100_000), "not valid JSON"),
        (raw([1]), "not a JSON object"),
        (raw(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
         "used twice"),
        (raw({"a": entry("Q9")}, bytes(8)), "unknown dtype"),
        (raw({"a": entry(shape=(3,))}, bytes(8)), "8 bytes, 12 for"),
        (raw({"a": entry(shape=(-1,), offsets=(0, -4))}, bytes(8)), r"\[-1\] is no list of sizes"),
        (raw({"a": entry(), "__metadata__": {"format": 0}}, bytes(8)), "__metadata__"),
        (raw({"a": entry(), "__metadata__": []}, bytes(8)), "__metadata__"),
        (raw({"a": entry(shape=(2.0,))}, bytes(8)), r"\[2.0\] is no list of sizes"),
        (raw({"a": entry(shape="2")}, bytes(8)), r"\['2'\] is no list of sizes"),
        (raw({"a": entry() | {"shape": ""}}, bytes(8)), "'' is no list of sizes"),
        (raw({"a": entry(offsets=(0, float("inf")))}, bytes(8)), r"\[0, inf\] is no list of sizes"),
        (raw({"a": entry(shape=(0, 1 << 62), offsets=(0, 0))}), "and 1152921504606846975 elements"),
        (raw({"a": entry(shape=[1] * 9, offsets=(0, 4))}, bytes(4)), "at most 8 dimensions"),
        (raw(json.dumps({"a": entry()}).encode("utf-16-le"), bytes(8)), "not valid JSON"),
        (raw({"a": entry(offsets=(0, 8))}, bytes(4)), "truncated"),
        (raw({"a": entry(), "b": entry()}, bytes(8)), "overlap or hole"),
        (raw({"a": entry(offsets=(4, 12))}, bytes(12)), "overlap or hole"),
        (raw({"a": entry()}, bytes(9)), "accounts for"),
        (raw({"a": entry("F4", (3, 3), (0, 5))}, bytes(5)), r"5 bytes, 4.5 for f4_e2m1\[3, 3\]"),
        (raw({"a": entry("F6_E3M2", (4,), (0, 4))}, bytes(4)), "4 bytes, 3 for f6_e3m2"),
        (raw({"a": 5}), "malformed"),
        (raw({"a": entry(shape=(10**4299, 10**4299))}, bytes(8)), "is no list of sizes"),
        (raw({"a": entry(shape=(1 << 62, 1 << 62))}, bytes(8)), "sizes are not negative"),
        (raw({"a": entry(shape=[1 << 62] * 100_000)}, bytes(8)), "at most 8 dimensions"),
        (raw({"a": entry(offsets=(0, 10**4299))}, bytes(8)), "is no list of sizes"),
        (raw({"a": {"dtype": "F32"}}), "missing field"),
    ],
)  # fmt: skip
def test_a_damaged_safetensors_file_is_refused(content, message, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        SafetensorsFile(str(path))


def test_a_good_safetensors_file_reads_as_views(tmp_path):
    arrays = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.zeros((0, 4), np.int8),
        "scalar": np.float64(3),
    }
    save_file({k: np.asarray(v) for k, v in arrays.items()}, tmp_path / "m.safetensors", {"a": "b"})
    file = SafetensorsFile(str(tmp_path / "m.safetensors"))
    for name, value in arrays.items():
        assert np.array_equal(file.read(name), value) and not file.read(name).flags.writeable
    assert file.metadata == {"a": "b"}


def test_rows_of_packed_elements_begin_with_a_byte(tmp_path):
    """In safetensors they follow one another closely: rows that end inside a byte are packed anew."""
    values = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)  # of 4 bits
    content = raw({"even": entry("F4", (3, 2), (0, 3)), "odd": entry("F4", (2, 3), (3, 6)),
                   "six": entry("F6_E2M3", (2, 4), (6, 12))},
                  bytes.fromhex("214365" * 2) + bytes(range(6)))  # fmt: skip
    (tmp_path / "m.safetensors").write_bytes(content)
    file = SafetensorsFile(str(tmp_path / "m.safetensors"))
    assert file.read("even").tobytes().hex() == "214365" and file.read("even").shape == (3, 1)
    assert file.read("odd").tobytes().hex() == "21035406" and file.read("odd").shape == (2, 2)
    assert np.array_equal(unpack_plane(file.read("odd"), "f4_e2m1", (2, 3)), values)
    assert file.read("six").tobytes() == bytes(range(6)) and file.nbytes("odd") == 3
    assert all(tensor.scheme == make(tensor.dtype) and tensor.offset is None for tensor in file.tensors.values())
