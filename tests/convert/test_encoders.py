"""The fast encoders against the schemes' own, bitsandbytes and float64."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch

import aibit_format as aibit
from aibit_format import interop, schemes
from aibit_format.convert import encoders
from aibit_format.errors import SchemeError
from tests.support import architectures
from tests.support.weights import DTYPES, INT8, weights

pytestmark = pytest.mark.usefixtures("encoders")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["random", "tiny", "huge", "subnormal", "zero-row", "ties"])
def test_int8_equals_bitsandbytes_bit_for_bit(kind, dtype):
    x = weights(kind, dtype)
    codes, absmax, _ = bnb.int8_vectorwise_quant(x.to(torch.float16))
    array, name = interop.to_numpy(x)
    for planes in (encoders.encode(INT8, array, name), INT8.encode(array, name)):
        assert np.array_equal(planes["codes"], codes.numpy())
        assert np.array_equal(planes["row_absmax"], absmax.numpy())
    decoded = bnb.int8_vectorwise_dequant(codes, absmax).numpy()
    assert np.array_equal(INT8.decode(planes, array.shape, name), decoded)


@pytest.mark.parametrize("shape", [(1, 1), (1, 999), (700, 64), (3, 5000), (4, 33, 70), (0, 5), (5, 0), (2, 0, 3)])
def test_int8_of_any_shape_equals_the_scheme(shape):
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float16)
    fast, own = encoders.encode(INT8, x, "f16"), INT8.encode(x, "f16")
    assert fast["codes"].shape == shape and fast["row_absmax"].shape == shape[:-1]
    for role, plane in own.items():
        assert np.array_equal(fast[role], plane)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", ["int8", "f32", "f16", "bf16", "f8_e4m3"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_not_finite_are_refused(dtype, scheme, bad):
    x = weights("random", dtype)
    x[17, 3] = bad
    array, _ = interop.to_numpy(x)
    for encode in (encoders.encode, lambda s, a, d: s.encode(a, d)):
        with pytest.raises(SchemeError):
            encode(schemes.make(scheme), array, dtype)


@pytest.mark.parametrize(
    ("scheme", "value"), [("int8", 65520.0), ("f16", 65520.0), ("f8_e4m3", 480.0), ("f8_e5m2", 65000.0)]
)
def test_values_beyond_a_type_are_refused(scheme, value):
    with pytest.raises(SchemeError):
        encoders.encode(schemes.make(scheme), np.full((2, 2), value, np.float32), "f32")


def test_outlier_rows_are_counted_on_the_values_that_are_encoded(tmp_path):
    """An f32 checkpoint of a bf16 model: rounding can carry a row over the threshold."""
    architectures.save("mixtral", tmp_path / "hf", torch.float32)
    config = (tmp_path / "hf" / "config.json").read_text().replace('"float32"', '"bfloat16"')
    (tmp_path / "hf" / "config.json").write_text(config)
    rules = {"experts|gate": "int8-outlier,threshold=3"}
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="int8-outlier,threshold=3", tensors=rules)
    file = aibit.open(tmp_path / "m.aibit", verify="full")
    schemes = [file.info(name).scheme for name in file if file.info(name).scheme.name == "int8-outlier"]
    found = [scheme.tensor_parameters[0] for scheme in schemes]
    assert len(set(found)) > 1 and file.tables.scheme_names.count("int8-outlier") == 1
    assert len(found) > 8 and sum(count > 0 for count in found) > 4
