"""The schemes of GGUF, against gguf-py."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aibit_format.errors import SchemeError
from aibit_format.schemes import make, parse
from aibit_format.schemes.ggml import LAYOUTS
from tests.support.gguf_models import NAMES, kind, random_blocks

transformers.utils.logging.disable_progress_bar()
ENCODED = [name for name in NAMES if LAYOUTS[name].encode]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_decode_as_in_gguf_py_in_any_rows(name):
    assert (LAYOUTS[name].block, LAYOUTS[name].size) == gguf.GGML_QUANT_SIZES[kind(name)]
    shape = (3, 7, 512)
    blocks = random_blocks(name, shape)
    scheme, planes = make(name), {"blocks": blocks}
    wanted = gguf.quants.dequantize(blocks, kind(name))
    assert scheme.decode(planes, shape, "f16").tobytes() == wanted.tobytes()
    rows = wanted.reshape(21, 512)
    for some in (slice(5, 9), slice(4, 4), slice(0, 21, 4), np.array([20, 3, 3, 0])):
        assert scheme.decode_rows(planes, shape, "f16", some).tobytes() == rows[some].tobytes()
    assert not list(scheme.bad_codes(planes, ()))
    assert parse(scheme.text) == scheme and scheme.planes((0, 512), "f32")[0].shape[0] == 0
    assert scheme.decode({"blocks": blocks[:0]}, (0, 7, 512), "f32").shape == (0, 7, 512)


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
    with pytest.raises(SchemeError, match="not finite" if layout.encode else "kept as llama.cpp made it"):
        scheme.encode(values, "f32")
    if layout.encode:
        with pytest.raises(SchemeError, match="beyond float16"):
            scheme.encode(np.array([[3e38, -3e38] * 16], np.float32), "f32")
    start = 0
    for field, size in layout.fields.items():
        if field in ("d", "dmin", "m"):
            for scale in (np.inf, -np.inf, np.nan):
                blocks = random_blocks(name, (2, 256))
                blocks.reshape(-1, layout.size)[-1, start : start + 2] = np.array([scale], "<f2").view(np.uint8)
                found = list(scheme.bad_codes({"blocks": blocks}, ()))
                assert found == [("blocks", f"a scale ({field}) is not finite")]
        start += size
