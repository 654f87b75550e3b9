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
from aibit_format.schemes import BUILTIN, NUMBERED, make
from tests.support import vectors
from tests.support.paths import ROOT
from tools.conformance.python import contents, numbers, reader, schemes, xxh3
from tools.conformance.python_1_0 import numbers as numbers_1_0
from tools.conformance.python_1_0 import reader as reader_1_0
from tools.conformance.python_1_0 import schemes as schemes_1_0
from tools.fixtures import make_fixtures, mutators
from tools.spec import plain_examples, xxh3_vectors

FILES = sorted((ROOT / "tools" / "conformance" / "python").glob("*.py"))


def code_of(path, values=False):
    """Return the code the reference reader refuses a file with, or None; with ``values``, also those of all tensors."""
    try:
        file = reader.File(str(path))
        reader.verify(file)
        for tensor in file.tensors if values else ():
            file.values(tensor)
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
    found = [(path, code_of(path, level == "decode"), code, level) for path, code, level in vectors.bad(tmp_path)]
    assert found and [row for row in found if row[1] != row[2]] == []
    assert not any(code_of(path) for path, *_, level in found if level == "decode")


@pytest.mark.parametrize("path", vectors.GOOD, ids=lambda path: path.stem)
def test_a_reader_of_version_1_0_reads_it(path):
    """It is the reader as it was; a file of 1.1 that needs nothing new is one of 1.0 to it, and others are refused."""
    wanted = vectors.twin(path)
    if {(scheme["name"], scheme["version"]) for scheme in wanted["schemes"]} - schemes_1_0.SCHEMES.keys():
        # It looks at reserved bytes, which parameters of tensors were, before it looks at schemes.
        with pytest.raises(numbers_1_0.RuleError, match=r"AIB-E(404|406|415)"):
            reader_1_0.File(str(path))
        return
    file = reader_1_0.File(str(path))
    reader_1_0.verify(file)
    found = json.loads(json.dumps(reader_1_0.describe(file)))
    assert json.dumps(found["tensors"]) == json.dumps(wanted["tensors"])


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
    packed = {name: np.arange(1 << dtype.bits, dtype=np.uint8) for name, dtype in DTYPES.items() if dtype.is_packed}
    for name, stored in (rounded | small | packed | {"bf16": half, "f16": half.view(np.float16)}).items():
        data = make(name).encode(stored, name)["values"] if name in packed else stored
        planes = {"values": numbers.BY_NAME[name].numbers(data.tobytes(), [len(stored)])}
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


def test_planes_follow_from_scheme_shape_and_dtype_as_in_the_package():
    planes = 0
    for name, version, parameters, shape, dtype, wanted in vectors.planes_by_scheme(20_000):
        scheme = schemes.SCHEMES[name, version]
        fits = scheme.parameters(parameters[:6]) and dtype in scheme.dtypes and scheme.takes(parameters, shape)
        found = scheme.planes(parameters, shape, dtype) if fits else None
        assert found == wanted, (name, parameters, shape, dtype)
        planes += wanted is not None
    assert planes > 1000


@pytest.mark.parametrize("name", vectors.JSON_NAMES)
def test_json_documents_get_the_verdict_of_the_package(name, tmp_path):
    verdicts = set()
    for content, data in vectors.json_documents(name):
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
    assert schemes.SCHEMES.keys() == {(name, make(name).version) for name in BUILTIN} | NUMBERED.keys()
    for (name, version), scheme in schemes.SCHEMES.items():
        assert scheme.of_tensor == len(make(name, version).of_tensor)
    assert reader.ROLES == layout.ROLE_NAMES
    assert {code: (d.name, d.bits) for code, d in numbers.DTYPES.items()} == {
        d.code: (d.name, d.bits) for d in DTYPES.values()
    }


@pytest.mark.parametrize("name", ["header", "section", "scheme", "document", "tensor", "plane"])
def test_its_records_are_those_of_the_layout(name):
    fixed = {"header": reader.HEADER, "section": reader.SECTION}
    text = fixed.get(name) or reader.TABLES[f"{name}s"]
    assert numbers.size_of(text) == layout.RECORDS[name].sizeof()
