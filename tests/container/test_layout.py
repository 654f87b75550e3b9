"""The bytes, checked against numbers that were written down by hand and not derived from the package."""

import construct
import numpy as np
import pytest
import xxhash

from aibit_format.container import layout
from aibit_format.container.layout import dtype_of, fields_of, struct_of

# Offset of every field, and the size of the record last.
OFFSETS = {
    "header": {
        "signature": 0, "major": 10, "minor": 12, "reserved": 14, "file_size": 16, "front_matter_length": 24,
        "incompatible": 32, "compatible": 40, "alignment": 48, "section_count": 52, "reserved2": 56, "root": 112,
        "": 128,
    },
    "section": {"kind": 0, "flags": 2, "count": 4, "offset": 8, "length": 16, "reserved": 24, "": 32},
    "metadata": {"key_length": 0, "type": 2, "is_array": 3, "count": 4, "length": 8, "": 16},
    "scheme": {"name_offset": 0, "name_length": 4, "version": 6, "parameters": 8, "": 32},
    "document": {"name_offset": 0, "name_length": 4, "reserved": 6, "offset": 16, "length": 24, "": 32},
    "tensor": {
        "name_offset": 0, "name_length": 4, "reserved": 6, "first_plane": 8, "target": 12, "flags": 16, "scheme": 18,
        "dtype": 20, "rank": 21, "plane_count": 22, "parameters": 24, "shape": 32, "": 96,
    },
    "plane": {"tensor": 0, "role": 4, "dtype": 6, "reserved": 7, "offset": 16, "length": 24, "": 32},
    "signature": {"algorithm": 0, "reserved": 2, "key": 8, "signature": 40, "": 104},
    "signed message": {"domain": 0, "key": 16, "digest": 48, "": 80},
    "detached signatures": {"magic": 0, "count": 12, "": 16},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(layout.RECORDS))
def test_offsets_and_sizes(name):
    record = layout.RECORDS[name]
    fields = list(fields_of(record))
    assert {f.name: f.offset for f in fields} | {"": record.sizeof()} == OFFSETS[name]
    assert [f.offset + f.size for f in fields] == [*(f.offset for f in fields[1:]), record.sizeof()]
    assert all(f.text for f in fields)
    dtype = dtype_of(record)
    assert {field: dtype.fields[field][1] for field in dtype.names} | {"": dtype.itemsize} == OFFSETS[name]


@pytest.mark.parametrize("name", sorted(layout.RECORDS))
def test_numpy_and_construct_read_the_same(name):
    record = layout.RECORDS[name]
    rows = np.random.default_rng(7).integers(0, 256, (50, record.sizeof()), np.uint8)
    for row, found in zip(rows, np.frombuffer(rows.tobytes(), dtype_of(record)), strict=True):
        parsed = record.parse(row.tobytes())
        for field in found.dtype.names:
            value = found[field]
            value = value.tobytes() if value.dtype.kind == "V" else value.tolist()
            expected = parsed[field]
            assert value == (list(expected) if isinstance(expected, construct.ListContainer) else expected), field
        assert record.build(parsed) == row.tobytes()


def test_struct_of_reads_the_same():
    data = bytes(range(layout.METADATA.sizeof()))
    parsed = layout.METADATA.parse(data)
    assert struct_of(layout.METADATA).unpack(data) == tuple(parsed[f.name] for f in fields_of(layout.METADATA))


def test_numbers_of_the_format():
    names = ("metadata", "schemes", "documents", "tensors", "planes", "strings", "leaves")
    assert layout.SIGNATURE.hex() == "8961696269740d0a1a0a"
    assert list(layout.SECTIONS.items()) == list(enumerate(names, 1))
    assert list(layout.ROLES.values()) == list(range(1, 21))
    assert layout.ALIGNMENTS == (64, 4096, 2097152) and layout.LEAF == 1048576 and layout.ALIGNMENT == 64
    assert layout.MAX_STRINGS == layout.MAX_TENSORS == 1 << 20 and layout.MAX_SIZE == (1 << 63) - 1


@pytest.mark.parametrize(
    ("code", "name"), [(2, "codes"), (77, "unknown_77"), (0x8001, "private_8001"), (0xFFFF, "private_ffff")]
)
def test_roles_and_their_names(code, name):
    assert (layout.role_code(name), layout.role_name(code)) == (code, name)


@pytest.mark.parametrize(
    "name", ["", "values2", "unknown_1", "unknown_40000", "private_7fff", "private_10000", "private_800G"]
)
def test_no_role_has_this_name(name):
    with pytest.raises(KeyError):
        layout.role_code(name)


def test_header_of_hello(request):
    data = (request.config.rootpath / "fixtures" / "container" / "hello.aibit").read_bytes()
    head = bytes.fromhex(
        "8961696269740d0a1a0a 0100 0000 0000"  # signature, version 1.0, reserved
        "1005000000000000 c003000000000000"  # file size 1296, front matter 960
        "0000000000000000 0000000000000000"  # features
        "40000000 07000000"  # alignment 64, seven sections
    ) + bytes(56)
    assert data[:112] == head
    assert data[112:128] == xxhash.xxh3_128(head + data[128:1088]).digest()
    assert data[112:128].hex() == "79a8274a222464278c197da49da90a51"
