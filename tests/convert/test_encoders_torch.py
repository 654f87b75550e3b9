"""Encoding by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aibit_format import interop, schemes
from aibit_format.convert import encoders
from aibit_format.convert.error import measure
from aibit_format.dtypes import to_float32
from tests.support.weights import DTYPES, weights

pytestmark = pytest.mark.usefixtures("encoders")


@pytest.mark.parametrize("target", ["f16", "bf16", "f32", "f64", "f8_e4m3", "f8_e5m2"])
@pytest.mark.parametrize("source", DTYPES)
def test_casts_equal_the_scheme_and_torch(source, target):
    x = weights("random", source, (700, 33))
    array, _ = interop.to_numpy(x)
    scheme = schemes.make(target)
    fast, own = encoders.encode(scheme, array, source), scheme.encode(array, source)
    assert np.array_equal(fast["values"], own["values"])
    assert fast["values"].shape == array.shape
    expected, _ = interop.to_numpy(x.to(torch.float32).to(interop.torch_dtypes()[target]))
    assert np.array_equal(own["values"], expected)
    exact = np.array_equal(to_float32(own["values"], target), to_float32(array, source))
    assert (measure(scheme, fast, array, source) is None) == exact


def test_values_in_their_own_dtype_are_not_copied():
    x = np.ones((4, 5), np.float16)
    assert encoders.encode(schemes.make("f16"), x, "f16")["values"] is x
