"""Int8 in groups, with and without zero points."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.dtypes import from_float32, to_float32
from aibit_format.errors import SchemeError
from aibit_format.schemes import parse
from aibit_format.schemes.base import ROW, TENSOR
from tests.support.eight_bit_weights import AFFINE, F32, FP8, encoded, steps_of, weights


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
