"""Plain values."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.dtypes import DTYPES, to_float32
from aibit_format.schemes import make
from tests.support.random_models import calm, shapes
from tools.fixtures import file_builder


@settings(calm, max_examples=60)
@given(st.sampled_from(sorted(DTYPES)), shapes, st.integers(0, 9))
def test_plain_values_keep_their_bits(dtype, shape, seed):
    array = file_builder.values(dtype, shape, seed)
    scheme = make(dtype)
    planes = scheme.encode(array, dtype)
    assert planes["values"].tobytes() == array.tobytes()
    assert sum(spec.nbytes for spec in scheme.planes(shape, dtype)) == array.nbytes
    assert np.array_equal(scheme.decode(planes, shape, dtype), to_float32(array, dtype))
