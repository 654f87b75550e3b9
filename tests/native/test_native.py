"""The compiled code against the schemes' numpy, and what it does with arrays that do not fit."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import sysconfig

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format import interop, native, schemes
from aibit_format.container import checksums
from aibit_format.convert import encoders
from aibit_format.dtypes import DTYPES, from_float32, to_float32
from aibit_format.errors import SchemeError
from aibit_format.schemes import fourbit
from aibit_format.schemes.ggml_encode import ENCODERS
from aibit_format.torch.kernels import openmp

needs_native = pytest.mark.skipif(not native.available, reason="the compiled code is not here")


def test_it_was_built_where_it_can_be():
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    if platform.machine() != "x86_64" or not (shutil.which("gcc") and os.path.exists(header)):
        pytest.skip("no compiler, or another kind of processor")
    assert native.kernels is not None
    with open("/proc/cpuinfo") as file:
        assert native.available == ("avx2" in file.read())


def test_the_environment_turns_it_off():
    code = "from aibit_format import native; print(native.available)"
    off = {**os.environ, "AIBIT_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=off, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


SCHEMES = ["int8", "nf4", "fp4", "nf4,block_size=32", "fp4,block_size=4096", "nf4,nested=1"]


@needs_native
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SCHEMES),
    st.sampled_from(["f16", "bf16", "f32"]),
    st.integers(1, 9),
    st.integers(0, 300),
    st.integers(-40, 30),
    st.integers(0, 2**32 - 1),
)
def test_planes_are_those_of_numpy(name, dtype, rows, columns, exponent, seed):
    random = np.random.default_rng(seed)
    values = np.ldexp(random.standard_normal((rows, columns)), exponent).astype(np.float32)
    values[random.random(values.shape) < 0.1] = 0
    values[random.integers(rows)] = random.choice(np.float32([0, 1, -1, 0.5]))
    scheme = schemes.parse(name)
    array = from_float32(values.clip(-6e4, 6e4) if dtype == "f16" else values, dtype)
    try:
        wanted = scheme.encode(array, dtype)
    except SchemeError as error:
        with pytest.raises(SchemeError, match=str(error)[:20]):
            encoders.encode(scheme, array, dtype)
        return
    found = encoders.encode(scheme, array, dtype)
    assert list(found) == list(wanted)
    for role, plane in wanted.items():
        assert found[role].dtype == plane.dtype and np.array_equal(found[role], plane), role


@needs_native
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["int8", "nf4", "fp4"])
def test_every_value_of_16_bits(name, dtype):
    """Each beside the same companion, so that the scale is known and the code is the value's own."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype].numpy)
    one = from_float32(np.float32([[1]]), dtype)
    fine = np.abs(_floats(bits, dtype)) <= 1
    array = np.repeat(one, fine.sum() * 64, 0).reshape(-1, 64)
    array[:, 5] = bits[fine]
    scheme = schemes.make(name)
    wanted, found = scheme.encode(array, dtype), encoders.encode(scheme, array, dtype)
    for role, plane in wanted.items():
        assert np.array_equal(found[role], plane), role


def _floats(bits: np.ndarray, dtype: str) -> np.ndarray:
    return np.nan_to_num(to_float32(bits, dtype), nan=9)


@needs_native
@pytest.mark.parametrize("place", [0, 31, 32, 40, 69])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("name", ["int8", "nf4", "plain"])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(name, dtype, bad, place):
    values = np.ones((3, 70), np.float32)
    values[1, place] = bad
    with pytest.raises(SchemeError, match="not finite"):
        encoders.encode(schemes.make(dtype if name == "plain" else name), from_float32(values, dtype), dtype)


@needs_native
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_what_is_finite(dtype):
    """All values of 16 bits, and of 32 those with the same upper bits, one by one and all at once."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits.astype(np.uint32) << 16 if dtype == "f32" else bits
    values = values.view(DTYPES[dtype].numpy)
    expected = np.isfinite(to_float32(values, dtype))
    assert [native.finite(values[i : i + 1], dtype) for i in range(len(values))] == expected.tolist()
    assert native.finite(values[expected], dtype) and not native.finite(values, dtype)
    for count in range(70):  # with ends of every length, and what is behind them out of sight
        assert native.finite(values[:count], dtype) and native.finite(
            np.append(values[:count], values[-1:])[:count], dtype
        )
    with pytest.raises(ValueError, match="an array of 4 bytes, where 8 belong" if dtype != "f32" else "4 bytes"):
        native.kernels.finite(dtype, np.zeros(4, np.uint8), 8 // DTYPES[dtype].numpy.itemsize)
    with pytest.raises(ValueError, match="no dtype of weights: i8"):
        native.finite(values, "i8")


def calls():
    """(function, arguments) that fit."""
    codes, absmax = np.zeros((4, 64), np.int8), np.zeros(4, np.float32)
    bounds, order = np.zeros(15, np.float32), np.zeros(16, np.uint8)
    values = np.zeros((4, 64), np.float16)
    yield native.int8_rows, [values, "f16", codes, absmax]
    yield native.four_bit_blocks, [values, "f16", bounds, order, np.zeros(128, np.uint8), absmax]
    packed, book = np.zeros((2, 64), np.uint8), np.zeros(16, np.float32)
    yield native.four_bit_values, [packed, "f16", book, absmax, 64, values.copy()]
    yield native.error_sums, [values, "f16", range(0, 4, 2), np.zeros((2, 64), np.float32)]
    yield native.int8_error_sums, [values, "f16", 2, codes, absmax]
    weight, scales, result = np.zeros((8, 64), np.int8), np.zeros(8, np.float32), np.zeros((4, 8), np.float16)
    yield native.int8_linear, [values, "f16", 6.0, weight, scales, 1.0, None, result]
    yield native.float_linear, [values, "f16", weight, scales, 1.0, None, result]


def _kinds(random: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
    """Weights of a kind that searches may stumble over, f32."""
    values = random.standard_normal(shape) * 2.0 ** random.integers(-12, 3, (shape[0], 1))
    if kind == "heavy":
        values *= np.exp(random.normal(0, 3, values.shape))
    elif kind == "grid":
        values = random.integers(-8, 8, values.shape) / 4
    elif kind == "tiny":
        values *= 1e-7
    elif kind == "sparse":
        values *= random.random(values.shape) < 0.02
    elif kind == "positive":
        values = np.abs(values) + 0.1
    return values.astype(np.float32)


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(ENCODERS)),
    st.sampled_from(["f32", "bf16", "f16"]),
    st.integers(1, 5),
    st.sampled_from(["none", "columns", "rows"]),
    st.sampled_from(["normal", "heavy", "grid", "tiny", "sparse", "positive"]),
    st.integers(0, 2**32 - 1),
)
def test_blocks_of_ggml_are_those_of_numpy(name, dtype, rows, weighting, kind, seed):
    random, scheme, columns = np.random.default_rng(seed), schemes.make(name), 768
    array = from_float32(_kinds(random, (rows, columns), kind).clip(-6e4, 6e4), dtype)
    importance = None
    if weighting != "none":
        importance = np.exp(random.normal(0, 3, columns if weighting == "columns" else array.shape)).astype(np.float32)
        importance *= random.random(importance.shape) < 0.9
    fast = encoders.ggml_weighted(scheme, array, dtype, importance)["blocks"]
    assert fast.tobytes() == scheme.encode_weighted(array, dtype, importance)["blocks"].tobytes()


@needs_native
@pytest.mark.parametrize("call", list(calls()), ids=lambda call: call[0].__name__)
def test_arrays_of_another_size_are_refused(call):
    function, arguments = call
    function(*arguments)
    for i, argument in enumerate(arguments):
        if isinstance(argument, np.ndarray):
            for wrong in (np.zeros(argument.size + 1, argument.dtype), np.zeros(0, argument.dtype), None):
                given = wrong.reshape(1, -1) if i == 0 and wrong is not None else wrong
                changed = [*arguments[:i], given, *arguments[i + 1 :]]
                with pytest.raises((ValueError, TypeError, AttributeError)):
                    function(*changed)
    with pytest.raises(ValueError, match="no dtype of weights: i8"):
        function(arguments[0], "i8", *arguments[2:])


@needs_native
def test_four_bit_products_of_arrays_of_another_size_are_refused():
    inputs, out = np.zeros((3, 64), np.float32), np.zeros((3, 4), np.float32)
    codes, book, absmax = np.zeros((4, 32), np.uint8), np.zeros(16, np.float32), np.zeros(4, np.float32)
    arguments = [inputs, codes, book, absmax, 64, out]
    native.four_bit_product(*arguments)
    for i, argument in enumerate(arguments):
        if isinstance(argument, np.ndarray):
            for wrong in (np.zeros(argument.size + 1, argument.dtype), np.zeros(0, argument.dtype), None):
                given = wrong.reshape(1, -1) if i == 0 and wrong is not None else wrong
                with pytest.raises((ValueError, TypeError, AttributeError)):
                    native.four_bit_product(*arguments[:i], given, *arguments[i + 1 :])


@needs_native
@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_bias_of_another_size_is_refused(size):
    values, codes, scales, out = (
        np.zeros((4, 64), "f4"),
        np.zeros((8, 64), "i1"),
        np.zeros(8, "f4"),
        np.zeros((4, 8), "f4"),
    )
    for function, first in ((native.int8_linear, [values, "f32", 6.0]), (native.float_linear, [values, "f32"])):
        with pytest.raises(ValueError, match="bytes, where 32 belong"):
            function(*first, codes, scales, 1.0, np.zeros(size, np.float32), out)


@needs_native
def test_results_go_into_memory_that_may_be_written():
    values, codes, absmax = np.zeros((4, 64), np.float16), np.zeros((4, 64), np.int8), np.zeros(4, np.float32)
    codes.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        native.int8_rows(values, "f16", codes, absmax)
    with pytest.raises((ValueError, BufferError)):
        native.int8_rows(values[:, ::2], "f16", np.zeros((4, 32), np.int8), absmax)


@needs_native
@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_every_byte_of_two_codes_is_decoded(name, kind):
    """Under scales of all sizes, those whose products are subnormal, infinite or no numbers among them."""
    scheme = fourbit.FourBit(name, block_size=512)
    sizes = np.float32(2) ** np.arange(-149, 128, dtype=np.float32) * np.float32(1.2345678)
    scales = np.concatenate([sizes, -sizes, np.float32([0, 6e4, 7e4, np.inf, np.nan])]).astype(np.float32)
    codes = np.tile(np.arange(256, dtype=np.uint8), (len(scales), 1))
    with np.errstate(all="ignore"):
        exact = scheme.decode_blocks(codes, scales[:, None])
        wanted = from_float32(exact, kind)
    narrow, wide = np.empty_like(wanted), np.empty_like(exact)
    for out in (narrow, wide):
        native.four_bit_values(codes, kind, fourbit.CODEBOOKS[name].values, scales, 512, out)
    numbers = ~np.isnan(exact)
    for found in (to_float32(narrow, kind), wide):
        assert np.array_equal(np.isnan(found), ~numbers)
        assert np.array_equal(found[numbers], to_float32(wanted, kind)[numbers])
        assert np.array_equal(np.signbit(found[numbers]), np.signbit(exact[numbers]))


@needs_native
@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["nf4", "fp4"]),
    st.sampled_from(fourbit.BLOCK_SIZES),
    st.integers(0, 1),
    st.integers(1, 40),
    st.integers(0, 3),
    st.integers(0, 2**32 - 1),
)
def test_decoded_rows_are_those_of_numpy(name, block_size, nested, rows, blocks, seed):
    random, scheme = np.random.default_rng(seed), schemes.make(name, 1, (block_size, nested))
    shape = rows, blocks * block_size
    planes = scheme.encode(random.standard_normal(shape).astype(np.float32), "f32")
    chosen = np.flatnonzero(random.random(rows) < 0.5)
    for part in (slice(0, rows), slice(rows // 3, rows, 3), slice(rows, None), chosen):
        found = scheme.decode_rows(planes, shape, "f32", part)
        wanted = scheme.decode_blocks(*scheme.whole_rows(planes, shape, part))
        assert found.shape == wanted.shape and np.array_equal(found, wanted)


@needs_native
@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 100), st.integers(1, 3), st.sampled_from([32, 64, 256]),
       st.sampled_from(["f32", "bf16", "f16"]), st.integers(1, 3), st.integers(0, 2**32 - 1))  # fmt: skip
def test_four_bit_products(rows, features, blocks, size, dtype, threads, seed):
    """Of whole numbers that are exact in every dtype, so sums are too, in any order and on any thread."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 256, (features, blocks * size // 2)).astype(np.uint8)
    book, scales = np.arange(-8, 8, dtype=np.float32), random.integers(1, 4, (features, blocks)).astype(np.float32)
    inputs = random.integers(-8, 9, (rows, blocks * size)).astype(np.float32)
    weight, out = np.empty((features, blocks * size), np.float32), np.full((rows, features), np.nan, np.float32)
    native.four_bit_values(codes, dtype, book, scales, size, weight, threads, openmp.parallel())
    wanted = book[np.stack([codes >> 4, codes & 15], 2).reshape(features, -1)] * np.repeat(scales, size, 1)
    assert np.array_equal(weight, wanted)
    native.four_bit_product(inputs, codes, book, scales, size, out, threads, openmp.parallel())
    assert np.array_equal(out, inputs @ wanted.T)


@needs_native
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_large_weights_are_decoded_by_several_threads_as_by_one(dtype):
    random = np.random.default_rng(0)
    codes, scales = random.integers(0, 256, (1000, 1000)).astype(np.uint8), random.random(31250, np.float32)
    book, alone, shared = fourbit.NF4, np.empty((1000, 2000), np.float32), np.empty((1000, 2000), np.float32)
    native.four_bit_values(codes, dtype, book, scales, 64, alone)
    native.four_bit_values(codes, dtype, book, scales, 64, shared, 3, openmp.parallel())
    assert np.array_equal(alone, shared)


@needs_native
@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 5000])
def test_nested_scales_are_those_of_numpy(count):
    random, scheme = np.random.default_rng(count), schemes.parse("nf4,nested=1")
    codes, absmax = random.integers(0, 256, count).astype(np.uint8), random.random(-(-count // 256), np.float32)
    out, offset = np.empty(count, np.float32), np.float32(0.1234)
    planes = {"absmax": codes, "nested_absmax": absmax, "nested_offset": np.array([offset])}
    native.nested_scales(codes, fourbit.dynamic_map(), absmax, float(offset), out)
    assert np.array_equal(out, scheme.absmax(planes, slice(None)))
    for i, wrong in ((0, np.zeros(count + 256, np.uint8)), (1, out), (2, np.append(absmax, absmax)), (4, out[1:])):
        arguments = [codes, fourbit.dynamic_map(), absmax, float(offset), out]
        arguments[i] = wrong
        if wrong.size != [count, 256, -(-count // 256), 0, count][i]:
            with pytest.raises(ValueError, match="bytes, where"):
                native.nested_scales(*arguments)


@needs_native
@pytest.mark.parametrize("block_size", [0, -64, 48, 31])
def test_blocks_that_cannot_be_decoded_are_refused(block_size):
    codes, book, absmax = np.zeros((2, 64), np.uint8), np.zeros(16, np.float32), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="not of a multiple of 32"):
        native.four_bit_values(codes, "f32", book, absmax, block_size, np.zeros((4, 64), np.float32))
    with pytest.raises(ValueError, match="f32 in 2 bytes"):
        native.four_bit_values(codes, "f32", book, absmax, 64, np.zeros((4, 64), np.float16))
    with pytest.raises(ValueError, match="96 columns, not whole blocks of 64"):
        native.four_bit_product(np.zeros((1, 96), np.float32), codes, book, absmax, 64, np.zeros((1, 2), "f4"))


@needs_native
@pytest.mark.parametrize("size", [96, 160])
def test_blocks_that_a_product_would_split_are_refused(size):
    """A chunk of 64 codes has the scales of two halves at most: these blocks begin elsewhere, too."""
    codes, absmax = np.zeros((2, size), np.uint8), np.zeros((2, 2), np.float32)
    inputs, out = np.zeros((1, 2 * size), np.float32), np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match=f"blocks of {size} elements, neither 32 nor a multiple of 64"):
        native.four_bit_product(inputs, codes, np.zeros(16, np.float32), absmax, size, out)


@needs_native
@pytest.mark.parametrize(
    ("rows", "columns", "error"),
    [
        (4 + 2**62, 64, OverflowError),  # 4 * 64, and 4 * 4 bytes of scales, but for a multiple of 2**64
        (-4, -64, ValueError),
        (4, -64, ValueError),
        (2**63 - 1, 2**63 - 1, OverflowError),
        (2**63, 64, OverflowError),
        (4, 2**62, OverflowError),
    ],
)
def test_sizes_that_are_negative_or_wrap_are_refused(rows, columns, error):
    values, codes, absmax = np.zeros((4, 64), np.float16), np.zeros((4, 64), np.int8), np.zeros(4, np.float32)
    with pytest.raises(error):
        native.kernels.int8_rows("f16", values, rows, columns, codes, absmax)


@needs_native
@pytest.mark.parametrize("rows", [2**32, 2**62])
def test_empty_rows_take_no_time_however_many_there_are(rows):
    none, book = np.zeros(0, np.float32), np.zeros(16, np.float32)
    native.kernels.four_bit_product(rows, 0, 0, none, none, book, none, 64, none, 1, None)
    native.kernels.float_linear("f32", rows, 0, 0, none, none, none, 1.0, None, none, 1, None)
    assert native.kernels.int8_linear("f32", rows, 0, 0, none, none, none, 1.0, None, none, 1, None, 6.0)
    assert native.kernels.error_sums("f32", none, rows, 0, 0, 1, rows, none) == (0, 0, 0)


@needs_native
def test_threads_are_those_of_a_runtime_that_was_looked_up():
    codes, scales, out = np.zeros(32, np.uint8), np.ones(1, np.float32), np.empty(64, np.float32)
    arguments = [codes, "f32", np.zeros(16, np.float32), scales, 64, out]
    native.four_bit_values(*arguments, 2, openmp.parallel())
    for number in (0, 12345, ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value):
        with pytest.raises(TypeError, match="which gomp_parallel has not returned"):
            native.four_bit_values(*arguments, 2, number)
    for threads in (0, -1, 4097, 2**32 + 1):
        with pytest.raises(ValueError, match="threads, where 1 to 4096 can be had"):
            native.four_bit_values(*arguments, threads, openmp.parallel())
    with pytest.raises(OverflowError):
        native.four_bit_values(*arguments, 2**64, openmp.parallel())
    assert native.gomp_parallel("/none/libgomp.so.1") is None  # no library is loaded that was not before
    assert native.gomp_parallel(native.kernels.__file__) is None


@needs_native
@pytest.mark.parametrize("rows", [range(-1, 3), range(9), range(4, 5), range(3, 0, -1), range(0)])
def test_rows_that_are_not_there_are_refused(rows):
    with pytest.raises(ValueError, match="rows from"):
        native.error_sums(np.zeros((4, 8), np.float32), "f32", rows, np.zeros((len(rows), 8), np.float32))


@needs_native
def test_blocks_are_multiples_of_a_vector():
    with pytest.raises(ValueError, match="blocks of 48 elements"):
        native.four_bit_blocks(
            np.zeros((2, 48), np.float32), "f32", np.zeros(15, np.float32), np.zeros(16, np.uint8),
            np.zeros(48, np.uint8), np.zeros(2, np.float32),
        )  # fmt: skip


@needs_native
@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 400), st.integers(1, 1200), st.integers(1, 200), st.booleans(), st.integers(1, 5),
    st.sampled_from(["f32", "f16", "bf16"]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_products_of_codes_are_exact_whatever_the_shape(rows, columns, features, with_bias, threads, dtype, seed):
    random = np.random.default_rng(seed)
    codes = random.integers(-128, 128, (features, columns)).astype(np.int8)
    inputs = np.zeros((rows, -(-columns // 16) * 16), np.int16)
    inputs[:, :columns] = random.integers(-128, 128, (rows, columns))
    row_scales, scales, bias = (random.random(n, np.float32) for n in (rows, features, features))
    out, factor = from_float32(np.full((rows, features), np.nan, np.float32), dtype), np.float32(6.2e-5)
    used = bias if with_bias else None
    native.int8_product(inputs, row_scales, codes, scales, factor, used, out, dtype, threads, openmp.parallel())
    sums = (inputs[:, :columns].astype(np.float64) @ codes.T.astype(np.float64)).astype(np.float32)
    wanted = sums * (row_scales[:, None] * scales) * factor
    assert np.array_equal(out, from_float32(wanted + bias if with_bias else wanted, dtype))


@needs_native
@pytest.mark.parametrize("i", range(6))
def test_products_of_arrays_of_another_size_are_refused(i):
    inputs, codes = np.zeros((3, 32), np.int16), np.zeros((64, 20), np.int8)
    arrays = [inputs, np.zeros(3, np.float32), codes, np.zeros(64, np.float32), np.zeros(64, np.float32),
              np.zeros((3, 64), np.float32)]  # fmt: skip
    for wrong in (np.zeros(arrays[i].size + 1, arrays[i].dtype).reshape(-1, 1), np.zeros((0, 20), arrays[i].dtype)):
        a, row_scales, b, scales, bias, out = (*arrays[:i], wrong, *arrays[i + 1 :])
        with pytest.raises(ValueError, match="bytes, where"):
            native.int8_product(a, row_scales, b, scales, 1.0, bias, out, "f32")


def _quantized(array: np.ndarray, dtype: str) -> np.ndarray | None:
    """Inputs in 8 bits, times their scales: what a product with the whole numbers 0 and 1 makes of them."""
    columns = array.shape[1]
    out, ones = np.empty(array.shape, np.float32), np.ones(columns, np.float32)
    wide = to_float32(array, dtype).astype(np.float32)  # the result is then of float32, which rounds nothing
    fine = native.int8_linear(wide, "f32", 6.0, np.eye(columns, dtype=np.int8), ones, 1.0, None, out)
    return out if fine else None


@needs_native
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_inputs_are_quantized_as_by_bitsandbytes(dtype):
    random = np.random.default_rng(0)
    values = random.standard_normal((3000, 333)).astype(np.float32) * random.random((3000, 1), np.float32)
    array = from_float32(values, dtype)
    codes, scales, _ = bnb.int8_vectorwise_quant(interop.to_torch(array, dtype).to(torch.float16))
    assert np.array_equal(_quantized(array, dtype), codes.numpy() * scales.numpy()[:, None])
    result = from_float32(np.zeros_like(values), dtype)
    ones = np.ones(333, np.float32)
    assert native.int8_linear(array, dtype, 6.0, np.eye(333, dtype=np.int8), ones, 1.0, None, result)
    assert np.array_equal(result, from_float32(codes.numpy() * scales.numpy()[:, None], dtype))


@needs_native
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("columns", [1, 15, 16, 100, 2048])
def test_inputs_with_a_magnitude_at_the_threshold_are_left_alone(columns, dtype):
    values = np.linspace(-1, 1, 3 * columns, dtype=np.float32).reshape(3, columns)
    codes, scales, out = (
        np.ones((4, columns), np.int8),
        np.ones(4, np.float32),
        from_float32(np.ones((3, 4), np.float32), dtype),
    )
    assert native.int8_linear(from_float32(values, dtype), dtype, 6.0, codes, scales, 1.0, None, out)
    for bad in (6.0, -6.0, np.nan, np.inf, -np.inf):
        changed, kept = values.copy(), out.copy()
        changed[1, -1] = bad
        assert not native.int8_linear(from_float32(changed, dtype), dtype, 6.0, codes, scales, 1.0, None, out)
        assert np.array_equal(out, kept)


@needs_native
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 17), st.integers(1, 300), st.integers(1, 200), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_products_of_floats_whatever_the_shape(rows, columns, features, threads, seed):
    random = np.random.default_rng(seed)
    codes = random.integers(-128, 128, (features, columns)).astype(np.int8)
    inputs, scales = random.standard_normal((rows, columns)).astype(np.float32), np.ones(features, np.float32)
    out = np.full((rows, features), np.nan, np.float32)
    native.float_linear(inputs, "f32", codes, scales, 1.0, None, out, threads, openmp.parallel())
    exact = inputs.astype(np.float64) @ codes.T.astype(np.float64)
    most = np.abs(inputs.astype(np.float64)) @ np.abs(codes.T.astype(np.float64))
    assert (np.abs(out - exact) <= 4e-7 * columns**0.5 * most + 1e-6).all()


@needs_native
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_a_product_of_whole_numbers_in_floats_is_exact_and_then_scaled(dtype):
    inputs, codes = np.arange(90, dtype=np.float32).reshape(3, 30), np.ones((70, 30), np.int8)
    scales, bias = np.linspace(-1, 1, 70, dtype=np.float32), np.linspace(3, 4, 70, dtype=np.float32)
    out = from_float32(np.empty((3, 70), np.float32), dtype)
    for added in (bias, None):
        native.float_linear(from_float32(inputs, dtype), dtype, codes, scales, 0.1, added, out)
        wanted = np.repeat(inputs.sum(1)[:, None], 70, 1) * scales * np.float32(0.1)
        assert np.array_equal(out, from_float32(wanted if added is None else wanted + bias, dtype))


@needs_native
@settings(max_examples=60, deadline=None)
@given(st.integers(241, 9000), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_digests_of_leaves_are_those_of_xxhash(size, count, seed):
    data, found = np.random.default_rng(seed).integers(0, 256, count * size, np.uint8), np.empty(count, np.uint64)
    native.leaf_digests(data, size, found)
    assert found.tolist() == [xxhash.xxh3_64_intdigest(data[i * size : (i + 1) * size].data) for i in range(count)]


@needs_native
def test_leaves_that_are_short_or_missing_are_refused():
    with pytest.raises(ValueError, match="leaves of 240 bytes"):
        native.leaf_digests(np.zeros(240, np.uint8), 240, np.zeros(1, np.uint64))
    with pytest.raises(ValueError, match="bytes, where"):
        native.leaf_digests(np.zeros(500, np.uint8), 500, np.zeros(2, np.uint64))


@pytest.mark.parametrize("which", [None, [0], [1, 2, 3], [3, 1], [0, 2], [4], [3, 4], []])
def test_leaves_of_a_region_whichever_are_wanted(which, monkeypatch):
    region = np.random.default_rng(0).integers(0, 256, 4 * checksums.LEAF + 100, np.uint8)
    found = checksums.leaves(region, which)
    monkeypatch.setattr(native, "available", False)
    assert np.array_equal(found, checksums.leaves(region, which)) and len(found) == (5 if which is None else len(which))


@needs_native
@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(
        [
            "int4-group,group=32",
            "int4-group,symmetric=1",
            "int4-group,group=row",
            "int-group,bits=2,group=24",
            "int-group,bits=3,group=5,zero=code",
            "int-group,zero=float",
            "int-group,bits=8,group=row,zero=bias,scale=bf16",
            "nf4",
            "fp4,block_size=32",
            "fp8-e4m3",
            "fp8-block,rows=3,columns=17",
            "mxfp4",
            "mxfp8,element=f8_e5m2",
            "nvfp4",
            "cluster-group,group=16",
            "cluster-group,bits=2,group=row",
        ]
    ),
    st.sampled_from(["f32", "bf16", "f16"]),
    st.integers(1, 5),
    st.integers(1, 150),
    st.sampled_from(["none", "columns", "rows"]),
    st.sampled_from(["normal", "heavy", "grid", "tiny", "sparse", "positive"]),
    st.integers(0, 2**32 - 1),
)
def test_searched_groups_are_those_of_numpy(text, dtype, rows, columns, weighting, kind, seed):
    random = np.random.default_rng(seed)
    scheme = schemes.parse(text if text.startswith("cluster") else f"{text},search=1")
    array = from_float32(_kinds(random, (rows, columns), kind).clip(-6e4, 6e4), dtype)
    importance = None
    if weighting != "none":
        importance = np.exp(random.normal(0, 3, columns if weighting == "columns" else array.shape)).astype(np.float32)
        importance *= random.random(importance.shape) < 0.9
    wanted = scheme.encode_weighted(array, dtype, importance)
    found = encoders.searched_weighted(scheme, array, dtype, importance)
    assert all(found[role].tobytes() == plane.tobytes() for role, plane in wanted.items())


@needs_native
def test_searches_with_numbers_that_do_not_fit_are_refused():
    values, weights, scales = np.zeros((3, 4), np.float32), np.ones((1, 4), np.float32), np.zeros(3, np.float32)
    grid, starts = (0, -8.0, 7.0, 0.0, 0.0), np.ones((2, 2), np.float32)
    fits = [values, "f32", weights, grid, None, starts, 2, False, scales, scales.copy()]
    native.fit_groups(*fits)
    others = {
        0: np.zeros((3, 5), np.float32), 3: (3, *grid[1:]), 4: np.zeros(31, np.float32), 6: 17,
        8: np.zeros(2, np.float32), 2: np.zeros((0, 4), np.float32), 5: np.zeros((0, 2), np.float32),
    }  # fmt: skip
    for place, other in others.items():
        with pytest.raises(ValueError, match=r"search|belong"):
            native.fit_groups(*(other if i == place else argument for i, argument in enumerate(fits)))
    tried = np.zeros((2, 3), np.float32)
    chosen = [values, "f32", weights, grid, None, tried, tried.copy(), np.zeros(3, np.uint8), scales]
    native.choose_groups(*chosen)
    with pytest.raises(ValueError, match="belong"):
        native.choose_groups(*chosen[:7], np.zeros(2, np.uint8), scales)
    with pytest.raises(ValueError, match="no search"):
        native.choose_groups(*chosen[:5], tried[:0], tried[:0], *chosen[7:])
