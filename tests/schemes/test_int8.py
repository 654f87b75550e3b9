"""int8-absmax, int8-zp, int8-outlier, fp8-e4m3 and cluster against torch, their own bounds, and plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.errors import SchemeError
from aibit_format.schemes import make, parse
from aibit_format.schemes.base import matrix
from tests.support.eight_bit_weights import AFFINE, F32, FP8, encoded, weights

CLUSTER = ["cluster", "cluster,bits=3", "cluster,bits=8"]
TEXTS = [*AFFINE, *FP8, "int8-outlier", "int8-outlier,threshold=2", *CLUSTER]
SHAPES = [(1, 1), (7, 50), (3, 4, 33), (300, 1000), (0, 5), (5, 0), (2, 0, 3)]


# --- every scheme ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("text", TEXTS)
def test_rows_decode_to_the_rows_of_the_whole(text, dtype):
    for shape in SHAPES:
        x = weights(shape, dtype=dtype)
        scheme, planes = encoded(text, x, dtype)
        whole = scheme.decode(planes, shape, dtype)
        assert whole.shape == shape and whole.dtype == np.float32 and np.isfinite(whole).all()
        flat = whole.reshape(matrix(shape))
        indices = np.random.default_rng(2).integers(0, len(flat), 9) if len(flat) else np.zeros(0, np.int64)
        for rows in (slice(0, 0), slice(1, 3), slice(None), slice(len(flat) // 2, None), slice(1, None, 3), indices):
            part = scheme.decode_rows(planes, shape, dtype, rows)
            assert np.array_equal(part, flat[rows]) and part.dtype == np.float32


@pytest.mark.parametrize("text", [*AFFINE, *FP8, *CLUSTER])
def test_a_vector_is_a_matrix_of_one_row(text):
    x = weights((77,))
    _, planes = encoded(text, x, "f32")
    _, matrix_planes = encoded(text, x[None], "f32")
    for role, plane in planes.items():
        assert plane.tobytes() == matrix_planes[role].tobytes()


@pytest.mark.parametrize("text", TEXTS)
def test_zeros_stay_zeros(text):
    scheme, planes = encoded(text, np.zeros((3, 40), F32), "f32")
    assert not any(plane.any() for plane in planes.values())
    assert not scheme.decode(planes, (3, 40), "f32").any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("text", TEXTS)
def test_values_that_are_not_finite_are_refused(text, bad):
    x = weights((30, 40))
    x[29, 39] = bad
    scheme = parse(text)
    with pytest.raises(SchemeError, match="not finite"):
        scheme.fitted(x, "f32").encode(x, "f32")


@pytest.mark.parametrize("text", ["int8-outlier", "cluster"])
def test_values_beyond_float16_are_refused(text):
    x = np.full((2, 4), 65519, F32)
    encoded(text, x, "f32")
    with pytest.raises(SchemeError, match="65504"):
        parse(text).encode(x + 1, "f32")


@pytest.mark.parametrize("text", TEXTS)
def test_shapes_and_dtypes_that_mean_nothing_are_refused(text):
    scheme = parse(text)
    with pytest.raises(SchemeError, match="rank"):
        scheme.planes((), "f32")
    for dtype in ("i8", "f64"):
        with pytest.raises(SchemeError, match=dtype):
            scheme.planes((2, 2), dtype)


@pytest.mark.parametrize(
    "text", [*TEXTS, "int8-zp,group=65536", "int8-outlier,threshold=65535,outliers=4294967295", "cluster,bits=2"]
)
def test_text_and_parameters_round_trip(text):
    scheme = parse(text)
    assert scheme.text == text
    assert make(scheme.name, scheme.version, scheme.parameters).for_tensor(scheme.tensor_parameters) == scheme


@pytest.mark.parametrize("text", [
    "int8-absmax,group=8", "int8-zp,group=24", "int8-absmax,group=65552", "int8-zp,group=block", "fp8-e4m3,group=16",
    "int8-outlier,threshold=0", "int8-outlier,threshold=65536", "cluster,bits=1", "cluster,bits=9", "cluster,group=16",
])  # fmt: skip
def test_parameters_that_mean_nothing_are_refused(text):
    with pytest.raises(SchemeError) as caught:
        parse(text)
    assert caught.value.code == "AIB-E407"


@pytest.mark.parametrize("text", TEXTS)
def test_bits_per_weight_are_those_of_the_bytes(text):
    x = weights((48, 100))
    scheme, planes = encoded(text, x, "f32")
    assert scheme.bits_per_weight(x.shape, "f32") == 8 * sum(plane.nbytes for plane in planes.values()) / x.size


@pytest.mark.parametrize(("text", "shape", "bits"), [
    ("int8-absmax", (4096, 4096), 8 + 32 / 4096), ("int8-zp", (4096, 4096), 8 + 40 / 4096),
    ("int8-absmax,group=128", (4096, 4096), 8.25), ("int8-zp,group=128", (4096, 4096), 8.3125),
    ("fp8-e4m3", (4096, 4096), 8 + 32 / 4096), ("cluster", (4096, 4096), 4 + 16 * 32 / 4096**2),
    ("cluster,bits=3", (10, 3), (10 * 16 + 8 * 32) / 30), ("int8-outlier,outliers=41", (4096, 4096), 8.168),
])  # fmt: skip
def test_bits_per_weight_are_those_of_the_page(text, shape, bits):
    assert parse(text).bits_per_weight(shape, "bf16") == pytest.approx(bits, rel=1e-5)
