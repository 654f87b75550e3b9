"""The schemes of GGUF, against gguf-py."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aibit_format.errors import SchemeError
from aibit_format.formats.gguf.file import NUMBERS
from aibit_format.schemes import make, parse
from aibit_format.schemes.ggml import LAYOUTS
from aibit_format.schemes.ggml_encode import ENCODERS
from tests.support.gguf_models import NAMES, THEIRS, kind, random_blocks
from tests.support.paths import ROOT

transformers.utils.logging.disable_progress_bar()
ENCODED = [name for name in NAMES if LAYOUTS[name].encode]


def theirs(name, blocks):
    """Values as gguf-py decodes blocks, u8 [..., bytes]; where it has no decoder, as its documentation says."""
    if name in THEIRS:
        with np.errstate(over="ignore"):
            return gguf.quants.dequantize(blocks, kind(name))
    layout, bits = LAYOUTS[name], {"gguf:q1_0": 1, "gguf:q2_0": 2}[name]
    values = []
    for block in blocks.reshape(-1, layout.size):
        d = block[:2].view("<f2").astype(np.float32)[0]
        stream = int.from_bytes(block[2:].tobytes(), "little")  # the first code in the lowest bits
        codes = [stream >> i * bits & ((1 << bits) - 1) for i in range(layout.block)]
        values.append([d * np.float32(2 * code - 1 if bits == 1 else code - 1) for code in codes])
    return np.array(values, np.float32).reshape(*blocks.shape[:-1], -1)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_decode_as_in_gguf_py_in_any_rows(name):
    shape = (3, 7, 512)
    blocks = random_blocks(name, shape)
    scheme, planes = make(name), {"blocks": blocks}
    wanted = theirs(name, blocks)
    assert scheme.decode(planes, shape, "f16").tobytes() == wanted.tobytes()
    rows = wanted.reshape(21, 512)
    for some in (slice(5, 9), slice(4, 4), slice(0, 21, 4), np.array([20, 3, 3, 0])):
        assert scheme.decode_rows(planes, shape, "f16", some).tobytes() == rows[some].tobytes()
    assert not list(scheme.bad_codes(planes, ()))
    assert parse(scheme.text) == scheme and scheme.planes((0, 512), "f32")[0].shape[0] == 0
    assert scheme.decode({"blocks": blocks[:0]}, (0, 7, 512), "f32").shape == (0, 7, 512)


HALVES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x3C01, 0x7BFF, 0xFBFF]  # zeros, subnormals, the greatest


@pytest.mark.parametrize("name", NAMES)
def test_blocks_decode_with_scales_at_their_ends(name):
    """Every byte and, of float16, every kind of scale, so that codes and signs meet zeros and subnormals too."""
    layout = LAYOUTS[name]
    blocks = random_blocks(name, (256, layout.block), seed=1)
    halves = [field for field in layout.fields if field in ("d", "dmin", "m") and layout.fields[field] == 2]
    starts = dict(zip(layout.fields, np.cumsum([0, *layout.fields.values()]).tolist(), strict=False))
    for i, field in enumerate(halves):
        bits = np.roll(np.resize(np.array(HALVES, "<u2"), 256), i)
        blocks[:, starts[field] : starts[field] + 2] = bits.view(np.uint8).reshape(256, 2)
    if name == "gguf:mxfp4":
        blocks[:, 0] = np.arange(256)  # with those that a file must not have
    elif name == "gguf:nvfp4":
        blocks[:, :4] = np.arange(256 * 4).reshape(256, 4)
    elif name == "gguf:iq1_m":
        nibbles = np.resize(np.array(HALVES, np.uint16), 256)[:, None] >> np.arange(0, 16, 4, dtype=np.uint16) & 15
        blocks[:, 49::2] = blocks[:, 49::2] & 15 | (nibbles << 4).astype(np.uint8)
    found = make(name).decode({"blocks": blocks}, (256, layout.block), "f32")
    assert found.tobytes() == theirs(name, blocks).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_blocks_decode_as_in_llama_cpp(name):
    """Where its library is installed (pip install xllamacpp): every type, q1_0 and q2_0 too, against its C."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("wants xllamacpp")
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.so")
    traits_of = ctypes.CDLL(str(path)).ggml_get_type_traits
    traits_of.restype = ctypes.POINTER(Traits)
    traits, layout = traits_of(NUMBERS[name.removeprefix("gguf:")]).contents, LAYOUTS[name]
    assert (traits.elements, traits.size) == (layout.block, layout.size)
    blocks = random_blocks(name, (64, 512), seed=2)
    wanted = np.empty((64, 512), np.float32)
    traits.to_float(blocks.ctypes.data, wanted.ctypes.data, wanted.size)
    assert make(name).decode({"blocks": blocks}, wanted.shape, "f32").tobytes() == wanted.tobytes()


class Traits(ctypes.Structure):
    """GGML's ``ggml_type_traits``."""

    _fields_ = [
        ("name", ctypes.c_char_p), ("elements", ctypes.c_int64), ("interleave", ctypes.c_int64),
        ("size", ctypes.c_size_t), ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    ]  # fmt: skip


def test_the_table_of_the_page_has_every_type_with_its_fields():
    page = (ROOT / "spec" / "schemes" / "ggml.md").read_text("utf-8")
    rows = re.findall(r"^\| `(gguf:\w+)` \| (\d+) \| (\d+) \| (.*?) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert [row[0] for row in rows] == NAMES
    for name, elements, size, fields, bits in rows:
        layout = LAYOUTS[name]
        assert (layout.block, layout.size) == (int(elements), int(size))
        assert [f"`{field}` {count}" for field, count in layout.fields.items()] == fields.split(", ")
        assert float(bits) == layout.size * 8 / layout.block


def test_decoding_does_not_depend_on_pieces_and_takes_little_memory(monkeypatch):
    blocks = random_blocks("gguf:iq1_s", (64, 1024))
    whole = make("gguf:iq1_s").decode({"blocks": blocks}, (64, 1024), "f32")
    monkeypatch.setattr("aibit_format.schemes.ggml._PIECE_ELEMENTS", 512)
    tracemalloc.start()
    found = make("gguf:iq1_s").decode({"blocks": blocks}, (64, 1024), "f32")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tobytes() == whole.tobytes() and most < whole.nbytes + (50 << 10)


@pytest.mark.parametrize("name", ENCODED)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_values_encode_as_in_gguf_py(name, data):
    numbers = st.floats(-60000, 60000, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)
    grid = st.integers(-64, 64).map(lambda i: i / 16)  # halves, where rounding has to choose
    values = data.draw(hnp.arrays(np.float32, (2, 64), elements=st.one_of(numbers, grid)))
    blocks = make(name).encode(values, "f32")["blocks"]
    with np.errstate(all="ignore"):
        assert blocks.tobytes() == gguf.quants.quantize(values, kind(name)).tobytes()


@pytest.mark.parametrize("name", ENCODED)
def test_encoding_in_pieces_and_its_error_bound(name, monkeypatch):
    values = np.random.default_rng(1).normal(size=(50, 96)).astype(np.float32)
    values[7], values[8] = 0, -2.5
    whole = make(name).encode(values, "f32")["blocks"]
    monkeypatch.setattr("aibit_format.schemes.ggml._PIECE_ELEMENTS", 128)
    assert make(name).encode(values, "f32")["blocks"].tobytes() == whole.tobytes()
    decoded = make(name).decode({"blocks": whole}, values.shape, "f32")
    blocks, found = values.reshape(-1, 32), decoded.reshape(-1, 32)
    # The bounds of spec/schemes/ggml.md: a step, half of one for equal steps and q8_0, and the scale's rounding.
    span, most = np.ptp(blocks, axis=1), np.abs(blocks).max(axis=1)
    bound = {
        "gguf:q4_0": most / 8, "gguf:q5_0": most / 16, "gguf:q4_1": span / 30, "gguf:q5_1": span / 62,
        "gguf:q8_0": most / 254,
    }[name] + (most + span) * 2.0**-10  # fmt: skip
    assert (np.abs(found - blocks).max(axis=1) <= bound).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_a_scheme_refuses(name):
    scheme, layout = make(name), LAYOUTS[name]
    with pytest.raises(SchemeError, match=f"blocks of {layout.block} elements, found {layout.block + 16}"):
        scheme.planes((2, layout.block + 16), "f32")
    with pytest.raises(SchemeError, match="floating-point"):
        scheme.planes((2, 256), "i32")
    values = np.ones((2, 256), np.float32)
    values[1, 3] = np.nan
    made = layout.encode or name in ENCODERS
    with pytest.raises(SchemeError, match="not finite" if made else "kept as llama.cpp made it"):
        scheme.encode(values, "f32")
    if made:
        with pytest.raises(SchemeError, match="beyond float16"):
            scheme.encode(np.array([[3e38, -3e38] * 128], np.float32), "f32")
    starts = dict(zip(layout.fields, np.cumsum([0, *layout.fields.values()]).tolist(), strict=False))
    for field in layout.scales:
        for scale in BAD_SCALES.get(name, [np.array([x], "<f2").tobytes() for x in (np.inf, -np.inf, np.nan)]):
            blocks = random_blocks(name, (2, 256))
            at = starts[field] + AT.get(name, 0)
            blocks.reshape(-1, layout.size)[-1, at : at + len(scale)] = np.frombuffer(scale, np.uint8)
            wrong = f"a scale ({field}) is {'above 252' if field == 'e' else 'not finite'}"
            assert list(scheme.bad_codes({"blocks": blocks}, ())) == [("blocks", wrong)]


BAD_SCALES = {
    "gguf:mxfp4": [b"\xfd", b"\xfe", b"\xff"],  # twelve halves of the first two are beyond float32
    "gguf:nvfp4": [b"\0\0\0\x7f", b"\xff\0\0\0"],
    "gguf:iq1_m": [b"\xc0\x00\x70", b"\xff\xff\xff"],
}
AT = {"gguf:iq1_m": 5}  # of the three bytes in whose first and last the exponent is
