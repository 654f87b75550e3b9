"""8-bit rows, and what is said of their inputs."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format import schemes
from aibit_format.errors import SchemeError
from aibit_format.schemes.base import TENSOR
from aibit_format.schemes.int8_affine import Int8Absmax
from tests.support.eight_bit_weights import F32, weights

NAMES = ("int8-dynamic", "int8-static", "int8-static,asymmetric=1")
SCALE, ZERO = "input_scale", "input_zero_point"


def calibrated(text, *ranges):
    low, high = np.array(ranges or [(-1.5, 3)], F32).T
    return schemes.parse(text).calibrated(low, high)


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4), (2, 2, 3, 20), (3, 0)])
@pytest.mark.parametrize("text", NAMES)
def test_the_weight_is_that_of_int8_absmax(text, shape):
    x = weights(shape)
    scheme, rows = calibrated(text), Int8Absmax()
    planes, wanted = scheme.encode(x, "f32"), rows.encode(x, "f32")
    assert all(np.array_equal(planes[role], plane) for role, plane in wanted.items())
    assert np.array_equal(scheme.decode(planes, shape, "f32"), rows.decode(wanted, shape, "f32"))
    found = {role: (plane.dtype.str[1:], plane.shape) for role, plane in planes.items()}
    assert found == {spec.role: (spec.dtype.replace("f32", "f4").replace("i8", "i1"), spec.shape)
                     for spec in scheme.planes(shape, "f32")}  # fmt: skip
    assert list(scheme.bad_values(planes)) == []


@settings(max_examples=100, deadline=None)
@given(st.floats(-(2.0**90), 2.0**90, width=32), st.floats(-(2.0**90), 2.0**90, width=32), st.integers(0, 1))
def test_ranges_become_what_torchs_observers_make_of_them(a, b, asymmetric):
    low, high = min(a, b), max(a, b)
    planes = calibrated(f"int8-static,asymmetric={asymmetric}", (low, high)).encode(weights((2, 3)), "f32")
    kind = torch.per_tensor_affine if asymmetric else torch.per_tensor_symmetric
    lowest = -128 if asymmetric else -127
    observer = torch.ao.quantization.MinMaxObserver(torch.qint8, kind, quant_min=lowest, quant_max=127, eps=2.0**-126)
    observer(torch.tensor([low, high]))
    scale, zero = observer.calculate_qparams()
    if max(-low, high, high - low) / 255 > 2.0**-120:  # torch keeps smaller scales above its epsilon
        assert planes[SCALE] == scale.numpy() and planes.get(ZERO, 0) == zero.numpy()


def test_each_matrix_of_a_stack_has_its_own_range():
    scheme = calibrated("int8-static,asymmetric=1", (0, 2.55), (-2.55, 0), (0, 0))
    planes = scheme.encode(weights((3, 2, 4)), "f32")
    assert planes[SCALE].shape == planes[ZERO].shape == (3, 1)
    assert planes[SCALE].ravel().tolist() == pytest.approx([0.01, 0.01, 0])
    assert planes[ZERO].ravel().tolist() == [-128, 127, 0]
    symmetric = calibrated("int8-static", (-1.27, 1), (0, 2.54), (0, 1e-40)).encode(weights((3, 2, 4)), "f32")
    assert symmetric[SCALE].ravel().tolist() == pytest.approx([0.01, 0.02, 0]) and ZERO not in symmetric


def test_a_scheme_without_a_range_says_what_it_needs():
    scheme = schemes.parse("int8-static")
    assert scheme.needs_inputs and not calibrated("int8-static").needs_inputs
    assert not schemes.parse("int8-dynamic").needs_inputs and calibrated("int8-static") == scheme
    with pytest.raises(SchemeError, match=r"needs the range of the layer's inputs.*--calibrate.*int8-dynamic"):
        scheme.encode(weights((2, 3)), "f32")
    for ranges in ([(0, 1), (0, 1)], [(0, np.inf)], [(np.nan, 1)]):
        with pytest.raises(SchemeError, match="1 finite ranges of inputs"):
            calibrated("int8-static", *ranges).encode(weights((2, 3)), "f32")
    with pytest.raises(SchemeError, match="scale above 2\\^119"):
        calibrated("int8-static", (0, 3e38)).encode(weights((2, 3)), "f32")


@pytest.mark.parametrize(("text", "options"), [("int8-dynamic", "asymmetric=1"), ("int8-static", "asymmetric=2")])
def test_parameters_without_a_meaning(text, options):
    with pytest.raises(SchemeError, match="asymmetric") as caught:
        schemes.parse(f"{text},{options}")
    assert caught.value.code == "AIB-E407"


def test_a_vector_has_no_inputs():
    with pytest.raises(SchemeError, match="int8-dynamic needs rows"):
        schemes.parse("int8-dynamic").planes((4,), "f32")
    assert Int8Absmax(TENSOR).planes((4,), "f32")


@pytest.mark.parametrize(("role", "value", "problem"), [
    (SCALE, np.nan, "not finite"), (SCALE, -1, "negative"), (SCALE, -0.0, "negative"), (SCALE, 2.0**-127, "2\\^-126"),
    (SCALE, 2.0**120, "above 2\\^119"), (SCALE, 0, "zero point is not zero"), ("scale", np.inf, "not finite"),
])  # fmt: skip
def test_bad_planes_are_found(role, value, problem):
    scheme = calibrated("int8-static,asymmetric=1")
    planes = scheme.encode(weights((2, 3)), "f32")
    planes[role].flat[0] = value
    found = [(where, what) for where, what in scheme.bad_values(planes) if re.search(problem, what)]
    assert [where for where, _ in found] == [ZERO if value == 0 and not np.signbit(value) else role]
