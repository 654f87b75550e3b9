"""Inputs a reader must refuse: one row a break, named by its class in the list of inputs to be refused.

Every row is one good file broken in one place and sealed again, and the code the break must get. Each is opened mapped
from disk and from bytes, must get the same code both ways, quickly, and in little memory whatever the file claims.

Classes without a row here, and why:
    2 (truncations), 67 (flipped bits), 78 to 80, 83, 84: tests of their own below
    35 absurd layer or vocabulary counts, 71 JSON, 73 config keys, 74 chat templates, 76 external references,
        77 token ids: what documents say, which is no rule of the tables
    45 row not a multiple of the block, 60 codebooks, 63 nested state, 66 indices: no scheme here has them
    68 algorithm downgraded: there is one algorithm and no field that names it
    70 a demanded signature: tests/test_signing.py
    81 half-written output, 82 the writer's refusals: tests of the writer
"""

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
import tracemalloc

import craft
import numpy as np
import pytest
from craft import both, entry, flip, put, put_plane, put_section, put_tensor, put_values, rebuilt, renamed, swapped
from craft import with_metadata as metadata

import aibit_format
from aibit_format import layout
from aibit_format.errors import AibitError, FormatError
from aibit_format.metadata import decode, encode
from aibit_format.reader import LEVELS, File

GOOD = craft.good()
INT, FLOAT, BOOL, STRING, BYTES = 1, 2, 3, 4, 5
FRONT = craft.front_end(GOOD) - craft.HEAD
HUGE = (1 << 64) - 1


def eight(number, kind="<i8"):
    return np.array([number], kind).tobytes()


def byte_swapped(data):
    data = bytearray(data)
    header = craft.table(data, "header")
    for name in header.dtype.names[1:]:
        if header.dtype[name].kind == "u":
            header[name] = header[name].byteswap()
    return craft.reseal(data)


def without(name):
    return rebuilt(lambda entries: [e for e in entries if e[0] != craft.KINDS[name]])


def with_section(kind, flags=0, body=b"private"):
    return rebuilt(lambda entries: sorted([*entries, (kind, flags, 1, body)]))


def with_errors(**columns):
    """quantization.error.* metadata, right but for the columns given; None leaves one out."""
    names = ("tensor", "relative_rms", "largest", "signal_to_noise_db")
    right = dict(zip(names, (np.array([1]), np.ones(1), np.ones(1), np.ones(1)), strict=True)) | columns
    items = {f"quantization.error.{name}": values for name, values in right.items() if values is not None}
    return rebuilt(metadata=(len(items), encode(items)))


def names_beyond_the_cap(count):
    """Every tensor's name is 65535 bytes of the pool: names of gigabytes from a file of megabytes."""

    def breaks(_):
        data = bytearray(craft.good([(f"tensor.{i:05}", "f32", "f32", (), None) for i in range(count)], {}, {}))
        rows = craft.table(data, "tensor")
        rows["name_offset"], rows["name_length"] = 0, 65535
        return craft.reseal(data)

    return breaks


def total_wraps(_):
    """Lengths whose sum is 2^64: right on their own, small together if the sum is allowed to wrap."""
    data = bytearray(craft.good([(f"t{i:02}", "i8", "i8", (16,), None) for i in range(17)], {}, {}))
    lengths = [(1 << 60) - 1] * 16 + [16]
    craft.table(data, "tensor")["shape"][:, 0] = lengths
    craft.table(data, "plane")["length"] = lengths
    return craft.reseal(data)


def shape(*dims):
    return [*dims, *[0] * (8 - len(dims))]


def without_document(data):
    rows = craft.table(data, "document")
    names = craft.body(data, "strings")
    start, length = int(rows["name_offset"][0]), int(rows["name_length"][0])
    bodies = {"documents": rows[1:].copy(), "tensors": craft.table(data, "tensor").copy()}
    for table in bodies.values():
        table["name_offset"] -= length + 1
    return rebuilt(
        strings=(0, names[:start] + names[start + length + 1 :]),
        **{name: (len(table), table.tobytes()) for name, table in bodies.items()},
    )(data)


def lengths_with_line_feeds(data):
    data = bytearray(data)
    for record in ("scheme", "document", "tensor"):
        craft.table(data, record)["name_length"] += 1
    return craft.reseal(data)


def with_pool(change):
    """Another string pool, the records as they are."""
    return lambda data: rebuilt(strings=(0, change(craft.body(data, "strings"))))(data)


def scales(*values):
    array = np.ones(80, "<f4")
    array[: len(values)] = values
    return put_values("quant", "row_absmax", array)


def swapped_bodies(data):
    """Two planes of one size, each with the other's contents."""
    data = bytearray(data)
    offsets = craft.table(data, "plane")["offset"].tolist()
    i, j = offsets[craft.PLANE["first", "values"]], offsets[craft.PLANE["second", "values"]]
    data[i : i + 5120], data[j : j + 5120] = data[j : j + 5120], data[i : i + 5120]
    return bytes(data)


def dropped_plane(data):
    rows = craft.table(data, "plane")[:-1]
    return rebuilt(planes=(len(rows), rows.tobytes()))(data)


def added_plane(data):
    rows = craft.table(data, "plane")
    rows = np.concatenate([rows, rows[-1:]])
    return rebuilt(planes=(len(rows), rows.tobytes()))(data)


def moved(name, role, by):
    return put_plane(name, role, offset=lambda old: np.uint64(int(old) + by))


def gap(record, i, data):
    row = craft.table(data, record)[i]
    return int(row["offset"] + row["length"])


SMALL_FRONT = "AIB-E109"
# (class and what is broken, how, code)
STRUCTURE = [
    # Header
    ("1 empty file", lambda _: b"", "AIB-E101"),
    ("3 another format", lambda data: b"GGUF" + data[4:], "AIB-E102"),
    ("3 last byte of the signature", lambda data: data[:9] + b"\r" + data[10:], "AIB-E103"),
    ("4 CR LF made LF", lambda data: data.replace(b"\r\n", b"\n"), "AIB-E103"),
    ("4 LF made CR LF", lambda data: data.replace(b"\n", b"\r\n"), "AIB-E103"),
    ("4 eighth bit lost", lambda data: bytes(b & 0x7F for b in data), "AIB-E103"),
    ("5 version 0", put("header", major=0), "AIB-E104"),
    ("6 newer major version", put("header", major=2), "AIB-E104"),
    ("7 every field byte-swapped", byte_swapped, "AIB-E104"),
    ("7 fields but the version byte-swapped", both(byte_swapped, put("header", major=1)), "AIB-E107"),
    ("8 first incompatible bit", put("header", incompatible=1), "AIB-E105"),
    ("8 last incompatible bit", put("header", incompatible=1 << 63), "AIB-E105"),
    ("9 reserved", put("header", reserved=b"\0\1"), "AIB-E106"),
    ("9 reserved2", put("header", reserved2=b"\0" * 55 + b"\x80"), "AIB-E106"),
    ("9 section reserved", put_section("tensors", reserved=b"\1"), "AIB-E205"),
    ("9 section flags", put_section("tensors", flags=3), "AIB-E205"),
    ("9 section not critical", put_section("tensors", flags=0), "AIB-E205"),
    ("9 tensor reserved", put_tensor("norm", reserved=b"\1"), "AIB-E415"),
    ("9 tensor reserved2", put_tensor("norm", reserved2=b"\0" * 7 + b"\1"), "AIB-E415"),
    ("9 tensor flags", put_tensor("norm", flags=4), "AIB-E415"),
    ("9 plane reserved", put_plane("norm", "values", reserved=b"\1"), "AIB-E415"),
    ("9 document reserved", put("document", 2, reserved=b"\1"), "AIB-E415"),
    ("10 front matter 0", put("header", front_matter_length=0), SMALL_FRONT),
    ("10 front matter below the least", put("header", front_matter_length=192), SMALL_FRONT),
    ("10 front matter not a multiple", put("header", front_matter_length=FRONT + 1), SMALL_FRONT),
    ("10 front matter past the end", put("header", front_matter_length=1 << 20), SMALL_FRONT),
    ("10 front matter 2^63", put("header", front_matter_length=1 << 63), SMALL_FRONT),
    ("10 front matter 2^64-64", put("header", front_matter_length=HUGE - 63), SMALL_FRONT),
    ("10 front matter 2^64-1", put("header", front_matter_length=HUGE), SMALL_FRONT),
    ("10 front matter too short for the sections", put("header", front_matter_length=FRONT - 64), "AIB-E208"),
    ("10 front matter longer than the sections", put("header", front_matter_length=FRONT + 64), "AIB-E208"),
    ("11 root", flip(120), "AIB-E111"),
    ("11 front matter", flip(1000), "AIB-E111"),
    ("12 one byte less", lambda data: data[:-1], "AIB-E108"),
    ("12 a ZIP appended", lambda data: data + b"PK\5\6" + bytes(18), "AIB-E108"),
    ("12 bytes appended and declared",
     lambda data: put("header", file_size=len(data) + 64)(data) + bytes(64), "AIB-E108"),
    ("12 size 0 declared", put("header", file_size=0), "AIB-E108"),
    ("12 size 2^64-1 declared", put("header", file_size=HUGE), "AIB-E108"),
    ("13 sections overlap", put_section("tensors", offset=lambda old: old - np.uint64(64)), "AIB-E208"),
    ("13 section unaligned", put_section("tensors", offset=lambda old: old + np.uint64(1)), "AIB-E208"),
    ("13 section wraps", put_section("tensors", offset=HUGE - 63), "AIB-E208"),
    ("13 section length wraps", put_section("strings", length=HUGE), "AIB-E208"),
    ("13 sections out of order", swapped("section", 2, 3), "AIB-E201"),
    ("13 sections placed out of order", swapped("section", 2, 3, "offset"), "AIB-E208"),
    ("13 no sections", put("header", section_count=0), "AIB-E110"),
    ("13 65 sections", put("header", section_count=65), "AIB-E110"),
    ("13 2^32-1 sections", put("header", section_count=(1 << 32) - 1), "AIB-E110"),
    ("14 section twice", with_section(craft.KINDS["tensors"], 1), "AIB-E201"),
    ("14 required section missing", both(with_section(99), without("leaves")), "AIB-E201"),
    ("14 unknown critical section", with_section(99, 1), "AIB-E202"),
    ("14 unknown critical private section", with_section(0x8001, 1), "AIB-E202"),
    ("14 section of kind 0", with_section(0), "AIB-E201"),
    # Counts and strings
    *[(f"15 2^32-1 {name}", put_section(name, count=(1 << 32) - 1), code) for name, code in (
        ("metadata", "AIB-E204"), ("schemes", "AIB-E203"), ("documents", "AIB-E203"), ("tensors", "AIB-E203"),
        ("planes", "AIB-E203"), ("strings", "AIB-E203"), ("leaves", "AIB-E601"))],
    ("15 most metadata allowed", put_section("metadata", count=layout.MAX_METADATA), "AIB-E203"),
    ("15 too many documents", rebuilt(documents=(4097, bytes(4097 * 32))), "AIB-E204"),
    ("15 too many schemes", rebuilt(schemes=(4097, bytes(4097 * 32))), "AIB-E204"),
    ("16 a tensor fewer than records", put_section("tensors", count=len(craft.NAMES) - 1), "AIB-E203"),
    ("16 a document more than records", put_section("documents", count=4), "AIB-E203"),
    ("16 a metadata entry fewer", put_section("metadata", count=len(craft.METADATA) - 1), "AIB-E203"),
    ("16 a metadata entry more", put_section("metadata", count=len(craft.METADATA) + 1), "AIB-E203"),
    ("17 tensor name past the pool", put_tensor("norm", name_length=255), "AIB-E210"),
    ("17 tensor name at 2^32-1", put_tensor("norm", name_offset=(1 << 32) - 1), "AIB-E210"),
    ("17 scheme name past the pool", put("scheme", 0, name_offset=1 << 31), "AIB-E210"),
    ("17 document name past the pool", put("document", 2, name_length=255), "AIB-E210"),
    ("17 metadata key past the section", metadata(entry(b"a.b", INT, eight(1), key_length=65535)), "AIB-E301"),
    ("17 metadata value of 2^63", metadata(entry(b"a.b", STRING, b"x", length=1 << 63)), "AIB-E301"),
    ("17 metadata value of 2^64-1", metadata(entry(b"a.b", STRING, b"x", length=HUGE)), "AIB-E301"),
    ("17 item past its value", metadata(entry(b"a.b", STRING, b"\xff\xff\xff\xffx", 1)), "AIB-E305"),
    ("17 bytes after the last item", metadata(entry(b"a.b", STRING, b"\0\0\0\0x", 1)), "AIB-E305"),
    ("17 names share bytes", put_tensor("norm", name_offset=0), "AIB-E212"),
    ("17 pool with bytes nobody names", with_pool(lambda pool: pool + b"x"), "AIB-E212"),
    ("17 pool with a line nobody names", with_pool(lambda pool: pool + b"x\n"), "AIB-E212"),
    ("17 pool with an empty line", with_pool(lambda pool: pool + b"\n"), "AIB-E212"),
    ("17 pool without the last line feed", with_pool(lambda pool: pool[:-1]), "AIB-E212"),
    ("17 NUL for a line feed", with_pool(lambda pool: pool.replace(b"first\n", b"first\0")), "AIB-E212"),
    ("17 NUL for the last line feed", with_pool(lambda pool: pool[:-1] + b"\0"), "AIB-E212"),
    ("17 NUL for every line feed", with_pool(lambda pool: pool.replace(b"\n", b"\0")), "AIB-E212"),
    ("17 CR LF for every line feed", with_pool(lambda pool: pool.replace(b"\n", b"\r\n")), "AIB-E213"),
    ("17 two names joined", with_pool(lambda pool: pool.replace(b"first\nquant", b"first.quant")), "AIB-E212"),
    ("17 name split in two", with_pool(lambda pool: pool.replace(b"quant.twin", b"quant\ntwin")), "AIB-E214"),
    ("17 name split in two, and two joined",
     with_pool(lambda pool: pool.replace(b"quant.twin\n", b"quant\ntwin.")), "AIB-E214"),
    ("17 length with the line feed", put_tensor("norm", name_length=5), "AIB-E214"),
    ("17 every length with the line feed", lengths_with_line_feeds, "AIB-E213"),
    ("18 metadata text", metadata(entry(b"a.b", STRING, b"\xff")), "AIB-E206"),
    ("18 overlong form", metadata(entry(b"a.b", STRING, b"\xc0\x80")), "AIB-E206"),
    ("18 surrogate", metadata(entry(b"a.b", STRING, b"\xed\xa0\x80")), "AIB-E206"),
    ("18 metadata text in an array", metadata(entry(b"a.b", STRING, b"\1\0\0\0\xff", 1)), "AIB-E206"),
    ("18 metadata key", metadata(entry(b"a.\xff", INT, eight(1))), "AIB-E302"),
    ("18 tensor name", renamed("tensor", 0, b"fir\xff"), "AIB-E214"),
    ("18 document name", renamed("document", 0, b"config\xff"), "AIB-E701"),
    ("18 scheme name", renamed("scheme", 4, b"int8\xff"), "AIB-E213"),
    ("19 NUL in metadata", metadata(entry(b"a.b", STRING, b"a\0b")), "AIB-E207"),
    ("19 escape in metadata", metadata(entry(b"a.b", STRING, b"\x1b[2J")), "AIB-E207"),
    ("19 delete in a metadata array", metadata(entry(b"a.b", STRING, b"\1\0\0\0\x7f", 1)), "AIB-E207"),
    ("19 NUL in a tensor name", renamed("tensor", 0, b"fir\0st"), "AIB-E214"),
    ("19 line feed in a tensor name", renamed("tensor", 0, b"fir\nst"), "AIB-E214"),
    ("19 line feed in a scheme name", renamed("scheme", 4, b"int8\n"), "AIB-E213"),
    ("19 newline in a document name", renamed("document", 0, b"config\n"), "AIB-E701"),
    ("19 newline after a key", metadata(entry(b"a.b\n", INT, eight(1))), "AIB-E302"),
    ("20 empty tensor name", renamed("tensor", 0, b""), "AIB-E211"),
    ("20 empty document name", renamed("document", 0, b""), "AIB-E211"),
    ("20 empty key", metadata(entry(b"", INT, eight(1))), "AIB-E302"),
    ("21 tensor name of 256", renamed("tensor", 0, b"a" * 256), "AIB-E211"),
    ("21 key of 256", metadata(entry(b"a." + b"b" * 254, INT, eight(1))), "AIB-E302"),
    *[(f"22 tensor name {name!r}", renamed("tensor", 0, name), "AIB-E214")
      for name in (b"fir st", b'"', b"'", b"\\", "caf\u00e9".encode())],
    *[(f"22 key {key!r}", metadata(entry(key, INT, eight(1))), "AIB-E302")
      for key in (b"plain", b"A.b", b"a.", b".a", b"a-b.c", b"a..b", b"1.a")],
    ("22 scheme name", renamed("scheme", 4, b"Int8"), "AIB-E213"),
    ("23 reserved name", renamed("tensor", 0, b"__metadata__"), "AIB-E214"),
    # Metadata
    *[(f"24 type {kind}", metadata(entry(b"a.b", kind, eight(0))), "AIB-E304") for kind in (0, 6, 128, 255)],
    ("25 number of parameters as text", metadata(entry(b"model.parameters", STRING, b"15374")), "AIB-E309"),
    ("25 number of parameters as an array", metadata(entry(b"model.parameters", INT, eight(15374), 1)), "AIB-E309"),
    ("25 number of parameters as a bool",
     lambda _: metadata(entry(b"model.parameters", BOOL, b"\1"))(craft.good([TENSOR_OF_ONE], {}, {})), "AIB-E309"),
    ("25 model type as bytes", metadata(entry(b"model.type", BYTES, b"llama")), "AIB-E309"),
    ("25 tensor numbers as floats", with_errors(tensor=np.array([1.5])), "AIB-E309"),
    ("26 key twice", metadata(*[entry(b"a.b", INT, eight(1))] * 2), "AIB-E303"),
    ("26 keys out of order", metadata(entry(b"a.c", INT, eight(1)), entry(b"a.b", INT, eight(1))), "AIB-E303"),
    ("27 bool 2", metadata(entry(b"a.b", BOOL, b"\2")), "AIB-E306"),
    ("27 bool 255 in an array", metadata(entry(b"a.b", BOOL, b"\0\1\xff", 1, 3)), "AIB-E306"),
    ("28 bytes of an array wrap 32 bits", metadata(entry(b"a.b", INT, eight(1), 1, 0x20000001)), "AIB-E305"),
    ("28 array of 2^32-1", metadata(entry(b"a.b", FLOAT, eight(1), 1, (1 << 32) - 1)), "AIB-E305"),
    ("28 single value of count 2", metadata(entry(b"a.b", INT, eight(1) * 2, 0, 2)), "AIB-E305"),
    ("28 single value of count 0", metadata(entry(b"a.b", STRING, b"", 0, 0)), "AIB-E305"),
    ("29 2^32-1 empty strings", metadata(entry(b"a.b", STRING, bytes(64), 1, (1 << 32) - 1)), "AIB-E305"),
    ("29 2^32-1 strings in no bytes", metadata(entry(b"a.b", BYTES, b"", 1, (1 << 32) - 1)), "AIB-E305"),
    ("29 one empty string too many", metadata(entry(b"a.b", STRING, bytes(16), 1, 5)), "AIB-E305"),
    *[(f"29 empty array of type {kind}", metadata(entry(b"a.b", kind, b"", 1, 0)), "AIB-E308")
      for kind in (FLOAT, BOOL, STRING, BYTES)],
    ("30 array of arrays", metadata(entry(b"a.b", INT, eight(1), 2)), "AIB-E305"),
    ("30 array type", metadata(entry(b"a.b", 9, eight(1), 1)), "AIB-E304"),
    ("31 arrays 10,000 deep", metadata(entry(b"a.b", 9, b"\x09\1\0\0\0" * 10_000, 1)), "AIB-E304"),
    *[(f"32 {number}", metadata(entry(b"a.b", FLOAT, eight(number, "<f8"))), "AIB-E307")
      for number in (np.nan, np.inf, -np.inf)],
    ("32 NaN in an array", metadata(entry(b"a.b", FLOAT, eight(1, "<f8") + eight(np.nan, "<f8"), 1, 2)), "AIB-E307"),
    ("33 a column of errors missing", with_errors(largest=None), "AIB-E310"),
    ("33 architecture without config.json",
     both(without_document, metadata(entry(b"model.architecture", STRING, b"LlamaForCausalLM"))), "AIB-E310"),
    ("34 number of parameters", metadata(entry(b"model.parameters", INT, eight(15375))), "AIB-E310"),
    ("34 errors of unequal lengths", with_errors(largest=np.ones(2)), "AIB-E310"),
    ("34 errors of no tensor", with_errors(tensor=np.array([len(craft.NAMES)])), "AIB-E310"),
    ("34 errors of tensor -1", with_errors(tensor=np.array([-1])), "AIB-E310"),
    # Tensors
    ("36 duplicate name", renamed("tensor", 2, b"first"), "AIB-E414"),
    ("37 rank 9", put_tensor("norm", rank=9), "AIB-E402"),
    ("37 rank 255", put_tensor("norm", rank=255), "AIB-E402"),
    ("37 dimension beyond the rank", put_tensor("norm", rank=0), "AIB-E402"),
    ("38 dimension 2^64-1", put_tensor("norm", shape=shape(HUGE)), "AIB-E403"),
    ("38 dimension 2^63", put_tensor("norm", shape=shape(1 << 63)), "AIB-E403"),
    ("38 dimension 2^64-1 beside 0", put_tensor("nothing", shape=shape(0, HUGE)), "AIB-E403"),
    ("38 dimension whose bytes wrap, beside 0", put_tensor("nothing", shape=shape(0, 1 << 62)), "AIB-E403"),
    ("39 product wraps to 0", put_tensor("norm", rank=2, shape=shape(1 << 32, 1 << 32)), "AIB-E403"),
    ("39 product wraps to the right one", put_tensor("norm", rank=2, shape=shape(8, (1 << 61) + 1)), "AIB-E403"),
    ("39 product wraps, beside 0", put_tensor("nothing", rank=3, shape=shape(1 << 40, 1 << 40, 0)), "AIB-E403"),
    ("40 bytes wrap to 0", put_tensor("norm", shape=shape(1 << 63)), "AIB-E403"),
    ("40 bytes wrap to the right ones", put_tensor("norm", shape=shape((1 << 63) + 8)), "AIB-E403"),
    ("41 padding wraps", both(put_tensor("mask", shape=shape((1 << 60) - 1)),
                              put_plane("mask", "values", length=(1 << 60) - 1)), "AIB-E408"),
    ("42 total wraps", total_wraps, "AIB-E408"),
    ("43 plane a byte short", put_plane("first", "values", length=5119), "AIB-E405"),
    ("43 plane of 0", put_plane("first", "values", length=0), "AIB-E405"),
    ("43 plane of 2^64-1", put_plane("first", "values", length=HUGE), "AIB-E405"),
    ("43 shape of more", put_tensor("norm", shape=shape(9)), "AIB-E405"),
    ("44 dtype 0", put_tensor("norm", dtype=0), "AIB-E404"),
    ("44 dtype 17", put_tensor("norm", dtype=17), "AIB-E404"),
    ("44 plane dtype 255", put_plane("norm", "values", dtype=255), "AIB-E412"),
    ("44 plane role 0", put_plane("norm", "values", role=0), "AIB-E412"),
    ("44 plane role 65535", put_plane("norm", "values", role=65535), "AIB-E412"),
    ("44 unknown scheme", renamed("scheme", 4, b"int9"), "AIB-E406"),
    ("44 scheme named like a module", renamed("scheme", 4, b"os:system"), "AIB-E406"),
    ("44 scheme version 0", put("scheme", 4, version=0), "AIB-E406"),
    ("44 scheme version 2", put("scheme", 4, version=2), "AIB-E406"),
    ("44 scheme index", put_tensor("norm", scheme=5), "AIB-E416"),
    ("44 scheme index 65535", put_tensor("norm", scheme=65535), "AIB-E416"),
    ("47 plane before the data", put_plane("norm", "values", offset=0), "AIB-E408"),
    ("47 plane past the end", put_plane("norm", "values", offset=1 << 20), "AIB-E408"),
    ("47 plane at 2^64-64", put_plane("norm", "values", offset=HUGE - 63), "AIB-E408"),
    ("47 end of the plane wraps", put_plane("first", "values", offset=HUGE - 5119), "AIB-E408"),
    ("47 document in the front matter", put("document", 0, offset=128), "AIB-E704"),
    ("47 document at 2^64-64", put("document", 0, offset=HUGE - 63), "AIB-E704"),
    ("48 small plane misaligned", moved("norm", "values", -1), "AIB-E409"),
    ("48 bulk plane misaligned", moved("second", "values", 64), "AIB-E409"),
    *[(f"49 alignment {n}", put("header", alignment=n), "AIB-E107") for n in (0, 1, 63, 65, 8192, 1 << 30, 1 << 31)],
    ("49 another allowed alignment", put("header", alignment=64), "AIB-E410"),
    ("50 planes overlap", put_plane("second", "values",
                                    offset=craft.table(GOOD, "plane")["offset"][0]), "AIB-E410"),
    ("50 plane over the small ones", put_plane("first", "values", offset=12288), "AIB-E410"),
    ("51 hole", moved("scalar", "values", 64), "AIB-E410"),
    ("52 padding of the section table", flip(craft.HEAD + 7 * 32, seal=True), "AIB-E209"),
    ("52 padding of a section", flip(lambda data: gap("section", 5, data), seal=True), "AIB-E209"),
    ("53 alias of itself", put_tensor("tied", target=craft.TENSOR["tied"]), "AIB-E411"),
    ("53 alias of a later one", put_tensor("tied", target=craft.TENSOR["norm"]), "AIB-E411"),
    ("53 alias of nothing", put_tensor("tied", target=(1 << 32) - 1), "AIB-E411"),
    ("53 circle", both(put_tensor("tied", target=craft.TENSOR["tied.again"]),
                       put_tensor("tied.again", target=craft.TENSOR["tied"])), "AIB-E411"),
    ("53 alias of an alias", put_tensor("tied.again", target=craft.TENSOR["tied"]), "AIB-E411"),
    ("53 alias of another shape", put_tensor("tied", shape=shape(64, 40)), "AIB-E411"),
    ("53 alias of another scheme", put_tensor("tied", target=craft.TENSOR["quant"]), "AIB-E411"),
    ("53 alias transposed", put_tensor("tied", flags=3), "AIB-E411"),
    ("53 alias with a first plane", put_tensor("tied", first_plane=3), "AIB-E401"),
    ("53 alias with planes", put_tensor("tied", plane_count=1), "AIB-E401"),
    ("53 target without being an alias", put_tensor("norm", target=1), "AIB-E411"),
    ("54 planes in another order", swapped("plane", 0, 3, "offset"), "AIB-E410"),
    ("54 plane records in another order", swapped("plane", 1, 2), "AIB-E412"),
    ("54 schemes in another order", swapped("scheme", 0, 1, "version", "parameters", "name_length", "name_offset"),
     "AIB-E212"),
    ("54 schemes not sorted", both(renamed("scheme", 2, b"f64"), renamed("scheme", 1, b"f8_e4m3")), "AIB-E416"),
    ("54 scheme twice", renamed("scheme", 2, b"f32"), "AIB-E416"),
    ("54 scheme nobody uses", put_tensor("norm", scheme=3), "AIB-E416"),
    ("54 documents not sorted", renamed("document", 0, b"zonfig.json"), "AIB-E703"),
    ("54 tensor's first plane", put_tensor("norm", first_plane=0), "AIB-E401"),
    # Quantization
    ("55 a plane missing", dropped_plane, "AIB-E401"),
    ("55 a plane too many", added_plane, "AIB-E401"),
    ("55 plane count 65535", put_tensor("norm", plane_count=65535), "AIB-E401"),
    ("55 no scales", put_tensor("quant", plane_count=1), "AIB-E401"),
    ("55 plane of another tensor", put_plane("quant", "row_absmax", tensor=0), "AIB-E412"),
    ("56 a scale too few", put_plane("quant", "row_absmax", length=316), "AIB-E405"),
    ("56 one scale", put_plane("quant", "row_absmax", length=4), "AIB-E405"),
    ("57 scales as f16", put_plane("quant", "row_absmax", dtype=10), "AIB-E412"),
    ("57 codes as u8", put_plane("quant", "codes", dtype=2), "AIB-E412"),
    ("57 roles swapped", swapped("plane", 1, 2, "role"), "AIB-E412"),
    ("59 a parameter where there is none", put("scheme", 4, parameters=[64, 0, 0, 0, 0, 0]), "AIB-E407"),
    ("59 a late parameter", put("scheme", 3, parameters=[0, 0, 0, 0, 0, 1]), "AIB-E407"),
    ("61 int8 of integers", put_tensor("quant", dtype=3), "AIB-E413"),
    ("61 f16 in scheme bf16", put_tensor("norm", dtype=10), "AIB-E413"),
    ("62 int8 of rank 1", put_tensor("quant", rank=1, shape=shape(5120)), "AIB-E413"),
    ("62 int8 of rank 0", put_tensor("quant", rank=0, shape=shape()), "AIB-E413"),
    ("62 rows and columns exchanged", put_tensor("quant", shape=shape(64, 80)), "AIB-E405"),
    ("64 logical dtype outside the list", put_tensor("quant", dtype=200), "AIB-E404"),
    ("64 int8 of f64", put_tensor("quant", dtype=13), "AIB-E413"),
    ("65 scales not the rows", put_tensor("quant", shape=shape(40, 128)), "AIB-E405"),
    # Integrity
    ("67 bit of the header", flip(20), "AIB-E108"),
    ("67 bit of the leaf table", flip(lambda data: int(craft.section(data, "leaves")["offset"])), "AIB-E111"),
    ("68 a leaf too few", lambda data: rebuilt(leaves=(1, craft.leaf_table(data)[:8]))(data), "AIB-E601"),
    ("68 no leaves", rebuilt(leaves=(0, b"")), "AIB-E601"),
    ("68 a leaf too many", lambda data: rebuilt(leaves=(3, craft.leaf_table(data) + bytes(8)))(data), "AIB-E601"),
    ("69 equal planes swapped in the table", swapped("plane", 0, 3, "offset"), "AIB-E410"),
    # Documents: what the container knows of them
    ("72 document over the cap", put("document", 2, length=layout.MAX_DOCUMENT + 1), "AIB-E702"),
    ("72 document of 2^64-1", put("document", 2, length=HUGE), "AIB-E702"),
    *[(f"75 document {name!r}", renamed("document", 0, name), "AIB-E701") for name in (
        b"/etc/passwd", b"../config", b"a/../b", b"a/./b", b"a//b", b"a/", b"a\\b", b"c:config", b"nul", b"a/COM1.txt",
        b".hidden", b"config.", b"a/b./c", b"~/x", b"-rf")],
    ("75 case clash", renamed("document", 0, b"Empty.txt"), "AIB-E703"),
    ("75 document that is also a folder", renamed("document", 1, b"notes"), "AIB-E703"),
]  # fmt: skip

# Damage that structure cannot see: every one of these opens, and a full verification refuses it.
FULL = [
    ("46 bool of 2", put_values("mask", "values", np.array([0, 1, 2, 0, 1], "u1")), "AIB-E502"),
    ("52 padding after a document",
     flip(lambda data: gap("document", 0, data), leaves=True), "AIB-E603"),
    ("52 padding after a plane",
     flip(lambda data: gap("plane", craft.PLANE["mask", "values"], data), leaves=True), "AIB-E603"),
    ("52 padding between documents and data", flip(lambda data: gap("document", 2, data) // 64 * 64 + 64), "AIB-E603"),
    ("58 scale NaN", scales(np.nan), "AIB-E502"),
    ("58 scale infinite", scales(1, np.inf), "AIB-E502"),
    ("58 scale negative", scales(1, 2, -1), "AIB-E502"),
    ("58 scale minus zero", scales(-0.0), "AIB-E502"),
    ("67 bit of a document", flip(lambda data: int(craft.table(data, "document")["offset"][0])), "AIB-E602"),
    ("67 bit of a plane", flip(lambda data: int(craft.table(data, "plane")["offset"][0])), "AIB-E602"),
    ("67 last bit of the file", flip(-1), "AIB-E602"),
    ("69 equal planes swapped", swapped_bodies, "AIB-E602"),
]

TENSOR_OF_ONE = ("one", "f32", "f32", (), None)


def named(rows):
    return [pytest.param(*row[1:], id=row[0].replace(" ", "-")) for row in rows]


@pytest.fixture(scope="module", autouse=True)
def modules_are_loaded():
    """So that the memory measured below is what a file takes."""
    File(GOOD, "full")


@pytest.fixture(params=["mapped", "bytes"])
def source(request, tmp_path):
    """Bytes as a source to open: the bytes, or a file that holds them."""

    def put_down(data):
        if request.param == "bytes":
            return data
        path = tmp_path / "m.aibit"
        path.write_bytes(data)
        return str(path)

    return put_down


def code_of(source, verify="structure"):
    """The code that opening gets, or None; any exception but FormatError is the test's failure."""
    try:
        File(source, verify)
    except FormatError as error:
        return error.code
    return None


def test_the_good_file_is_good_at_every_level(source):
    for level in LEVELS:
        assert code_of(source(GOOD), level) is None


def test_taking_the_good_file_apart_and_putting_it_together_changes_nothing():
    assert craft.reseal(GOOD, leaves=True) == GOOD
    assert rebuilt()(GOOD) == GOOD
    assert renamed("tensor", 0, b"first")(GOOD) == GOOD


@pytest.mark.parametrize(("breaks", "code"), named(STRUCTURE))
def test_refused(breaks, code, source):
    bad = breaks(GOOD)
    assert bad != GOOD
    where = source(bad)
    started = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            File(where)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code == code, str(caught.value)
    assert peak < (4 << 20) + 4 * len(bad)
    assert time.perf_counter() - started < 5
    # The same verdict whatever was asked for.
    assert code_of(where, "full") == code


@pytest.mark.parametrize(("breaks", "code"), named(FULL))
def test_refused_by_a_full_verification(breaks, code, source):
    where = source(breaks(GOOD))
    with File(where) as file, pytest.raises(FormatError) as caught:
        file.verify()
    assert caught.value.code == code, str(caught.value)
    assert code_of(where, "full") == code


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, -0.0])
def test_a_bad_scale_is_refused_by_dequantize_and_names_its_tensor(value, source):
    file = File(source(scales(1, value)(GOOD)))
    with pytest.raises(FormatError) as caught:
        file.dequantize("quant")
    assert (caught.value.code, caught.value.tensor, caught.value.plane) == ("AIB-E502", "quant", "row_absmax")
    assert np.isfinite(file.dequantize("quant.twin")).all()


def test_names_far_over_the_cap_cost_nothing(source):
    """Six thousand names of 65535 bytes, 400 MB together, all in the same 90 KB of the pool."""
    bad = names_beyond_the_cap(6000)(GOOD)
    where = source(bad)
    tracemalloc.start()
    try:
        assert code_of(where) == "AIB-E211"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (4 << 20) + 4 * len(bad)


def test_an_extra_section_that_is_not_critical_is_kept_as_it_is(source):
    data = both(with_section(9), with_section(0x8001))(GOOD)
    check_accepted(data, File(source(data), "full"))


def test_a_newer_minor_version_and_compatible_features_open(source):
    assert code_of(source(put("header", minor=7, compatible=HUGE)(GOOD)), "full") is None


def with_package():
    """The environment in which another Python finds what this one runs."""
    folder = os.path.dirname(__file__)
    return os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(aibit_format.__path__[0]), folder])}


# 83: rules are no assertions


def print_codes():
    """What python -O runs: the code of every row."""
    for _, breaks, _ in STRUCTURE:
        sys.stdout.write(f"{code_of(breaks(GOOD))}\n")
    for _, breaks, _ in FULL:
        sys.stdout.write(f"{code_of(breaks(GOOD), 'full')}\n")


def test_83_python_that_skips_assertions_refuses_the_same():
    code = "import test_hostile; test_hostile.print_codes()"
    result = subprocess.run(
        [sys.executable, "-O", "-c", code], env=with_package(), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    found = result.stdout.split()
    rows = STRUCTURE + FULL
    assert len(found) == len(rows)
    assert {row[0]: at for row, at in zip(rows, found, strict=True) if at != row[2]} == {}


# 2: truncations


def test_2_every_truncation_of_header_and_front_matter_is_refused(tmp_path):
    path = tmp_path / "m.aibit"
    path.write_bytes(GOOD)
    for length in range(craft.front_end(GOOD), -1, -1):
        os.truncate(path, length)
        expected = "AIB-E101" if length < craft.HEAD else "AIB-E108"
        assert code_of(str(path)) == code_of(GOOD[:length]) == expected, length


@pytest.mark.parametrize("declared", [False, True])
def test_2_every_truncation_of_the_body_is_refused(declared):
    for length in [*range(craft.front_end(GOOD), len(GOOD), 211), len(GOOD) - 1]:
        cut = GOOD[:length]
        assert code_of(put("header", file_size=length)(cut) if declared else cut) in {"AIB-E108", "AIB-E408"}, length


# 78 to 80: files that change, are none, or claim much


@pytest.mark.parametrize("change", ["truncated", "grown", "rewritten"])
def test_78_a_file_changed_after_it_was_opened_fails_to_verify(change, tmp_path):
    path = tmp_path / "m.aibit"
    path.write_bytes(GOOD)
    file = File(str(path))
    if change == "truncated":
        os.truncate(path, 100)
    else:
        with open(path, "r+b") as out:
            out.seek(0, os.SEEK_END if change == "grown" else os.SEEK_SET)
            out.write(GOOD)
        os.utime(path, ns=(1, 1))
    with pytest.raises(FormatError) as caught:
        file.verify()
    assert caught.value.code == "AIB-E802"


@pytest.mark.parametrize("call", ["verify()", "planes('first')", "dequantize('first')", "documents['config.json']"])
@pytest.mark.parametrize(
    "first", ["", "os.rename('m.aibit', 'moved'); os.symlink('moved', 'm.aibit')", "os.chdir('/')"],
    ids=["", "renamed", "from-elsewhere"],
)  # fmt: skip
def test_78_a_file_truncated_after_it_was_opened_is_an_error_and_not_a_crash(call, first, tmp_path):
    path = tmp_path / "m.aibit"
    path.write_bytes(GOOD)
    program = f"""
import os, sys
from aibit_format.errors import FormatError
from aibit_format.reader import open
os.chdir({str(tmp_path)!r})
file = open("m.aibit")
{first}
os.truncate({str(path)!r}, 0)
try:
    print(file.{call})
except FormatError as error:
    sys.exit(0 if error.code == "AIB-E802" else str(error))
sys.exit("nothing was raised")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], env=with_package(), capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, (result.returncode, result.stderr[-500:])


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_78_an_open_file_that_is_replaced_or_removed_keeps_its_content(change, tmp_path):
    path = tmp_path / "m.aibit"
    path.write_bytes(GOOD)
    file = File(str(path))
    if change == "replaced":
        (tmp_path / "new").write_bytes(b"something else")
        os.replace(tmp_path / "new", path)
    else:
        path.unlink()
    assert file.verify().level == "full"
    assert bytes(file.documents["config.json"]) == craft.DOCUMENTS["config.json"]


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "socket", "missing", "loop"])
def test_79_what_is_no_regular_file_is_refused_at_once(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, codes = "m.aibit", {"AIB-E801"}
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        os.mkdir(path)
    elif kind == "device":
        path = os.devnull
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
        codes = {"AIB-E801", "AIB-E803"}
    else:
        codes = {"AIB-E803"}
        if kind == "loop":
            os.symlink(path, path)
    with pytest.raises(FormatError) as caught:
        File(path)
    assert caught.value.code in codes
    assert caught.value.path == path


def sparse(tmp_path, head, size):
    path = tmp_path / "m.aibit"
    path.write_bytes(head)
    try:
        os.truncate(path, size)
    except OSError as error:
        pytest.skip(f"no sparse file of {size} bytes here: {error.strerror}")
    return str(path)


SPARSE = 4 << 40


@pytest.mark.parametrize(
    ("breaks", "code"),
    named([
        ("zeros", lambda _: b"", "AIB-E102"),
        ("size not declared", lambda data: data, "AIB-E108"),
        ("size declared", put("header", file_size=SPARSE), "AIB-E108"),
        ("front matter over the cap",
         put("header", file_size=SPARSE, front_matter_length=layout.MAX_FRONT_MATTER + 64), "AIB-E109"),
        ("front matter of terabytes", put("header", file_size=SPARSE, front_matter_length=SPARSE // 2), "AIB-E109"),
    ]),
)  # fmt: skip
def test_80_sparse_terabytes_are_refused_quickly_and_in_little_memory(breaks, code, tmp_path):
    path = sparse(tmp_path, breaks(GOOD), SPARSE)
    started = time.perf_counter()
    tracemalloc.start()
    try:
        assert code_of(path) == code
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert time.perf_counter() - started < 2


def test_80_a_real_plane_of_a_terabyte_is_a_view_and_costs_nothing(tmp_path):
    size = (1 << 40) + 4096
    leaves = -(-size // layout.LEAF)  # a million: 8 MiB
    small = craft.good([("huge", "i8", "i8", (4096,), None)], {}, {})
    data = bytearray(rebuilt(leaves=(leaves, bytes(8 * leaves)))(small))
    front = craft.front_end(data)
    start = layout.align(front, layout.LARGE_ALIGNMENT)
    craft.table(data, "tensor")["shape"][0, 0] = size
    craft.table(data, "plane")["length"], craft.table(data, "plane")["offset"] = size, start
    craft.table(data, "header")["file_size"] = start + size
    file = File(sparse(tmp_path, craft.reseal(data)[:front], start + size))
    view = file.planes("huge")["values"]
    assert view.shape == (size,)
    assert view[-1] == 0


# 84 and all the rest: what nobody thought of


def outcome(data):
    """None if the file is refused as it should be; the open file if it is accepted; else the exception goes up."""
    try:
        return File(data)
    except AibitError as error:
        assert error.code.startswith("AIB-E")
        return None


def check_accepted(data, file):
    """What must hold for every file that opens: one encoding, and no tensor that cannot be read."""
    info = file.info_of_file
    front = info.front_matter()
    assert info.header(front) + front == data[: craft.HEAD + len(front)], "accepted, and comes out otherwise"
    for name in file:
        planes = file.planes(name)
        assert [planes[p.role].shape for p in file.info(name).planes] == [p.shape for p in file.info(name).planes]
        try:
            with np.errstate(all="ignore"):
                values = file.dequantize(name)
        except AibitError:
            continue
        assert values.shape == file.info(name).shape
        assert values.dtype == np.float32
    with contextlib.suppress(AibitError):
        file.verify()


def test_single_byte_changes_are_refused_or_harmless():
    rng = random.Random(1)
    front = craft.front_end(GOOD)
    for _ in range(2000):
        data = bytearray(GOOD)
        at = rng.randrange(front)
        data[at] ^= rng.randrange(1, 256)
        # Every byte of header and front matter is under the root, or is the root.
        assert outcome(bytes(data)) is None, at


SHOTS = 400
SEEDS = [
    ("everything", lambda: GOOD),
    ("extra sections", lambda: with_section(0x8001)(with_section(9)(GOOD))),
    ("no documents", lambda: craft.good(documents={})),
    ("no tensors", lambda: craft.good((), {}, craft.DOCUMENTS)),
    ("nothing", lambda: craft.good((), {}, {})),
    ("alignment 64", lambda: craft.good(alignment=64)),
    ("no elements", lambda: craft.good([
        ("a", "f32", "f32", (0, 1, 1), None),
        ("b", "int8", "f16", (0, 1, 1), None),
        ("c", "bool", "bool", (1, 0), None),
    ], {}, {})),
]  # fmt: skip


def evil_bytes(data, rng, good):
    """A value nobody sane would write, at an aligned place of header or front matter."""
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(0, craft.front_end(good) - width, width)
    data[at : at + width] = (rng.choice(craft.EVIL) % (1 << 8 * width)).to_bytes(width, "little")


def evil_field(data, rng, good):
    """Such a value, a neighbouring one or another record's, in a field of a record."""
    kind = rng.choice(("header", "section", "scheme", "document", "tensor", "tensor", "tensor", "plane"))
    if not (spots := craft.spots(good, kind)):
        return
    at, width = rng.choice(spots)
    old, other = (int.from_bytes(good[i : i + width], "little") for i in (at, rng.choice(spots)[0]))
    value = rng.choice((*craft.EVIL, old + 1, old - 1, old + 64, old ^ 2, other)) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, "little")


@pytest.mark.parametrize("change", [evil_bytes, evil_field])
@pytest.mark.parametrize(
    ("make", "seed"), [pytest.param(make, i, id=name.replace(" ", "-")) for i, (name, make) in enumerate(SEEDS)]
)
def test_evil_values_under_a_right_root_are_refused_or_make_another_good_file(make, seed, change):
    rng = random.Random(seed)
    good = make()
    accepted = 0
    for i in range(SHOTS):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 3))):
            change(data, rng, good)
        data = craft.reseal(data)
        try:
            file = outcome(data)
            if file is not None:
                accepted += 1
                check_accepted(data, file)
        except Exception as error:
            error.add_note(f"change {i} of seed {seed}: {differences(good, data)}")
            raise
    assert accepted


def differences(good, data):
    at = [i for i in range(len(good)) if good[i] != data[i] and not craft.HEAD - 16 <= i < craft.HEAD]
    return ", ".join(f"{i}: {good[i]:#04x} -> {data[i]:#04x}" for i in at)


def random_metadata(rng):
    """(count, bytes): noise, or entries that are almost right."""
    if rng.random() < 0.2:
        return rng.choice((0, 1, 2, rng.getrandbits(32))), rng.randbytes(rng.randrange(80))
    entries = []
    for i in range(rng.randrange(1, 4)):
        key = rng.choice((b"a.b", b"a.b%d" % i, b"model.type", b"model.parameters", b"source.kind"))
        kind, is_array = rng.choice((1, 1, 2, 3, 4, 4, 5, 6)), rng.choice((0, 0, 1))
        count = rng.choice((0, 1, 1, 2, 3)) if is_array else 1
        item = {1: 8, 2: 8, 3: 1}.get(kind, rng.randrange(4))
        if kind in (4, 5) and is_array:
            content = b"".join(item.to_bytes(4, "little") + rng.randbytes(item) for _ in range(count))
        else:
            content = bytes(rng.choice((0, 1)) for _ in range(count)) if kind == 3 else rng.randbytes(item * count)
        entries.append(entry(key, kind, content, is_array, count))
    data = bytearray(b"".join(sorted(entries)))
    if rng.random() < 0.3:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 2, 0x7F, 0xFF))
    return len(entries), bytes(data)


def test_random_metadata_is_refused_or_has_one_encoding():
    rng = random.Random(3)
    accepted = 0
    for _ in range(6000):
        _, data = random_metadata(rng)
        try:
            values = decode(data)
        except FormatError:
            continue
        accepted += 1
        assert encode(values) == data, data
    assert accepted > 500


def test_random_metadata_in_a_file_is_refused_or_comes_out_the_same():
    rng = random.Random(4)
    small = craft.good((), {}, {})
    accepted = 0
    for _ in range(600):
        count, data = random_metadata(rng)
        bad = rebuilt(metadata=(count % (1 << 32), data))(small)
        file = outcome(bad)
        if file is not None:
            accepted += 1
            check_accepted(bad, file)
    assert accepted > 50
