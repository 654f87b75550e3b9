"""The reference reader, written from the specification alone, says of every file what the package says."""

import io
import json
import random
import re
import struct
import subprocess
import sys
import zlib
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import xxhash

from aibit_format.container import documents, layout, validate
from aibit_format.dtypes import DTYPES, to_float32
from aibit_format.errors import AibitError
from aibit_format.schemes import BUILTIN, make
from tests.support import vectors
from tests.support.paths import ROOT
from tools.conformance.python import contents, numbers, reader, schemes, xxh3
from tools.fixtures import file_builder, make_fixtures, mutators
from tools.spec import plain_examples, xxh3_vectors

FILES = sorted((ROOT / "tools" / "conformance" / "python").glob("*.py"))


def code_of(path):
    """Return the code the reference reader refuses a file with, or None."""
    try:
        reader.verify(reader.File(str(path)))
    except numbers.RuleError as error:
        return error.code
    return None


@pytest.mark.parametrize("path", vectors.GOOD, ids=lambda path: path.stem)
def test_a_good_file_is_what_its_twin_says(path):
    out = io.StringIO()
    with redirect_stdout(out):
        assert reader.main([str(path), "--json"]) == 0
    found, wanted = json.loads(out.getvalue()), vectors.twin(path)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():  # as text: zero is not minus zero there, and NaN is NaN
        assert json.dumps(found[key]) == json.dumps(value), key


def test_a_bad_file_gets_the_code_of_its_rule(tmp_path):
    found = [(path.stem, code_of(path), code) for path, code, _ in vectors.bad(tmp_path)]
    assert found and [row for row in found if row[1] != row[2]] == []


def test_badly_shaped_signatures_are_refused(tmp_path):
    path = tmp_path / "m.aibit"
    for name, data in vectors.badly_signed():
        path.write_bytes(data)
        assert code_of(path) == vectors.reference_code_of(data) == "AIB-E604", name


def test_what_is_no_file_is_refused(tmp_path):
    assert code_of(tmp_path) == "AIB-E801"
    assert code_of(tmp_path / "none") == "AIB-E803"


def test_it_is_small_and_needs_python_alone(tmp_path):
    for file in FILES:
        text = file.read_text("utf-8")
        assert text.count("\n") < 400, file.name
        imported = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
        assert imported <= sys.stdlib_module_names, file.name
    hello = ROOT / "fixtures" / "container" / "hello.aibit"
    program = [sys.executable, "-S", "-m", "tools.conformance.python.reader"]
    broken = tmp_path / "m.aibit"
    broken.write_bytes(hello.read_bytes()[:-1])
    for path, status, out, err in ((hello, 0, "linear.weight\tint8\tbf16\t[2, 4]\n", ""), (broken, 3, "", "AIB-E108")):
        result = subprocess.run([*program, path], cwd=ROOT, capture_output=True, text=True, env={})
        assert result.returncode == status, result.stderr
        assert result.stdout.startswith(out) and result.stderr.startswith(err)
        assert bool(result.stdout) != bool(result.stderr)


def test_every_leaf_is_looked_at(tmp_path):
    good, places = vectors.of_several_leaves()
    path = tmp_path / "m.aibit"
    path.write_bytes(good)
    assert code_of(path) is None
    for code, offsets in places.items():
        for offset in offsets:
            path.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
            assert code_of(path) == code, offset


def test_usage_is_an_error_of_its_own():
    err = io.StringIO()
    with redirect_stderr(err):
        assert reader.main([]) == 2
    assert "FILE --json" in err.getvalue()


def test_its_digests_are_those_of_xxhash():
    rng = random.Random(0)
    for size in [*range(300), 1023, 1024, 1025, 2047, 2048, 2049, 10_000]:
        data = rng.randbytes(size)
        assert xxh3.xxh3_64(data) == xxhash.xxh3_64_intdigest(data), size
        assert xxh3.xxh3_128(data) == xxhash.xxh3_128(data).digest(), size


def test_its_digests_are_the_vectors_of_the_specification():
    listed = json.loads((ROOT / "spec" / "xxh3.json").read_text("utf-8"))
    data = xxh3_vectors.inputs(listed[-1][0])
    assert [length for length, *_ in listed[:1026]] == list(range(1026))
    for length, short, long in listed:
        assert f"{xxh3.xxh3_64(data[:length]):016x}" == short, length
        assert xxh3.xxh3_128(data[:length]).hex() == long, length


def test_plain_values_decode_as_the_page_says():
    """Wide integers and doubles are rounded once; every code of the small floats."""
    rounded = {name: np.array(values, DTYPES[name].numpy) for name, values in plain_examples.ROUNDED.items()}
    small = {name: np.arange(256, dtype=np.uint8) for name in ("f8_e4m3", "f8_e5m2", "f8_e8m0")}
    half = np.arange(1 << 16, dtype=np.uint16)
    for name, stored in (rounded | small | {"bf16": half, "f16": half.view(np.float16)}).items():
        planes = {"values": numbers.BY_NAME[name].elements(stored.tobytes())}
        found = schemes.SCHEMES[name, 1].decode([0] * 6, [len(stored)], planes)
        with np.errstate(over="ignore"):
            wanted = to_float32(stored, name)
        np.testing.assert_array_equal(np.array(found, np.float32), wanted, name)
        assert (np.signbit(found) == np.signbit(wanted))[~np.isnan(wanted)].all(), name


def test_twins_hold_what_json_has_no_number_for(tmp_path):
    data = mutators.altered(mutators.TINY, values={0: np.nan, 1: -np.inf})
    path = tmp_path / "m.aibit"
    path.write_bytes(data)
    out = io.StringIO()
    with redirect_stdout(out):
        assert reader.main([str(path), "--json"]) == 0
    for text in (out.getvalue(), make_fixtures.twin("m", "", data).decode()):
        (tensor,) = json.loads(text, parse_constant=pytest.fail)["tensors"]
        assert tensor["values"] == ["NaN", "-Infinity"]


def test_the_formula_of_the_nested_values_gives_the_table():
    text = (ROOT / "spec" / "schemes" / "fourbit.md").read_text("utf-8")

    checksum = zlib.crc32(struct.pack("<256f", *schemes.NESTED))
    assert f"CRC-32 of these 256 values, little-endian: 0x{checksum:08X};" in text


NUMBERS = [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 32, 64, 128, 256, 4096, 4097, 65535, 65536, 65552, (1 << 32) - 1]
LENGTHS = [0, 1, 2, 3, 16, 31, 32, 33, 64, 96, 128, 255, 256, 257, 512]


def test_planes_follow_from_scheme_shape_and_dtype_as_in_the_package():
    rng, planes = random.Random(0), 0
    for _ in range(20_000):
        name = rng.choice(list(BUILTIN))
        parameters = [0] * 6
        for i in range(rng.choice((0, 1, 2, 2, 3, 3))):
            parameters[i] = rng.choice(NUMBERS if i == 0 else (0, 1, 2))
        parameters[rng.randrange(6)] += rng.random() < 0.05
        shape = tuple(rng.choice(LENGTHS) for _ in range(rng.choice((0, 1, 2, 2, 2, 3, 4))))
        dtype = rng.choice(["f16", "bf16", "f32", "i8", name if name in DTYPES else "f32"])
        try:
            wanted = [(p.role, p.dtype, list(p.shape)) for p in make(name, 1, tuple(parameters)).planes(shape, dtype)]
        except AibitError:
            wanted = None
        scheme = schemes.SCHEMES[name, 1]
        fits = scheme.parameters(parameters) and dtype in scheme.dtypes and scheme.takes(parameters, shape)
        found = scheme.planes(parameters, shape, dtype) if fits else None
        assert found == wanted, (name, parameters, shape, dtype)
        planes += wanted is not None
    assert planes > 1000


JSON = [
    "{}", " [1] ", '"a"', "true", "nul", "1 2", "[1,]", "{'a':1}", '{"a":1}x', "01", "+1", ".5", "1.", "-", "-0",
    "[1e999]", "NaN",
    "[Infinity]", "-Infinity", '{"a":NaN}', '{"a":1,"a":2}', '{"a":1,"\\u0061":2}', '{"":1}', '"\x01"', '"\t"',
    '"\x7f"', '"\\ud800"', '"\\u00zz"', '"\\x"', '"\\', "\ufeff{}", "\xa01", "\x0c1", "\x00", "\u0661", '"\u0661"',
    "9" * 4300, "9" * 4301, "-" + "9" * 4300, "-" + "9" * 4301, "1" * 5000 + ".5", "1" * 5000 + "e5", "1e" + "1" * 5000,
    "[" * 64 + "]" * 64, "[" * 65 + "]" * 65, "[" * 63 + "1" + "]" * 63, "[" * 64 + "1" + "]" * 64, "[" * 100_000,
    '{"a":' * 63 + "1" + "}" * 63, '{"a":' * 64 + "1" + "}" * 64, '{"a":' * 64 + "{}" + "}" * 64, '{"a":"[[[\\"["}',
    '{"auto_map":null}', '{"auto_map":{}}', '{"x":[{"auto_map":0}]}', '{"auto_\\u006dap":1}',
    '{"trust_remote_code":false}', '{"quantization_config":1}', '{"x":{"quantization_config":1}}',
    '{"quantization_config":null}', b'"\xff"', b'"\xed\xa0\x80"', b"\xff",
]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["config.json", "a/config.json", "tokenizer.json", "a/vocab.json", "other.json", "x.JSON", "config.jsonx"]
)
def test_json_documents_get_the_verdict_of_the_package(name, tmp_path):
    verdicts = set()
    for content in JSON:
        content = content if isinstance(content, bytes) else content.encode()
        # The writer refuses what is tried here: it gets spaces and a digit, which are written over.
        data = bytearray(file_builder.good([], {}, {name: b" " * (len(content) - 1) + b"1"}))
        start = int(file_builder.table(data, "document")["offset"][0])
        data[start : start + len(content)] = content
        data = file_builder.reseal(data, leaves=True)
        path = tmp_path / "m.aibit"
        path.write_bytes(data)
        found = code_of(path)
        assert found == vectors.reference_code_of(data), content[:60]
        verdicts.add(found)
    assert verdicts == ({None} if name == "config.jsonx" else verdicts | {None, "AIB-E705"})


def test_damage_gets_the_verdict_of_the_package(tmp_path):
    """Whether a file is good never differs. Which of several broken rules is named may, so codes need not agree."""
    rng = random.Random(0)
    files = [data for data in (path.read_bytes() for path in vectors.GOOD) if len(data) < 20_000]
    path, same, refused, count = tmp_path / "m.aibit", 0, 0, 1500
    for _ in range(count):
        data = vectors.damaged(rng, rng.choice(files))
        path.write_bytes(data)
        found, wanted = code_of(path), vectors.reference_code_of(data)
        assert (found is None) == (wanted is None), (found, wanted)
        refused += found is not None
        same += found == wanted
    assert same > 0.98 * count
    assert 0.5 * count < refused < count


def test_its_tables_are_those_of_the_package():
    """A key, a scheme or a dtype that is new in the package is wanted here too."""
    types = {"string": False, "int": False, "float": False, "strings": True, "ints": True, "floats": True}
    known = {key: (kind.rstrip("s"), types[kind]) for key, kind in validate.KNOWN_KEYS.items()}
    assert known == contents.TYPE_OF
    assert contents.FORBIDDEN == documents.FORBIDDEN_KEYS
    assert schemes.SCHEMES.keys() == {(name, 1) for name in BUILTIN}
    assert reader.ROLES == layout.ROLE_NAMES
    assert {code: (d.name, d.size) for code, d in numbers.DTYPES.items()} == {
        d.code: (d.name, d.bits // 8) for d in DTYPES.values()
    }


@pytest.mark.parametrize("name", ["header", "section", "scheme", "document", "tensor", "plane"])
def test_its_records_are_those_of_the_layout(name):
    fixed = {"header": reader.HEADER, "section": reader.SECTION}
    text = fixed.get(name) or reader.TABLES[f"{name}s"]
    assert numbers.size_of(text) == layout.RECORDS[name].sizeof()
