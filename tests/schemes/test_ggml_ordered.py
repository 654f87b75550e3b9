"""GGML's blocks whose columns are in another order: what gguf-py decodes, with its columns moved."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.errors import FormatError, SchemeError
from aibit_format.file import reader, writer
from aibit_format.file.slice_rows import obstacle, slice_rows
from aibit_format.schemes import ORDERED, make, parse
from tests.support.gguf_models import NAMES, THEIRS, kind, random_blocks


def planes_of(name, shape, seed=0):
    order = np.random.default_rng(seed).permutation(shape[-1]).astype(np.int32)
    return {"blocks": random_blocks(name, shape, seed), "column_order": order}


def test_every_type_has_it_and_no_name_alone_stands_for_it():
    assert ORDERED.keys() == {(name, 2) for name in NAMES}
    for name in NAMES:
        scheme = parse(f"{name},version=2")
        assert scheme == make(name, 2) and scheme.text == f"{name},version=2" and scheme.parameters == ()
        assert make(name) == parse(name) == scheme.unordered != scheme and make(name).unordered == make(name)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(THEIRS), st.sampled_from([(256,), (3, 256), (5, 512), (2, 3, 256)]),
    st.integers(0, 2**32 - 1), st.data(),
)  # fmt: skip
def test_values_are_those_of_gguf_with_columns_moved(name, shape, seed, data):
    scheme, planes = make(name, 2), planes_of(name, shape, seed)
    found = scheme.decode(planes, shape, "f32")
    blocks = planes["blocks"].reshape(-1, planes["blocks"].shape[-1])
    values = gguf.quants.dequantize(blocks, kind(name))
    expected = np.empty_like(found)
    for j, column in enumerate(planes["column_order"]):
        expected[..., j] = values.reshape(shape)[..., column]
    assert found.dtype == np.float32 and found.flags.c_contiguous and found.tobytes() == expected.tobytes()
    rows = np.array(data.draw(st.lists(st.integers(0, len(blocks) - 1), max_size=3)), int)
    part = scheme.decode_rows(planes, shape, "f32", rows)
    assert np.array_equal(part, expected.reshape(len(blocks), shape[-1])[rows])
    assert not [*scheme.bad_values(planes), *scheme.bad_codes(planes, shape)]


@pytest.mark.parametrize("shape", [(0, 256), (4, 0), (0,)])
def test_without_elements(shape):
    planes = planes_of("gguf:q6_k", shape)
    scheme = make("gguf:q6_k", 2)
    assert scheme.decode(planes, shape, "f32").shape == shape
    assert not [*scheme.bad_values(planes), *scheme.bad_codes(planes, shape)]


def test_planes_and_bits():
    scheme = make("gguf:q4_k", 2)
    specs = scheme.planes((7, 3, 512), "bf16")
    assert [(s.role, s.dtype, s.shape) for s in specs] == [
        ("blocks", "u8", (7, 3, 288)), ("column_order", "i32", (512,)),
    ]  # fmt: skip
    assert scheme.bits_per_weight((64, 256), "f32") == 4.5 + 32 / 64
    for shape in ((4, 128), ()):
        with pytest.raises(SchemeError):
            scheme.planes(shape, "f32")
    with pytest.raises(SchemeError, match=r"gguf:q4_0,version=2: the order .* encode with gguf:q4_0"):
        make("gguf:q4_0", 2).encode(np.zeros((1, 32), np.float32), "f32")
    with pytest.raises(SchemeError) as caught:
        make("gguf:q4_k", 2, (1,))
    assert caught.value.code == "AIB-E407"


@pytest.mark.parametrize(
    "change", [{0: 256}, {0: -1}, {0: 5, 5: 5}, {255: -(2**31)}, {0: 2**31 - 1}], ids=lambda change: str(change)
)
def test_an_order_that_is_no_permutation_is_refused(change, tmp_path):
    planes = {"blocks": random_blocks("gguf:q4_k", (2, 256)), "column_order": np.arange(256, dtype=np.int32)}
    scheme = make("gguf:q4_k", 2)
    assert not list(scheme.bad_values(planes))
    for place, value in change.items():
        planes["column_order"][place] = value
    assert [role for role, _ in scheme.bad_values(planes)] == ["column_order"]
    tensor = writer.Tensor("w", (2, 256), "f32", scheme)
    with pytest.raises(Exception, match="column_order"):
        writer.write(tmp_path / "m.aibit", {tensor: planes})


def test_damaged_blocks_are_still_named():
    planes = planes_of("gguf:q4_k", (2, 256))
    planes["blocks"][0, :2] = 0, 0x7C
    assert [role for role, _ in make("gguf:q4_k", 2).bad_codes(planes, (2, 256))] == ["blocks"]


@pytest.mark.parametrize("shape", [(6, 256), (4, 3, 256)])
def test_a_cut_by_rows_keeps_the_order_whole(shape, tmp_path):
    planes = planes_of("gguf:q5_k", shape)
    writer.write(tmp_path / "m.aibit", {writer.Tensor("w", shape, "f32", make("gguf:q5_k", 2)): planes})
    with reader.open(tmp_path / "m.aibit", verify="full") as file:
        info, whole = file.info("w"), file.dequantize("w")
        assert not obstacle(info, 2)
        for rows in (slice(0, shape[0] // 2), slice(shape[0] // 2, shape[0])):
            part, found = slice_rows(file, info, rows)
            assert part.scheme == info.scheme and np.array_equal(found["column_order"], planes["column_order"])
            assert np.array_equal(part.scheme.decode(found, part.shape, "f32"), whole[rows])


def test_values_are_checked_before_they_are_used(tmp_path):
    """A reader that does not verify in full does not decode by an order that points outside."""
    planes = planes_of("gguf:q8_0", (2, 64))
    path = tmp_path / "m.aibit"
    writer.write(path, {writer.Tensor("w", (2, 64), "f32", make("gguf:q8_0", 2)): planes})
    data = path.read_bytes()
    good = planes["column_order"].tobytes()
    assert data.count(good) == 1
    path.write_bytes(data.replace(good, b"\xff\xff\xff\x7f" + good[4:]))
    with reader.open(path, verify="structure") as file, pytest.raises(FormatError) as caught:
        file.dequantize("w")
    assert caught.value.code == "AIB-E502"
