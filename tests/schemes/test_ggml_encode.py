"""Encoders of GGML's types: packing, importance, and their error beside llama.cpp's."""

from __future__ import annotations

import importlib.util

import gguf
import numpy as np
import pytest

from aibit_format.errors import SchemeError
from aibit_format.schemes import make
from aibit_format.schemes.ggml import LAYOUTS
from aibit_format.schemes.ggml_encode import ENCODERS, find, magnitudes
from tests.support.ggml_search import decoded
from tests.support.gguf_models import kind

ALWAYS = [name for name in ENCODERS if LAYOUTS[name].encode is None]  # also without importance


def importance_of(columns, seed=5):
    """As calibration finds it: most columns alike, some much larger."""
    return np.exp(np.random.default_rng(seed).normal(0, 1.5, columns)).astype(np.float32)


def values_of(kind_of_values, shape=(64, 1024)):
    random = np.random.default_rng(1)
    values = random.standard_t(3, shape) if kind_of_values == "heavy-tailed" else random.normal(size=shape)
    return (values * 0.02).astype(np.float32)


def error(values, blocks, name, importance):
    found = gguf.quants.dequantize(blocks, kind(name)).astype(np.float64)
    return ((found - values) ** 2 * (1 if importance is None else importance)).sum()


@pytest.mark.parametrize("name", ENCODERS)
def test_blocks_hold_what_was_found(name):
    values = values_of("normal", (8, 512))
    seen = []

    def how(search, rows, dtype, weights):
        found = find(search, rows, dtype, weights)
        seen.append(decoded(search, found))
        return found

    blocks = make(name).encode_weighted(values, "f32", importance_of(512), how)["blocks"]
    theirs = gguf.quants.dequantize(blocks, kind(name))
    assert np.array_equal(np.concatenate(seen).reshape(values.shape), theirs)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_importance_is_that_of_columns_and_pieces_make_no_difference(name, dtype, monkeypatch):
    scheme = make(name)
    values = values_of("normal", (12, 512)).astype(np.float16 if dtype == "f16" else np.float32)
    importance = importance_of(512)
    whole = scheme.encode_weighted(values, dtype, importance)["blocks"]
    assert scheme.takes_importance and whole.tobytes() != scheme.encode(values, dtype)["blocks"].tobytes()
    for rows in (np.tile(importance, (12, 1)), np.concatenate([np.tile(importance, (6, 1)), np.ones((6, 512), "f4")])):
        found = scheme.encode_weighted(values, dtype, rows)["blocks"]
        assert np.array_equal(found[:6], whole[:6]) and np.array_equal(found[6:], whole[6:]) == (rows[7, 0] != 1)
    stacked = scheme.encode_weighted(values.reshape(3, 4, 512), dtype, importance)["blocks"]
    assert stacked.shape == (3, 4, whole.shape[1]) and stacked.tobytes() == whole.tobytes()
    monkeypatch.setattr("aibit_format.schemes.ggml_encode._PIECE_ELEMENTS", 1024)
    assert scheme.encode_weighted(values, dtype, importance)["blocks"].tobytes() == whole.tobytes()
    by_row = scheme.encode_weighted(values, dtype, np.tile(importance, (12, 1)))["blocks"]
    assert by_row.tobytes() == whole.tobytes()


@pytest.mark.parametrize("name", [name for name, encoder in ENCODERS.items() if encoder.by_magnitude])
def test_without_importance_large_values_are_not_clipped(name):
    values = values_of("heavy-tailed", (64, 512))
    alike = np.ones(512, np.float32)
    top = np.abs(values.reshape(-1, 32)).argmax(1)
    apart = []
    for importance in (None, alike):
        blocks = make(name).encode_weighted(values, "f32", importance)
        found = make(name).decode(blocks, values.shape, "f32")
        apart.append(np.abs((found - values).reshape(-1, 32)[np.arange(len(top)), top]).mean())
    assert apart[0] < 0.9 * apart[1]
    weights = magnitudes(values.reshape(-1, 32), "f32", 32).reshape(-1, 32)
    assert np.array_equal(weights.argmax(1), top) and (weights.max(1) <= 3 * weights.min(1) * (1 + 1e-6)).all()


def test_types_without_a_choice_ignore_importance():
    values, scheme = values_of("normal", (4, 256)), make("gguf:q8_0")
    assert not scheme.takes_importance
    assert np.array_equal(scheme.encode_weighted(values, "f32", None)["blocks"], scheme.encode(values, "f32")["blocks"])
    with pytest.raises(SchemeError, match=r"kept as llama\.cpp made it"):
        make("gguf:iq2_xs").encode_weighted(values, "f32", importance_of(256))


@pytest.mark.parametrize("shape", [(0, 512), (3, 0), (0, 2, 256)])
def test_tensors_without_elements_have_no_blocks(shape):
    importance = np.ones(shape[-1], np.float32)
    for name in ENCODERS:
        assert make(name).encode_weighted(np.zeros(shape, np.float32), "f32", importance)["blocks"].size == 0


@pytest.mark.parametrize("name", ENCODERS)
def test_what_an_encoder_refuses(name):
    scheme, values = make(name), values_of("normal", (2, 512))
    for bad, message in (
        (np.ones(256, np.float32), "512 columns"), (np.ones((3, 512), np.float32), "512 columns"),
        (np.ones(512), "float64, not float32"), (np.full(512, -1, np.float32), "negative or not finite"),
        (np.full(512, np.nan, np.float32), "negative or not finite"),
        (np.full(512, np.inf, np.float32), "negative or not finite"),
    ):  # fmt: skip
        with pytest.raises(SchemeError, match=message):
            scheme.encode_weighted(values, "f32", bad)
    values[1, 300] = np.inf
    with pytest.raises(SchemeError, match="not finite"):
        scheme.encode_weighted(values, "f32", importance_of(512))
    with pytest.raises(SchemeError, match="beyond float16"):
        scheme.encode_weighted(np.full((2, 256), 3e38, np.float32), "f32", importance_of(256))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("values", ["normal", "heavy-tailed"])
def test_the_error_is_below_that_of_llama_cpp(name, values):
    """Where its encoders are installed (pip install libgguf), with importance and, of types that search, without."""
    if importlib.util.find_spec("libgguf") is None:
        pytest.skip("wants libgguf")
    import libgguf

    values = values_of(values)
    for importance in (importance_of(values.shape[1]), *([None] if name in ALWAYS else [])):
        raw = libgguf.quantize_rows_raw(int(kind(name)), values, *values.shape, importance)
        theirs = error(values, np.frombuffer(raw, np.uint8).reshape(len(values), -1), name, importance)
        ours = error(values, make(name).encode_weighted(values, "f32", importance)["blocks"], name, importance)
        assert ours < 0.97 * theirs
