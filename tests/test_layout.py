"""The bytes, checked against numbers that were written down by hand and not derived from the package."""

import struct
from itertools import product

import construct
import numpy as np
import pytest
import xxhash

from aibit_format.container import layout
from aibit_format.container.layout import dtype_of, fields_of, struct_of
from aibit_format.container.placement import place
from aibit_format.file import reader, writer
from aibit_format.file.writer import Tensor
from aibit_format.schemes import make

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
        "dtype": 20, "rank": 21, "plane_count": 22, "reserved2": 24, "shape": 32, "": 96,
    },
    "plane": {"tensor": 0, "role": 4, "dtype": 6, "reserved": 7, "offset": 16, "length": 24, "": 32},
    "signature": {"algorithm": 0, "reserved": 2, "key": 8, "signature": 40, "": 104},
    "signed message": {"domain": 0, "key": 16, "content": 48, "": 80},
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
    assert list(layout.ROLES.values()) == list(range(1, 16))
    assert layout.ALIGNMENTS == (64, 4096, 2097152) and layout.LEAF == 1048576 and layout.ALIGNMENT == 64
    assert layout.MAX_STRINGS == layout.MAX_TENSORS == 1 << 20 and layout.MAX_SIZE == (1 << 63) - 1


@pytest.mark.parametrize(("code", "name"), [(2, "codes"), (0x8001, "private_8001"), (0xFFFF, "private_ffff")])
def test_roles_and_their_names(code, name):
    assert (layout.role_code(name), layout.role_name(code)) == (code, name)


@pytest.mark.parametrize("name", ["", "values2", "unknown_0", "private_7fff", "private_10000", "private_800G"])
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


def padded(data, alignment=64):
    return data + bytes(-len(data) % alignment)


def golden():
    """A file by hand: an int8 tensor [2, 3], an f16 vector, an alias of the first, a document, three entries."""
    metadata = (
        struct.pack("<HBBIQ", 5, 5, 1, 2, 11) + b"a.bin" + struct.pack("<I", 3) + b"\x00\x01\x02" + struct.pack("<I", 0)
        + struct.pack("<HBBIQ", 5, 2, 0, 1, 8) + b"b.num" + struct.pack("<d", 0.5)
        + struct.pack("<HBBIQ", 8, 4, 0, 1, 5) + b"c.text.x" + "né!\n".encode()
    )  # fmt: skip
    strings = b"f16\nint8\nnotes.txt\nw\nbias\ntied\n"
    schemes = struct.pack("<IHH24x", 0, 3, 1) + struct.pack("<IHH24x", 4, 4, 1)
    # The sections: table 7 x 32 = 224, padded to 256.
    sizes = [("metadata", 3, 90), ("schemes", 2, 64), ("documents", 1, 32), ("tensors", 3, 288), ("planes", 3, 96),
             ("strings", 0, 31), ("leaves", 2, 16)]  # fmt: skip
    offsets = [384, 512, 576, 640, 960, 1088, 1152]
    table = b"".join(
        struct.pack("<HHIQQ8x", kind, 1, count, offset, length)
        for kind, ((_, count, length), offset) in enumerate(zip(sizes, offsets, strict=True), 1)
    )
    # Front matter ends at 1216: a document of 70 bytes, then the data.
    document = bytes(range(0x41, 0x41 + 70))
    documents = struct.pack("<IH10xQQ", 9, 9, 1216, 70)
    tensors = (
        struct.pack("<IH2xIIHHBBH8x8Q", 19, 1, 0, 0, 0, 1, 12, 2, 2, 2, 3, 0, 0, 0, 0, 0, 0)
        + struct.pack("<IH2xIIHHBBH8x8Q", 21, 4, 2, 0, 0, 0, 10, 1, 1, 40, 0, 0, 0, 0, 0, 0, 0)
        + struct.pack("<IH2xIIHHBBH8x8Q", 26, 4, 0, 0, 1, 1, 12, 2, 0, 2, 3, 0, 0, 0, 0, 0, 0)
    )
    # 1216 + 70 -> 1344. Small planes first: codes (6 bytes), row_absmax (8); bulk at 64: values (80).
    planes = (
        struct.pack("<IHB9xQQ", 0, 2, 3, 1344, 6)
        + struct.pack("<IHB9xQQ", 0, 3, 12, 1408, 8)
        + struct.pack("<IHB9xQQ", 1, 1, 10, 1472, 80)
    )
    codes, absmax = bytes([127, 0, 0x81, 1, 2, 3]), struct.pack("<2f", 2.0, 0.25)
    values = struct.pack("<40e", *(i / 8 for i in range(40)))
    document_region = padded(document)
    data_region = padded(codes) + padded(absmax) + values
    leaves = struct.pack("<2Q", xxhash.xxh3_64_intdigest(document_region), xxhash.xxh3_64_intdigest(data_region))
    front = b"".join(map(padded, (table, metadata, schemes, documents, tensors, planes, strings, leaves)))
    head = struct.pack("<10sHHHQQQQII56x", b"\x89aibit\r\n\x1a\n", 1, 0, 0, 1552, 1088, 0, 0, 64, 7)
    root = xxhash.xxh3_128(head + front).digest()
    content = {
        "metadata": {"a.bin": [b"\x00\x01\x02", b""], "b.num": 0.5, "c.text.x": "né!\n"},
        "documents": {"notes.txt": document},
        "tensors": {
            Tensor("w", (2, 3), "f32", make("int8")): {
                "codes": np.frombuffer(codes, np.int8).reshape(2, 3), "row_absmax": np.frombuffer(absmax, "<f4"),
            },
            Tensor("bias", (40,), "f16", make("f16")): {"values": np.frombuffer(values, "<f2")},
            Tensor("tied", (2, 3), "f32", make("int8"), alias_of="w"): {},
        },
    }  # fmt: skip
    return head + root + front + document_region + data_region, content


def test_a_file_by_hand_is_what_the_writer_writes(tmp_path):
    data, content = golden()
    path = tmp_path / "golden.aibit"
    writer.write(path, content["tensors"], content["metadata"], content["documents"], alignment=64)
    assert path.read_bytes() == data


def test_a_file_by_hand_is_read():
    data, _ = golden()
    with reader.open(data, verify="full") as file:
        assert file.keys() == ["w", "bias", "tied"]
        assert file.metadata["c.text.x"] == "né!\n"
        assert file.info("tied").alias_of == "w"
        np.testing.assert_array_equal(file.dequantize("bias"), np.arange(40) / 8)
        third = np.float32(1 / 127)
        rows = np.float32([[127, 0, -127], [1, 2, 3]]) * np.float32([[2], [0.25]]) * third
        np.testing.assert_array_equal(file.dequantize("tied"), rows)
        info = file.tables
        assert info.header(info.front_matter()) + info.front_matter() == data[:1216]


def placed_as_the_text_says(front_matter_length, documents, planes, roles, alignment):
    """The pseudo-code of the specification, line by line."""

    def align(x, a):
        return (x + a - 1) // a * a

    def pack(lengths, start, a):
        position, end, offsets = start, start, []
        for length in lengths:
            offset = position
            end = offset + length
            position = offset + align(length, a)
            offsets.append(offset)
        return offsets, end

    documents_start = 128 + front_matter_length
    document_offsets, end = pack(documents, documents_start, 64)
    documents_end = align(end, 64)
    weights = (1, 2, 13, 14)
    is_bulk = [length >= alignment and (r in weights or r >= 0x8000) for length, r in zip(planes, roles, strict=True)]
    small = [i for i, bulk in enumerate(is_bulk) if not bulk]
    bulk = [i for i, bulk in enumerate(is_bulk) if bulk]
    small_offsets, pool_length = pack([planes[i] for i in small], 0, 64)
    bulk_offsets, bulk_end = pack([planes[i] for i in bulk], align(pool_length, alignment), alignment)
    data_length, step = (bulk_end, alignment) if bulk else (pool_length, 64)
    if data_length >= 67108864:
        step = max(step, 2097152)
    data_start = align(documents_end, step)
    offsets = dict(zip(small + bulk, small_offsets + bulk_offsets, strict=True))
    return (
        document_offsets, documents_end, data_start, data_start + data_length,
        [data_start + offsets[i] for i in range(len(planes))],
    )  # fmt: skip


LENGTHS = (0, 1, 63, 64, 65, 4095, 4096, 4097, 2097151, 2097152, 67108863, 67108864)


@pytest.mark.parametrize("alignment", [64, 4096, 2097152])
def test_placement_is_the_one_of_the_text(alignment):
    cases = [(), *((a,) for a in LENGTHS), *product(LENGTHS, repeat=2), *product((0, 3, 64, 5000), repeat=4)]
    cases += [(2097151,) * 32, (2097151,) * 33, (4032,) * 16645, (4095,) * 16384]  # around 64 MiB, all of them small
    for planes, documents in product(cases, ((), (0,), (5, 0, 200))):
        for roles in ([2] * len(planes), [(3, 1, 14, 15, 0x8000)[i % 5] for i in range(len(planes))]):
            found = place(
                960, np.array(documents, np.uint64), np.array(planes, np.uint64), np.array(roles, np.uint16), alignment
            )
            expected = placed_as_the_text_says(960, documents, planes, roles, alignment)
            assert (
                found.document_offsets.tolist(), found.documents_end, found.data_start, found.data_end,
                found.plane_offsets.tolist(),
            ) == expected, (planes, roles, documents)  # fmt: skip


def test_regions_and_their_leaves():
    leaf = 1048576
    lengths = np.array([5, leaf, leaf], np.uint64)
    placed = place(960, np.array([leaf], np.uint64), lengths, np.array([3, 2, 2], np.uint16), 64)
    documents, data = placed.regions
    assert (documents.start, documents.end, documents.first, documents.leaves) == (1088, 1088 + leaf, 0, 1)
    assert (data.start, data.end, data.first, data.leaves) == (1088 + leaf, 1088 + 64 + 3 * leaf, 1, 3)
    assert placed.leaves == 4
    assert [data.leaf(i) for i in range(3)] == [
        (data.start, data.start + leaf), (data.start + leaf, data.start + 2 * leaf), (data.start + 2 * leaf, data.end),
    ]  # fmt: skip
    assert placed.plane_offsets.tolist() == [data.start, data.start + 64, data.start + 64 + leaf]
    for offset, length, leaves in ((0, 5, [0]), (64, leaf, [0, 1]), (leaf - 1, 2, [0, 1]), (2 * leaf, 64, [2])):
        assert list(data.covering(data.start + offset, length)) == leaves
    assert placed.region(1088) == documents and placed.region(data.start) == data


def test_regions_without_bytes_have_no_leaves():
    placed = place(960, np.array([0], np.uint64), np.array([0], np.uint64), np.array([2], np.uint16), 2097152)
    assert [(r.start, r.end, r.leaves) for r in placed.regions] == [(1088, 1088, 0)] * 2
