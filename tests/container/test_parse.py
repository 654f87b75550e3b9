"""Parse files made by hand, byte by byte."""

import struct

import numpy as np
import xxhash

from aibit_format.file import reader, writer
from aibit_format.file.writer import Tensor
from aibit_format.schemes import make


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
