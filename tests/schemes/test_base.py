"""What every registered scheme owes: a page, a fixture, one way to write it, and decoding that agrees with itself."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.container.layout import ROLES
from aibit_format.dtypes import DTYPES, from_float32, to_float32
from aibit_format.errors import SchemeError
from aibit_format.file import reader
from aibit_format.schemes import BUILTIN, OLDER, make, parse
from aibit_format.schemes.base import bad_tails, parameters_of
from aibit_format.schemes.ggml_encode import ENCODERS
from tests.support.paths import ROOT
from tools.fixtures import scheme_examples
from tools.spec import make_spec

QUANTIZED = scheme_examples.names()
EXAMPLES = [(name, i) for name in BUILTIN for i, _ in enumerate(scheme_examples.examples(name))]
by_example = pytest.mark.parametrize(("name", "i"), EXAMPLES, ids=[f"{name}-{i}" for name, i in EXAMPLES])
by_name = pytest.mark.parametrize("name", BUILTIN)
by_quantized = pytest.mark.parametrize("name", QUANTIZED)

# Schemes that keep what others have made.
OF_256 = {f"gguf:{kind}" for kind in scheme_examples.KEPT}
KEPT = OF_256 - ENCODERS.keys()
ROWS = {"nf4-cpu": 32}  # rows and columns come in multiples of these
COLUMNS = {"nf4-cpu": 64} | {name: 32 for name in QUANTIZED if name.startswith("gguf:")} | dict.fromkeys(OF_256, 256)


def example(name, i=0):
    return list(scheme_examples.examples(name))[i]


def frozen(planes):
    """Read-only copies, as a mapped file gives."""
    copies = {role: plane.copy() for role, plane in planes.items()}
    for plane in copies.values():
        plane.flags.writeable = False
    return copies


# Pages and fixtures.


@by_quantized
def test_it_has_a_page_with_its_example(name):
    text = (ROOT / "spec" / "schemes" / make_spec.page_of(name)).read_text("utf-8")
    assert f"<!-- generated: example {name} -->" in text
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])|\b{re.escape(name.removeprefix('gguf:'))}\b", text)
    for heading in ("## Worked", "## Error", "bits per weight", "AIB-E50"):
        assert heading in text, heading
    for parameter in parameters_of(type(make(name))):
        assert re.search(rf"\b{parameter.replace('_', '[ _]')}\b", text)


@pytest.mark.parametrize(("name", "version"), [*((name, make(name).version) for name in QUANTIZED), *OLDER])
def test_its_fixture_holds_every_example(name, version):
    """The file and its twin, against the examples they were made of and against what is decoded."""
    ending = "" if version == 1 else f"-{version}"
    stem = ROOT / "fixtures" / "container" / f"scheme-{name.replace(':', '_')}{ending}"
    twin = json.loads(stem.with_suffix(".json").read_text("utf-8"))
    examples = list(scheme_examples.examples(name, version))
    assert [tensor["name"] for tensor in twin["tensors"]] == [scheme_examples.label(e) for e in examples]
    assert {scheme["version"] for scheme in twin["schemes"]} == {version}
    with reader.open(stem.with_suffix(".aibit"), verify="full") as file:
        for e, tensor in zip(examples, twin["tensors"], strict=True):
            info = file.info(scheme_examples.label(e))
            assert info.scheme == e.scheme and info.shape == tuple(tensor["shape"]) == e.shape
            golden = np.array(tensor["values"], np.float32)
            np.testing.assert_array_equal(file.dequantize(info.name).reshape(-1), golden)
            for role, plane in file.planes(info.name).items():
                np.testing.assert_array_equal(plane, e.planes[role])


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_the_page_is_enough_to_decode_four_bits(name):
    """Tables of the page and planes of the twin, by its formula and by no code of the package."""
    page = (ROOT / "spec" / "schemes" / "fourbit.md").read_text("utf-8")
    table = re.findall(r"^\| (\d+) \| `0x(\w{8})` \| [^|]+ \| `0x(\w{8})` \|", page, re.MULTILINE)
    book = np.array([int(row[1 if name == "nf4" else 2], 16) for row in table], np.uint32).view(np.float32)
    words = " ".join(re.findall(r"^ +\d+  ((?:[0-9A-F]{8} ?){8})$", page, re.MULTILINE)).split()
    nested = np.array([int(word, 16) for word in words], np.uint32).view(np.float32)
    assert (len(book), len(nested)) == (16, 256)
    twin = json.loads((ROOT / "fixtures" / "container" / f"scheme-{name}.json").read_text("utf-8"))
    kinds = {"u8": "<u1", "f32": "<f4"}
    for i, tensor in enumerate(twin["tensors"]):
        planes = {p["role"]: np.frombuffer(bytes.fromhex(p["data"]), kinds[p["dtype"]])
                  for p in twin["planes"] if p["tensor"] == i}  # fmt: skip
        block_size, is_nested = twin["schemes"][tensor["scheme"]]["parameters"][:2]
        absmax = planes["absmax"]
        for at, value in enumerate(tensor["values"]):
            byte, j = int(planes["codes"][at // 2]), at // block_size
            code = byte & 15 if at % 2 else byte >> 4
            scale = absmax[j]
            if is_nested:
                scale = nested[absmax[j]] * planes["nested_absmax"][j // 256] + planes["nested_offset"][0]
            assert book[code] * scale == np.float32(value)
        assert is_nested == ("nested=1" in tensor["name"])


# The name, the version and the parameters.


@by_example
def test_one_scheme_is_written_one_way(name, i):
    scheme = example(name, i).scheme
    assert scheme.name == name
    assert scheme == parse(scheme.text) and parse(scheme.text).text == scheme.text
    for parameters in (scheme.parameters, (*scheme.parameters, *[0] * (6 - len(scheme.parameters)))):
        made = make(name, scheme.version, parameters)
        assert made == scheme.stated and hash(made) == hash(scheme.stated)
        assert made.for_tensor(scheme.tensor_parameters) == made.for_tensor((*scheme.tensor_parameters, 0, 0)) == scheme
    assert len(scheme.parameters) <= 6 and all(0 <= value < 1 << 32 for value in scheme.parameters)
    assert len(scheme.tensor_parameters) <= 2


@pytest.mark.parametrize(("name", "version"), OLDER)
def test_an_older_version_is_read_and_written_if_it_is_asked_for(name, version):
    for e in scheme_examples.examples(name, version):
        assert e.scheme.version == version and f"version={version}" in e.scheme.text
        assert parse(e.scheme.text) == e.scheme == make(name, version, e.scheme.parameters)
        assert e.scheme != parse(scheme_examples.label(e)) and parse(scheme_examples.label(e)).version > version
        assert [spec.role for spec in e.scheme.planes(e.shape, e.dtype)] == list(e.planes)
    assert make(name).version > version


@by_name
def test_the_name_alone_means_the_defaults(name):
    scheme = make(name)
    assert scheme.text == name and parse(name) == scheme
    assert scheme.parameters == tuple(parameters_of(type(scheme)).values())
    assert set(scheme.words) <= {*parameters_of(type(scheme)), *scheme.of_encoder}


@by_name
def test_other_versions_and_parameters_are_refused(name):
    scheme = make(name)
    for version in (0, 3):
        with pytest.raises(SchemeError) as error:
            make(name, version)
        assert error.value.code == "AIB-E406"
    with pytest.raises(SchemeError) as error:
        make(name, scheme.version, (*scheme.parameters, 1))
    assert error.value.code == "AIB-E407"
    for option in ("nonsense=1", "nonsense", "", "=", *(f"{key}=x" for key in parameters_of(type(scheme)))):
        with pytest.raises(SchemeError) as error:
            parse(f"{name},{option}")
        assert error.value.code == "AIB-E407"


@by_quantized
def test_parameters_that_mean_nothing_are_refused(name):
    """Of the numbers 0 to 40 and some at the ends, each parameter refuses some, and with AIB-E407."""
    scheme = make(name)
    for at, _ in enumerate(scheme.parameters):
        refused = 0
        for value in (*range(41), 63, 65, 4095, 0xFFFF_FFFE, 0xFFFF_FFFF):
            parameters = list(scheme.parameters)
            parameters[at] = value
            try:
                make(name, scheme.version, tuple(parameters))
            except SchemeError as error:
                assert error.code == "AIB-E407", (name, at, value)
                refused += 1
        assert refused


# Planes.


@by_example
def test_planes_are_what_it_says_they_are(name, i):
    e = example(name, i)
    specs = e.scheme.planes(e.shape, e.dtype)
    assert [spec.role for spec in specs] == list(e.planes)
    for spec in specs:
        plane = e.planes[spec.role]
        assert spec.role in ROLES
        assert (plane.dtype, plane.shape) == (DTYPES[spec.dtype].numpy, spec.stored)
        assert plane.nbytes == spec.nbytes
    assert specs == e.scheme.planes(e.shape, e.dtype)
    elements = int(np.prod(e.shape))
    assert e.scheme.bits_per_weight(e.shape, e.dtype) == pytest.approx(8 * sum(s.nbytes for s in specs) / elements)
    assert 0 < e.scheme.bits_per_weight((4096, 4096), e.dtype) <= 64


@by_example
def test_good_planes_break_no_rule(name, i):
    e = example(name, i)
    assert list(e.scheme.bad_values(frozen(e.planes))) == []
    assert list(e.scheme.bad_codes(frozen(e.planes), e.shape)) == []
    assert list(bad_tails(e.scheme.planes(e.shape, e.dtype), e.planes)) == []


@by_name
def test_tensors_without_elements(name):
    scheme = make(name)
    dtype = name if name in DTYPES else "f16"
    rows, columns = ROWS.get(name, 1), COLUMNS.get(name, 4)
    for shape in ((0, columns), (rows, 0), *([] if name == "nf4-cpu" else [(0, 3, columns), (3, 0, columns)])):
        specs = scheme.planes(shape, dtype)
        assert all(spec.nbytes >= 0 for spec in specs)
        assert scheme.bits_per_weight(shape, dtype) == 0
        if name not in KEPT:
            ready = scheme.calibrated(np.zeros(1, np.float32), np.ones(1, np.float32))
            planes = ready.encode(np.zeros(shape, DTYPES[dtype].numpy), dtype)
            assert {role: plane.shape for role, plane in planes.items()} == {spec.role: spec.stored for spec in specs}
            assert list(scheme.bad_values(planes)) == []
        else:
            planes = {spec.role: np.zeros(spec.shape, DTYPES[spec.dtype].numpy) for spec in specs}
        decoded = scheme.decode(frozen(planes), shape, dtype)
        assert decoded.shape == shape and decoded.dtype == np.float32


@by_quantized
def test_what_it_cannot_hold_is_refused(name):
    scheme, shape = make(name), (ROWS.get(name, 2), COLUMNS.get(name, 4))
    said = re.escape(name.removesuffix("-cpu"))
    for dtype in ("i8", "bool", "f64", "u32"):
        with pytest.raises(SchemeError, match=said):
            scheme.planes(shape, dtype)
    with pytest.raises(SchemeError, match=said):
        scheme.planes((), "f16")
    if name in COLUMNS:
        with pytest.raises(SchemeError, match=re.escape(name)):
            scheme.planes((shape[0], shape[1] + 1), "f16")
    if name in KEPT:
        with pytest.raises(SchemeError, match=re.escape(name)):
            scheme.encode(np.ones(shape, np.float16), "f16")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("name", sorted({*QUANTIZED, "f16", "bf16", "f32", "f64", "f8_e5m2", "f8_e4m3"} - KEPT))
def test_values_that_are_not_finite_are_refused(name, value):
    """In the first block, in the last, and alone."""
    scheme, shape = make(name), (ROWS.get(name, 2), COLUMNS.get(name, 70))
    for at in (0, -1):
        array = np.ones(shape, np.float32)
        array.reshape(-1)[at] = value
        for dtype in ("f32", "f16", "bf16"):
            stored = array if dtype == "f32" else from_float32(array, dtype)
            with pytest.raises(SchemeError):
                scheme.encode(stored, dtype)


# Encoding and decoding.


@by_example
def test_encoding_is_the_same_every_time_and_leaves_its_input_alone(name, i):
    e = example(name, i)
    if e.values is None:
        pytest.skip("its planes come from elsewhere")
    before = e.values.copy()
    strided = np.asfortranarray(e.values)
    for source in (e.values, strided, frozen({"": e.values})[""]):
        planes = e.scheme.encode(source, e.dtype)
        for role, plane in e.planes.items():
            np.testing.assert_array_equal(planes[role], plane)
    assert e.values.tobytes() == before.tobytes()


@by_example
def test_rows_decoded_alone_are_the_rows_of_the_whole(name, i):
    e = example(name, i)
    planes = frozen(e.planes)
    whole = e.scheme.decode(planes, e.shape, e.dtype)
    assert whole.dtype == np.float32 and whole.shape == e.shape
    whole = whole.reshape(-1, e.shape[-1])
    n = len(whole)
    slices = [slice(0, n), slice(0, 0), slice(n, n), slice(n - 1, n), slice(0, 1), slice(1, n), slice(0, n + 5)]
    indices = [[], [0], [n - 1], [n - 1, 0, n - 1], list(range(n))[::-1]]
    for rows in (*slices, *(np.array(index, np.int64) for index in indices)):
        found = e.scheme.decode_rows(planes, e.shape, e.dtype, rows)
        assert found.dtype == np.float32 and found.tobytes() == whole[rows].tobytes()


@by_quantized
def test_only_the_bytes_of_the_rows_are_touched(name):
    """Damage outside the rows that are asked for changes nothing: planes as long as the rows, or flat blocks."""
    rows, columns = max(ROWS.get(name, 8), 8), COLUMNS.get(name, 64)
    if name in KEPT or name == "int8-outlier":
        pytest.skip("needs planes of a chosen number of rows")
    scheme = make(name).calibrated(np.zeros(1, np.float32), np.ones(1, np.float32))
    array = scheme_examples.values(rows, columns)
    planes = scheme.encode(array, "f32")
    wanted = scheme.decode_rows(planes, (rows, columns), "f32", slice(2, 4))
    for plane in planes.values():
        if plane.ndim and len(plane) == rows:
            plane[:2], plane[4:] = 1, 1
        elif plane.ndim == 1 and len(plane) == rows * columns // 2:
            plane[:columns], plane[2 * columns :] = 1, 1
    np.testing.assert_array_equal(scheme.decode_rows(planes, (rows, columns), "f32", slice(2, 4)), wanted)


@by_quantized
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_whatever_goes_in_comes_out_finite_and_near(name, data):
    """Shapes, dtypes and magnitudes of all kinds, in the default parameters and in those of an example."""
    if name in KEPT:
        return
    shape = (
        *data.draw(st.lists(st.integers(1, 2), max_size=1)),
        ROWS.get(name, 1) * data.draw(st.integers(1, 3)),
        COLUMNS.get(name, 1) * data.draw(st.integers(1, 90 if name not in COLUMNS else 3)),
    )
    if name == "nf4-cpu":
        shape = shape[-2:]
    dtype = data.draw(st.sampled_from(["f16", "bf16", "f32"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    # float16's smallest numbers, its largest half, rows of zeros, and everything between.
    spread = np.exp2(rng.integers(-20, 14, (*shape[:-1], 1)).astype(np.float32)) * rng.integers(0, 2, (*shape[:-1], 1))
    array = from_float32((rng.standard_normal(shape).clip(-3, 3) * spread).astype(np.float32), dtype)
    scheme = data.draw(st.sampled_from([make(name), *(e.scheme for e in scheme_examples.examples(name))]))
    if "ordered=1" in scheme.text:
        scheme = make(name)
    scheme = scheme.fitted(array, dtype).calibrated(np.zeros(1, np.float32), np.ones(1, np.float32))
    planes = scheme.encode(array, dtype)
    assert {r: (p.dtype, p.shape) for r, p in planes.items()} == {
        spec.role: (DTYPES[spec.dtype].numpy, spec.stored) for spec in scheme.planes(shape, dtype)
    }
    assert list(scheme.bad_values(planes)) == [] and list(scheme.bad_codes(planes, shape)) == []
    decoded = scheme.decode(frozen(planes), shape, dtype)
    x = to_float32(array, dtype)
    assert decoded.shape == shape and np.isfinite(decoded).all()
    # Coarse, and true of all: an error is at most the width of what shares a scale. Each scheme's own tests say more.
    assert np.abs(decoded - x).max() <= 1.05 * np.abs(x).max() + 1e-6
    rows = np.array(data.draw(st.lists(st.integers(0, int(np.prod(shape[:-1])) - 1), max_size=4)), np.int64)
    part = scheme.decode_rows(planes, shape, dtype, rows)
    np.testing.assert_array_equal(part, decoded.reshape(-1, shape[-1])[rows])
