"""int8-absmax, int8-zp, int8-outlier, fp8-e4m3 and cluster against torch, their own bounds, and plain arithmetic."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.dtypes import DTYPES, from_float32, to_float32
from aibit_format.errors import SchemeError
from aibit_format.interop import to_torch
from aibit_format.schemes import make, parse
from aibit_format.schemes.base import ROW, TENSOR, matrix
from aibit_format.schemes.packing import pack, unpack

AFFINE = [f"{name}{group}" for name in ("int8-absmax", "int8-zp") for group in ("", ",group=tensor", ",group=16")]
FP8 = ["fp8-e4m3", "fp8-e4m3,group=tensor"]
CLUSTER = ["cluster", "cluster,bits=3", "cluster,bits=8"]
TEXTS = [*AFFINE, *FP8, "int8-outlier", "int8-outlier,threshold=2", *CLUSTER]
SHAPES = [(1, 1), (7, 50), (3, 4, 33), (300, 1000), (0, 5), (5, 0), (2, 0, 3)]
F32 = np.float32


def weights(shape, seed=1, dtype="f32", scale=1.0) -> np.ndarray:
    """Normal values with zero rows, a few large values, and rows that are not centred."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(F32) * F32(scale)
    rows = x.reshape(matrix(shape))
    rows[::5] += F32(scale)
    rows[3::7] = 0
    if x.size:
        rows[1::3, 0] *= 40
    return from_float32(x, dtype)


def encoded(text: str, x: np.ndarray, dtype: str):
    scheme = parse(text).fitted(x, dtype)
    planes = scheme.encode(x, dtype)
    specs = scheme.planes(x.shape, dtype)
    assert list(planes) == [spec.role for spec in specs]
    for spec in specs:
        assert (planes[spec.role].shape, planes[spec.role].dtype) == (spec.shape, DTYPES[spec.dtype].numpy), spec
    assert not [*scheme.bad_values(planes), *scheme.bad_codes(planes, x.shape)]
    return scheme, planes


def steps_of(planes, role: str, x: np.ndarray) -> np.ndarray:
    """A number a group as a number an element."""
    plane = planes[role].astype(F32)
    if plane.shape == (1,):
        return np.broadcast_to(plane, x.shape)
    each = 16 if plane.shape[-1] > 1 else x.shape[-1]
    return np.repeat(plane, each, axis=-1)[..., : x.shape[-1]]


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
    assert make(scheme.name, 1, scheme.parameters) == scheme


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


# --- int8-absmax and int8-zp ----------------------------------------------------------------------------------------


def near_ties(scale: np.ndarray, columns: int, seed: int) -> np.ndarray:
    """Values that are half steps of a row's scale, or next to one, and one at either end of the range."""
    rng = np.random.default_rng(seed)
    x = ((rng.integers(-126, 126, (len(scale), columns)) + 0.5) * scale[:, None]).astype(F32)
    towards = rng.choice(np.array([-np.inf, 0, np.inf], F32), x.shape)
    x = np.where(towards == 0, x, np.nextafter(x, towards))
    x[:, 0] = 127 * scale
    return x


def grouped(x: np.ndarray, group: int) -> np.ndarray:
    """One group a row."""
    return x.reshape(1, -1) if group == TENSOR else x if group == ROW else x.reshape(-1, group)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("text", AFFINE)
def test_codes_are_those_of_torch(text, seed):
    rng = np.random.default_rng(seed)
    rows = near_ties(rng.uniform(1e-6, 1e3, 20).astype(F32), 160, seed)
    if seed == 3:
        rows = weights((20, 160), scale=1e-3) + F32(1e-4)
    scheme, planes = encoded(text, rows, "f32")
    signed = scheme.name == "int8-absmax"
    x, codes = grouped(rows, scheme.group), grouped(planes["codes"], scheme.group)
    scale = torch.from_numpy(planes["scale"].reshape(-1))
    zero = torch.from_numpy(planes.get("zero_point", np.zeros(len(x), np.uint8)).reshape(-1)).int()
    least, most = (-127, 127) if signed else (0, 255)
    source = torch.from_numpy(x)
    wanted = torch.fake_quantize_per_channel_affine(source, scale, zero, 0, least, most)
    assert np.array_equal(grouped(scheme.decode(planes, rows.shape, "f32"), scheme.group), wanted.numpy())
    assert np.array_equal((codes - zero.numpy()[:, None].astype(F32)) * scale.numpy()[:, None], wanted.numpy())
    if scheme.group == TENSOR:
        one = torch.fake_quantize_per_tensor_affine(source, float(scale), int(zero), least, most)
        assert np.array_equal(one.numpy(), wanted.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on their way out of torch
        kind = torch.qint8 if signed else torch.quint8
        old = [torch.quantize_per_channel(source, scale, zero, 0, kind)]
        if scheme.group == TENSOR:
            old.append(torch.quantize_per_tensor(source, float(scale), int(zero), kind))
    for tensor in old:  # these add the zero point before they round
        apart = np.abs(tensor.int_repr().numpy().astype(int) - codes).max()
        assert apart == 0 if signed or seed == 3 else apart <= 1


@pytest.mark.parametrize("text", ["int8-absmax", "int8-zp", "int8-absmax,group=tensor", "int8-zp,group=tensor"])
def test_scales_and_zero_points_are_those_of_torchs_observers(text):
    ao = pytest.importorskip("torch.ao.quantization")
    rng = np.random.default_rng(5)
    x = rng.standard_normal((20_000, 6)).astype(F32)
    x[::2] = 0  # and rows whose zero point is next to a tie
    low = rng.integers(0, 255, 10_000) + 0.5
    x[::2, :2] = np.stack([-low, 255 - low], axis=1) * rng.uniform(0.01, 1, (10_000, 1))
    scheme, planes = encoded(text, x, "f32")
    kind = "tensor" if scheme.group == TENSOR else "channel"
    way = getattr(torch, f"per_{kind}_{'symmetric' if scheme.name == 'int8-absmax' else 'affine'}")
    options = {"ch_axis": 0} if kind == "channel" else {}
    bounds = (-127, 127, torch.qint8) if scheme.name == "int8-absmax" else (0, 255, torch.quint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observer = (ao.PerChannelMinMaxObserver if options else ao.MinMaxObserver)(
            quant_min=bounds[0], quant_max=bounds[1], dtype=bounds[2], qscheme=way, eps=1e-30, **options
        )
        observer(torch.from_numpy(x))
        scale, zero = observer.calculate_qparams()
    assert np.array_equal(planes["scale"].reshape(-1), scale.numpy().astype(F32))
    assert np.array_equal(planes.get("zero_point", np.zeros(zero.shape, int)).reshape(-1), zero.numpy())


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(AFFINE), st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 70), st.integers(-140, 118),
    st.sampled_from(["f32", "bf16"]), st.floats(-3, 3),
)  # fmt: skip
def test_affine_error_is_half_a_step(text, seed, height, width, exponent, dtype, shift):
    x = np.random.default_rng(seed).standard_normal((height, width)) + shift
    x = from_float32(np.ldexp(x, exponent).astype(F32), dtype)
    scheme, planes = encoded(text, x, dtype)
    values = to_float32(x, dtype).astype(np.float64)
    error = np.abs(scheme.decode(planes, x.shape, dtype) - values)
    scale = steps_of(planes, "scale", x).astype(np.float64)
    assert (error <= np.where(scale == 0, 2.0**-118, scale * (0.5 + 2.0**-13))).all()
    reach = np.abs(values).max() if scheme.name == "int8-absmax" else 2 * np.abs(values).max()
    assert scale.max() <= reach / 127 * (1 + 1e-6)


@pytest.mark.parametrize("text", ["int8-absmax", "int8-zp", "fp8-e4m3"])
def test_scales_too_small_to_divide_by_are_zero(text):
    x = np.array([[1e-37, -1e-37], [1e-35, 0], [1e-44, 3e-45]], F32)
    scheme, planes = encoded(text, x, "f32")
    assert (planes["scale"].reshape(-1) > 0).tolist() == [False, True, False]
    assert (scheme.decode(planes, x.shape, "f32") != 0).tolist() == [[False, False], [True, False], [False, False]]
    tensor = parse(f"{text},group=tensor").encode(x[::2], "f32")
    assert not (tensor["codes"] & 0x7F).any() and not tensor["scale"].any()


@pytest.mark.parametrize("text", [*AFFINE, *FP8])
def test_values_that_could_overflow_are_refused(text):
    steps = {"int8-absmax": 127, "int8-zp": 255, "fp8-e4m3": 448}[text.split(",")[0]]
    most = F32(steps * 2.0**119)
    scheme, planes = encoded(text, np.array([[0, most]], F32), "f32")
    assert scheme.decode(planes, (1, 2), "f32").tolist() == [[0, most]]
    for values in ([0, np.nextafter(most, F32(np.inf)) * F32(1.0001)], [-3e38, 3e38]):
        with pytest.raises(SchemeError, match=r"2\^119"):
            scheme.encode(np.array([values], F32), "f32")


def test_zero_is_exact_and_the_ends_are_codes():
    x = np.array([[-1, 0, 2], [1, 2, 3], [-3, -2, -1]], F32)
    scheme, planes = encoded("int8-zp", x, "f32")
    assert planes["codes"].tolist() == [[0, 85, 255], [85, 170, 255], [0, 85, 170]]
    assert planes["zero_point"].reshape(-1).tolist() == [85, 0, 255]
    assert np.allclose(scheme.decode(planes, x.shape, "f32"), x)


@pytest.mark.parametrize("text", AFFINE)
def test_bad_numbers_of_groups_are_found(text):
    scheme, good = encoded(text, weights((4, 40)) + F32(3), "f32")
    for value, reason in (
        (np.nan, "finite"), (np.inf, "finite"), (-1, "negative"), (-0.0, "negative"), (1e-39, "below"),
        (7e35, "above"),
    ):  # fmt: skip
        planes = good | {"scale": good["scale"].copy()}
        planes["scale"].reshape(-1)[-1] = value
        found = list(scheme.bad_values(planes))
        assert any(role == "scale" and reason in what for role, what in found), (value, found)
    if scheme.name == "int8-zp":
        planes = {"codes": good["codes"], "scale": good["scale"] * 0, "zero_point": good["zero_point"] | 1}
        assert [role for role, _ in scheme.bad_values(planes)] == ["zero_point"]


# --- int8-outlier ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shape", [(64, 500), (4, 16, 500)])
def test_outlier_rows_are_float16_and_others_int8(shape, dtype):
    x = weights(shape, dtype=dtype)
    scheme, planes = encoded("int8-outlier", x, dtype)
    half = to_float32(x, dtype).astype(np.float16).reshape(matrix(shape))
    wide = half.astype(np.float64)
    rms = np.sqrt((wide**2).mean(axis=1))
    index = np.flatnonzero(np.abs(wide).max(axis=1) > 8 * rms)
    assert 0 < len(index) < len(half) and scheme.outliers == len(index)
    assert planes["outlier_index"].tolist() == index.tolist()
    assert planes["outlier_values"].tobytes() == half[index].tobytes()
    plain = make("int8").encode(x, dtype)
    plain_decoded = make("int8").decode(plain, shape, dtype).reshape(half.shape)
    decoded = scheme.decode(planes, shape, dtype).reshape(half.shape)
    assert np.array_equal(decoded[index], half[index].astype(F32))
    others = np.setdiff1d(np.arange(len(half)), index)
    assert np.array_equal(decoded[others], plain_decoded[others])
    for role in ("codes", "row_absmax"):
        mine, whole = (p[role].reshape(len(half), -1) for p in (planes, plain))
        assert np.array_equal(mine[others], whole[others]) and not mine[index].any()


def test_a_row_on_the_threshold_is_int8():
    x = np.zeros((3, 64), np.float16)  # a single value among K has a ratio of sqrt(K)
    x[:, 5] = [3, 0.1, 60000]
    assert parse("int8-outlier").fitted(x, "f16").outliers == 0
    assert parse("int8-outlier,threshold=7").fitted(x, "f16").outliers == 3
    assert parse("int8-outlier").fitted(np.pad(x, ((0, 0), (0, 1))), "f16").outliers == 3


def test_outliers_that_do_not_fit_are_refused():
    x = weights((64, 500), dtype="f16")
    fitted = parse("int8-outlier").fitted(x, "f16")
    for scheme in (parse("int8-outlier"), make("int8-outlier", 1, (8, fitted.outliers + 1))):
        with pytest.raises(SchemeError, match=rf"{fitted.outliers} rows .* {scheme.outliers}; fitted"):
            scheme.encode(x, "f16")
    with pytest.raises(SchemeError, match="of 4 rows"):
        make("int8-outlier", 1, (8, 5)).planes((4, 8), "f16")
    with pytest.raises(SchemeError, match="2\\^32"):
        make("int8-outlier").planes(((1 << 32) + 1, 8), "f16")


def test_bad_outliers_are_found():
    scheme, good = encoded("int8-outlier", weights((64, 500), dtype="f16"), "f16")
    index = good["outlier_index"]

    def damaged(role: str, at, value) -> list[str]:
        planes = good | {role: good[role].copy()}
        planes[role][at] = value
        return [found for found, _ in scheme.bad_values(planes)]

    assert damaged("outlier_index", -1, 64) == ["outlier_index"]
    assert damaged("outlier_index", 1, index[0]) == ["outlier_index"]
    assert damaged("outlier_values", (0, 3), np.nan) == damaged("outlier_values", (1, 0), np.inf) == ["outlier_values"]
    assert damaged("codes", (index[2], 499), 1) == ["codes"]
    assert damaged("row_absmax", index[2], 1) == ["row_absmax"]
    assert "row_absmax" in damaged("row_absmax", 2, 65505)
    assert "row_absmax" in damaged("row_absmax", 2, -1)


# --- fp8-e4m3 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("text", FP8)
@pytest.mark.parametrize("scale", [1, 1e-5, 500])
def test_fp8_codes_are_those_of_torchs_cast(text, dtype, scale):
    x = weights((200, 300), dtype=dtype, scale=scale)
    scheme, planes = encoded(text, x, dtype)
    source = to_torch(x, dtype).float()
    largest = source.abs().amax() if scheme.group == TENSOR else source.abs().amax(dim=1, keepdim=True)
    steps = largest / 448
    assert np.array_equal(planes["scale"].reshape(steps.shape), steps.numpy())
    codes = (source / torch.where(steps == 0, 1, steps)).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert np.array_equal(planes["codes"], codes.view(torch.uint8).numpy())
    assert np.array_equal(scheme.decode(planes, x.shape, dtype), (codes.float() * steps).numpy())


def test_fp8_rounds_every_pattern_as_torch_does():
    """All bfloat16 values up to 448, and all midpoints of E4M3 with their float32 neighbours."""
    table = to_float32(np.arange(0x7F, dtype=np.uint8), "f8_e4m3")
    middles = ((table[1:].astype(np.float64) + table[:-1]) / 2).astype(F32)
    bf16 = to_float32(np.arange(0x43E1, dtype=np.uint16), "bf16")
    x = np.concatenate([table, middles, np.nextafter(middles, F32(0)), np.nextafter(middles, F32(1e9)), bf16])
    x = np.concatenate([x, -x])[None]
    _, planes = encoded("fp8-e4m3", x, "f32")
    assert x.max() == 448 and planes["scale"].item() == 1
    codes = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(planes["codes"], codes)
    assert np.array_equal(planes["codes"], from_float32(x, "f8_e4m3"))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FP8), st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 70), st.integers(-149, 120))
def test_fp8_error_is_half_a_step(text, seed, height, width, exponent):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((height, width)) * 2.0 ** rng.integers(-14, 5, (height, width))
    x = np.ldexp(x, exponent).astype(F32)
    scheme, planes = encoded(text, x, "f32")
    values, scale = x.astype(np.float64), steps_of(planes, "scale", x).astype(np.float64)
    error = np.abs(scheme.decode(planes, x.shape, "f32") - values)
    bound = np.maximum(np.abs(values) / 16, scale / 1024) * (1 + 2.0**-20)
    assert (error <= np.where(scale == 0, 2.0**-117, bound)).all()


def test_bad_fp8_is_found():
    scheme, good = encoded("fp8-e4m3", weights((4, 40)), "f32")
    for code in (0x7F, 0xFF):
        planes = good | {"codes": good["codes"].copy()}
        planes["codes"][3, 39] = code
        assert list(scheme.bad_codes(planes, (4, 40))) == [("codes", "a code is NaN")]
    planes = good | {"scale": -good["scale"]}
    assert [role for role, _ in scheme.bad_values(planes)] == ["scale"]


# --- cluster --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_codes_are_the_nearest_entries(bits):
    x = weights((37, 51), dtype="f16")
    scheme, planes = encoded(f"cluster,bits={bits}", x, "f16")
    book = planes["codebook"].astype(np.float64)
    distances = np.abs(x.astype(np.float64)[..., None] - book)
    nearest = distances.argmin(axis=-1)  # the first of several: the lower
    assert np.array_equal(unpack(planes["codes"], bits, 51), nearest)
    assert np.array_equal(pack(nearest.astype(np.uint8), bits), planes["codes"])
    assert np.array_equal(scheme.decode(planes, x.shape, "f16"), planes["codebook"][nearest])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_centres_are_the_means_of_their_values(bits):
    x = np.random.default_rng(4).standard_normal((200, 300)).astype(np.float16)
    _, planes = encoded(f"cluster,bits={bits}", x, "f16")
    codes = unpack(planes["codes"], bits, 300).reshape(-1)
    counts = np.bincount(codes, minlength=1 << bits)
    means = np.bincount(codes, x.reshape(-1).astype(np.float64), minlength=1 << bits) / counts
    assert counts.all() and np.allclose(means, planes["codebook"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("bits", "optimum"), [(2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_error_is_that_of_the_best_quantizer_of_normal_values(bits, optimum):
    """Max, Quantizing for Minimum Distortion, 1960: mean square errors for 4, 8 and 16 levels."""
    x = np.random.default_rng(4).standard_normal((500, 1000)).astype(np.float16)
    scheme, planes = encoded(f"cluster,bits={bits}", x, "f16")
    error = np.square(scheme.decode(planes, x.shape, "f16") - x.astype(np.float64)).mean()
    assert error == pytest.approx(optimum, rel=0.01)


def test_a_few_large_values_get_centres_of_their_own():
    x = (np.random.default_rng(4).standard_normal((500, 1000)) * 0.02).astype(np.float16)
    x[:50, 7] = np.linspace(-3, 3, 50)
    scheme, planes = encoded("cluster,bits=8", x, "f16")
    error = np.abs(scheme.decode(planes, x.shape, "f16")[:50, 7] - x[:50, 7])
    assert error.max() < 0.05  # several times that, if the first centres were quantiles of the values


def by_the_page(x: np.ndarray, bits: int) -> tuple[list[float], list[int]]:
    """Codebook and codes of a vector of more than 2^bits values, step by step as the scheme's page has it."""
    size = 1 << bits
    values = sorted(set(x.tolist()))
    n, occurs = len(values), Counter(x.tolist())
    gaps = [b - a for a, b in pairwise(values)]
    mass, reached = 0.0, []
    for left, right, value in zip([gaps[0], *gaps], [*gaps, gaps[-1]], values, strict=True):
        width = (left + right) / 2
        r = math.sqrt(math.sqrt(occurs[value] / width))
        mass += r * math.sqrt(r) * width
        reached.append(mass)
    start: list[int] = []
    for i in range(size):
        first = next(j for j in range(n) if reached[j] >= (i + 0.5) * (mass / size))
        start.append(min(max(first, start[-1] + 1 if start else 0), n - size + i))
    centres, before = [values[j] for j in start], None
    for _ in range(1000):
        midpoints = [(b + a) / 2 for a, b in pairwise(centres)]
        belongs = [sum(m < value for m in midpoints) for value in values]
        if belongs == before:
            break
        before = belongs
        for i in range(size):
            if mine := [value for value, centre in zip(values, belongs, strict=True) if centre == i]:
                mean = sum(occurs[v] * v for v in mine) / sum(occurs[v] for v in mine)
                centres[i] = min(max(mean, mine[0]), mine[-1])
    book = [float(F32(centre)) for centre in centres]
    midpoints = [(b + a) / 2 for a, b in pairwise(book)]
    return book, [sum(m < value for m in midpoints) for value in x.tolist()]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(0, 2**32 - 1), st.integers(20, 200), st.sampled_from([4, 30, 400]))
def test_codebook_and_codes_are_those_of_the_page(bits, seed, count, spread):
    """Whole numbers: their sums are exact in whatever order, and many lie right between two centres."""
    x = np.rint(np.random.default_rng(seed).standard_normal(count) * spread).clip(-2048, 2048).astype(F32)
    if len(np.unique(x)) > 1 << bits:
        _, planes = encoded(f"cluster,bits={bits}", x, "f32")
        book, codes = by_the_page(x, bits)
        assert planes["codebook"].tolist() == book
        assert unpack(planes["codes"], bits, count).tolist() == codes


def test_midpoints_are_float64():
    """Between 0.33333334 and 1.6666666 the middle is below 1, but is 1 in float32."""
    x = np.array([[0, 0, 1, 1.5, 1.5, 2, 8, 9, 16, 17]], F32)
    scheme, planes = encoded("cluster,bits=2", x, "f32")
    assert planes["codebook"].tolist() == [F32(1 / 3), F32(5 / 3), 8.5, 16.5]
    assert scheme.decode(planes, x.shape, "f32")[0, 2] == F32(5 / 3)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17])
def test_as_many_values_as_codes_are_exact(count):
    values = np.random.default_rng(count).permutation(np.arange(count) - 3).astype(F32) / 8
    x = np.resize(values, (7, 19))
    x[x == 0] = -0.0
    scheme, planes = encoded("cluster", x, "f32")
    book = planes["codebook"]
    exact = np.array_equal(scheme.decode(planes, x.shape, "f32"), x)
    assert exact == (count <= 16)
    if exact:
        assert np.array_equal(np.unique(book), np.unique(x)) and (book[count - 1 :] == x.max()).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 40), st.integers(-24, 10))
def test_cluster_error_is_half_a_gap(bits, seed, height, width, exponent):
    x = np.ldexp(np.random.default_rng(seed).standard_t(2, (height, width)), exponent)
    x = x.clip(-6e4, 6e4).astype(np.float16)
    scheme, planes = encoded(f"cluster,bits={bits}", x, "f16")
    book, wide = planes["codebook"].astype(np.float64), x.astype(np.float64)
    bound = max(np.diff(book).max() / 2, book[0] - wide.min(), wide.max() - book[-1]) * (1 + 1e-15)
    assert np.abs(scheme.decode(planes, x.shape, "f16") - wide).max() <= bound


def test_rows_do_not_matter_to_the_codebook():
    """The histogram is all that counts: no order, no shape, no piece of work."""
    x = weights((600, 700), dtype="f16")
    _, planes = encoded("cluster", x, "f16")
    shuffled = np.random.default_rng(9).permutation(x.reshape(-1)).reshape(700, 600)
    assert encoded("cluster", shuffled, "f16")[1]["codebook"].tobytes() == planes["codebook"].tobytes()


def test_bad_codebooks_and_codes_are_found():
    few = np.array([[1, 2, 3]] * 4, F32)
    scheme, good = encoded("cluster", few, "f32")

    def damaged(at, value, role="codebook"):
        planes = good | {role: good[role].copy()}
        planes[role][at] = value
        values = [what for _, what in scheme.bad_values(planes)]
        return values or [what for _, what in scheme.bad_codes(planes, few.shape)]

    for at, value, reason in (
        (0, np.nan, "finite"), (15, np.inf, "finite"), (15, 65505, "65504"), (0, 2, "increasing"), (0, 5, "increasing"),
        (15, 2.5, "increasing"), (15, 4, "increasing"), (0, -0.0, "minus zero"),
    ):  # fmt: skip
        assert [reason in what for what in damaged(at, value)] == [True], (at, value)
    assert damaged((3, 1), 0x21, "codes") == ["bits after the last code of a row are not zero"]
    assert damaged((3, 0), 0x13, "codes") == ["code 3 of a codebook of 3 values"]
