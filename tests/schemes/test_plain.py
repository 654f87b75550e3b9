"""Plain values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.dtypes import DTYPES, to_float32
from aibit_format.errors import SchemeError
from aibit_format.schemes import make
from aibit_format.schemes.packing import unpack_plane
from tests.support.random_models import calm, shapes
from tools.fixtures import file_builder


@settings(calm, max_examples=60)
@given(st.sampled_from(sorted(DTYPES)), shapes, st.integers(0, 9))
def test_plain_values_keep_their_bits(dtype, shape, seed):
    array = file_builder.values(dtype, shape, seed)
    scheme = make(dtype)
    planes = scheme.encode(array, dtype)
    if DTYPES[dtype].is_packed:
        assert np.array_equal(unpack_plane(planes["values"], dtype, shape), array)
    else:
        assert planes["values"].tobytes() == array.tobytes()
    assert sum(spec.nbytes for spec in scheme.planes(shape, dtype)) == planes["values"].nbytes
    assert np.array_equal(scheme.decode(planes, shape, dtype), to_float32(array, dtype))


@pytest.mark.parametrize(("dtype", "multiple"), [("u1", 8), ("i2", 4), ("u3", 8), ("f4_e2m1", 2), ("u6", 4), ("u8", 1)])
def test_a_vector_is_cut_where_a_byte_begins(dtype, multiple):
    assert make(dtype).row_multiple((64,)) == multiple and make(dtype).row_multiple((64, 3)) == 1


def test_codes_of_too_many_bits_are_refused():
    for dtype in (name for name in DTYPES if DTYPES[name].is_packed):
        most = (1 << DTYPES[dtype].bits) - 1
        make(dtype).encode(np.array([most], np.uint8), dtype)
        with pytest.raises(SchemeError, match=rf"code {most + 1} has more than the \d bits of {dtype}"):
            make(dtype).encode(np.array([0, most + 1], np.uint8), dtype)


def test_floats_are_rounded_to_fewer_bits_and_too_large_ones_refused():
    values = np.array([0.25, 0.75, 1.25, -5, 6.9, -0.0, 1.74], np.float32)
    planes = make("f4_e2m1").encode(values, "f32")
    assert make("f4_e2m1").decode(planes, values.shape, "f4_e2m1").tolist() == [0, 1, 1, -4, 6, 0, 1.5]
    assert planes["values"].tobytes() == bytes.fromhex("20e28703")
    for value in (7, -7, np.nan, np.inf):
        with pytest.raises(SchemeError, match=r"too large|not finite"):
            make("f4_e2m1").encode(np.array([value], np.float32), "f32")
    with pytest.raises(SchemeError, match="f32 values cannot be stored as u4"):
        make("u4").encode(values, "f32")


def test_bits_per_weight_are_those_of_rows():
    assert make("u3").bits_per_weight((4, 5), "u3") == 16 / 5
    assert make("u4").bits_per_weight((4096, 4096), "u4") == 4 and make("u1").bits_per_weight((), "u1") == 8
