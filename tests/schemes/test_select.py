"""What is selected in planes decodes to what would be selected of the values, bit for bit, or is left to be decoded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibit_format.errors import SchemeError
from aibit_format.schemes import make, parse
from aibit_format.schemes.opaque import Opaque
from aibit_format.schemes.select import COLUMNS, MATRICES, ROWS, select, selected_values, shape_of

SHAPE = (3, 12, 512)
# Scheme -> columns of a block that can be taken without decoding.
BLOCKS = {
    "f32": 1, "bf16": 1, "int8": 1, "int8-absmax": 1, "int8-zp,group=64": 64, "int8-dynamic": 1, "fp8-e4m3": 1,
    "nf4": 64, "nf4,block_size=128,nested=1": 128, "fp4": 64, "int4-group,group=32": 32, "int4-group,symmetric=1": 128,
    "int4-group,group=row": 2, "int-group,bits=3,group=64": 64, "int-group,bits=2,group=32,zero=bias": 32, "mxfp4": 32,
    "nvfp4": 16, "gguf:q4_0": 32, "gguf:q8_0": 32, "gguf:q4_k": 256, "cluster,bits=4": 2, "cluster,bits=3": 8,
    "cluster-group,bits=4,group=64": 64,
}  # fmt: skip


def encoded(text, shape, dtype="f32"):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    scheme = make(dtype) if text in ("f32", "bf16") else parse(text)
    if text == "bf16":
        scheme, dtype, values = make("bf16"), "bf16", (values.view(np.uint32) >> 16).astype(np.uint16)
    return scheme, scheme.encode(values, dtype), dtype


def decoded(scheme, planes, shape, dtype):
    return planes["values"] if "values" in planes else scheme.decode(planes, shape, dtype)


def check(text, shape, kept):
    scheme, planes, dtype = encoded(text, shape)
    found = select(scheme, shape, dtype, kept)
    if found is None:
        return False
    made = found.planes(planes)
    wanted = {spec.role: spec.stored for spec in found.scheme.planes(found.shape, dtype)}
    assert {role: plane.shape for role, plane in made.items()} == wanted and found.shape == shape_of(shape, kept)
    expected = selected_values(decoded(scheme, planes, shape, dtype), kept)
    assert np.array_equal(decoded(found.scheme, made, found.shape, dtype), expected)
    assert not list(found.scheme.bad_values(made)) and not list(found.scheme.bad_codes(made, found.shape))
    return True


@pytest.mark.parametrize("shape", [SHAPE, SHAPE[1:]], ids=["stack", "matrix"])
@pytest.mark.parametrize(("text", "block"), BLOCKS.items())
def test_whole_blocks_of_columns_are_taken(text, block, shape):
    blocks = np.arange(512 // block)[:: 2 if block < 256 else 1][1 if block < 256 else slice(0, 1)]
    every = np.atleast_1d(np.arange(512 // block)[1::2] if block < 256 else blocks)
    kept = (every[:, None] * block + np.arange(block)).reshape(-1)
    assert check(text, shape, {COLUMNS: kept})
    if block > 1:
        assert not check(text, shape, {COLUMNS: kept[1:]})


@pytest.mark.parametrize("text", BLOCKS)
def test_any_rows_are_taken(text):
    kept = {ROWS: np.array([0, 3, 4, 11])}
    assert check(text, SHAPE[1:], kept) and check(text, SHAPE, kept)
    assert check(text, SHAPE, {MATRICES: np.array([0, 2]), ROWS: np.array([5])})


@pytest.mark.parametrize("text", ["int8", "nf4", "gguf:q4_0", "int4-group,group=32", "mxfp4"])
def test_each_matrix_may_keep_other_rows_and_columns(text):
    rows = np.array([[0, 1], [4, 9], [10, 11]])
    assert check(text, SHAPE, {ROWS: rows})
    columns = np.stack([np.arange(64) + start for start in (0, 64, 448)])
    assert check(text, SHAPE, {COLUMNS: columns})
    assert check(text, SHAPE, {MATRICES: np.array([1, 2]), COLUMNS: columns[:2]})


@given(st.sampled_from(sorted(BLOCKS)), st.data())
def test_whatever_is_kept(text, data):
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([32, 48, 64, 192, 256, 320]))
    try:
        encoded(text, (rows, columns))
    except SchemeError:  # no shape of the scheme
        return
    kept = data.draw(st.lists(st.integers(0, columns - 1), min_size=1, unique=True))
    step = data.draw(st.sampled_from([1, 16, 32, 64]))
    blocks = sorted(
        {each // step * step + i for each in kept for i in range(step) if each // step * step + i < columns}
    )
    check(text, (rows, columns), {COLUMNS: np.array(blocks), ROWS: np.arange(rows)[::2]})


def test_a_short_group_at_the_end_is_decoded():
    assert not check("int4-group,group=128", (2, 192), {COLUMNS: np.arange(160)})
    assert check("int4-group,group=128", (2, 64), {COLUMNS: np.arange(32)})  # one group, which all columns share


def test_blocks_of_rows_are_taken_whole():
    scheme = parse("fp8-block")
    planes = scheme.encode(np.random.default_rng(0).normal(size=(384, 256)).astype(np.float32), "f32")
    kept = {ROWS: np.r_[0:128, 256:384], COLUMNS: np.arange(128)}
    found = select(scheme, (384, 256), "f32", kept)
    expected = selected_values(scheme.decode(planes, (384, 256), "f32"), kept)
    assert np.array_equal(scheme.decode(found.planes(planes), (256, 128), "f32"), expected)
    assert select(scheme, (384, 256), "f32", {ROWS: np.arange(64)}) is None


def test_the_planes_of_vectors():
    assert check("f32", (12,), {ROWS: np.array([1, 5])})
    with pytest.raises(ValueError, match="no axis 2"):
        shape_of((12,), {COLUMNS: np.array([1])})


@pytest.mark.parametrize("scheme", [
    parse("int-group,ordered=1"), parse("int8-outlier"), parse("gguf:q4_0,version=2"),
    Opaque(name="x", version=1, stored=(), code="AIB-E406", reason="unknown"),
], ids=lambda scheme: scheme.name)  # fmt: skip
def test_what_is_not_by_place_is_decoded(scheme):
    assert select(scheme, (64, 512), "f32", {COLUMNS: np.arange(256)}) is None
