"""The fast encoders against the schemes' own, bitsandbytes and float64."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch

from aibit_format import interop, schemes
from aibit_format.convert import encoders
from aibit_format.convert.error import measure
from aibit_format.dtypes import to_float32
from aibit_format.errors import SchemeError

pytestmark = pytest.mark.usefixtures("encoders")

INT8 = schemes.make("int8")
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def weights(kind: str, dtype: str, shape=(300, 192)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(shape, generator=generator)
    x = {"tiny": x * 1e-6, "huge": x * 1e4, "subnormal": x * 1e-7, "ties": (x * 4).round() / 4}.get(kind, x)
    if kind == "zero-row":
        x[::7] = 0
    return x.clamp(-6e4, 6e4).to(DTYPES[dtype])


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


@pytest.mark.parametrize("rows", [40, 2050])
@pytest.mark.parametrize("columns", [63, 100, 1024, 4099])
def test_figures_of_error_are_those_of_float64(rows, columns):
    x = np.random.default_rng(5).standard_normal((rows, columns)).astype(np.float16)
    planes = encoders.encode(INT8, x, "f16")
    error = measure(INT8, planes, x, "f16")
    stride = 16 if rows >= 1024 else 1
    values = x.astype(np.float64)[::stride]
    difference = INT8.decode(planes, x.shape, "f16")[::stride] - values
    noise = (difference**2).sum() / (values**2).sum()
    assert error.relative_rms == pytest.approx(np.sqrt(noise), rel=1e-5)
    assert error.signal_to_noise_db == pytest.approx(-10 * np.log10(noise), abs=1e-3)
    assert error.largest == pytest.approx(np.abs(difference).max(), rel=1e-4)


def test_figures_do_not_depend_on_threads():
    x = np.random.default_rng(5).standard_normal((1600, 2048)).astype(np.float16)
    before = torch.get_num_threads()
    found = set()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found.add(measure(INT8, encoders.encode(INT8, x, "f16"), x, "f16"))
    torch.set_num_threads(before)
    assert len(found) == 1


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


@pytest.mark.parametrize("name", ["f8_e4m3", "f8_e5m2", "f8_e8m0", "bf16"])
def test_every_code_of_the_small_floats_decodes_as_in_torch(name):
    codes = np.arange(65536, dtype=np.uint16) if name == "bf16" else np.arange(256, dtype=np.uint8)
    expected = interop.to_torch(codes, name).to(torch.float32).numpy()
    assert np.array_equal(to_float32(codes, name), expected, equal_nan=True)


def test_read_only_pages_become_tensors_without_a_copy_or_a_warning(recwarn):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    array.flags.writeable = False
    tensor = interop.to_torch(array, "f32")
    assert tensor.data_ptr() == array.ctypes.data and tensor.shape == (3, 4) and not recwarn.list
