"""Grouped int4."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aibit_format.errors import SchemeError
from aibit_format.schemes import make, parse
from aibit_format.schemes.int4_group import GROUP_SIZES

RNG = np.random.default_rng(4)


def exact(planes: dict[str, np.ndarray], group: int, shape) -> np.ndarray:
    """(code - zero) * scale, element by element in float64, which is exact."""
    values = np.zeros(shape)
    index = planes.get("group_index", np.arange(shape[1]) // (group or shape[1]))
    for n, k in np.ndindex(*shape):
        byte = int(planes["codes"][n, k // 2])
        code = byte & 15 if k % 2 else byte >> 4
        zero = int(planes["zero_point"][n, index[k]]) if "zero_point" in planes else 8
        values[n, k] = (code - zero) * float(planes["scale"][n, index[k]])
    return values


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=70),
        elements=st.floats(-4e5, 4e5, width=32) | st.floats(-1, 1, width=32),
    ),
    st.sampled_from(GROUP_SIZES),
    st.integers(0, 1),
)
def test_encoding_keeps_its_error_bound(values, group, symmetric):
    scheme = make("int4-group", 1, (group, symmetric))
    planes = scheme.encode(values, "f32")
    assert {spec.role: (spec.shape, spec.dtype) for spec in scheme.planes(values.shape, "f32")} == {
        role: (plane.shape, {"uint8": "u8", "float16": "f16"}[str(plane.dtype)]) for role, plane in planes.items()
    }
    assert not [*scheme.bad_values(planes), *scheme.bad_codes(planes, values.shape)]
    decoded = scheme.decode(planes, values.shape, "f32")
    assert np.array_equal(decoded, exact(planes, group, values.shape))
    scale = np.repeat(planes["scale"].astype(np.float64), group or values.shape[1], axis=1)[:, : values.shape[1]]
    bound = scale * (1 / 2 + 1 / 128) + np.where(scale < 2**-14, 2**-21, 0)
    assert (np.abs(decoded - values.astype(np.float64)) <= bound).all()


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("symmetric", [0, 1])
def test_encoding_is_rounding_to_nearest_with_the_scales_of_gptq(symmetric, dtype):
    values = RNG.normal(size=(3, 80)).astype(np.float32)
    stored = torch.from_numpy(values).to({"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype])
    array = stored.view(torch.uint16).numpy() if dtype == "bf16" else stored.numpy()
    planes = make("int4-group", 1, (32, symmetric)).encode(array, dtype)
    for n in range(3):
        for g in range(3):
            block = stored[n, 32 * g : 32 * g + 32].float()
            low, high = min(float(block.min()), 0), max(float(block.max()), 0)
            if symmetric:
                low, high = -max(-low, high), max(-low, high)
            scale = ((torch.tensor(high) - torch.tensor(low)) / 15).half()
            zero = 8 if symmetric else int(torch.round(-low / scale.float()).clamp(0, 15))
            assert planes["scale"][n, g] == scale.numpy()
            if not symmetric:
                assert planes["zero_point"][n, g] == zero
            codes = (torch.round(block / scale.float()) + zero).clamp(0, 15).to(torch.uint8).numpy()
            found = planes["codes"][n, 16 * g : 16 * g + 16]
            assert np.array_equal(np.stack([found >> 4, found & 15], axis=1).reshape(-1)[: len(codes)], codes)


def test_zero_tiny_and_large_groups():
    for symmetric in (0, 1):
        scheme = make("int4-group", 1, (16, symmetric))
        zeros = scheme.encode(np.zeros((1, 16), np.float32), "f32")
        assert not zeros["scale"].any() and set(zeros["codes"].ravel()) == {0x88 if symmetric else 0}
        assert not scheme.decode(zeros, (1, 16), "f32").any()
        tiny = np.full((1, 16), 1e-9, np.float32)  # its scale would be zero in float16
        planes = scheme.encode(tiny, "f32")
        assert planes["scale"][0, 0] == np.float16(2**-24)
        assert np.abs(scheme.decode(planes, (1, 16), "f32") - tiny).max() <= 2**-25
        large = np.zeros((1, 16), np.float32)
        large[0, 3] = 65504 * (7.5 if symmetric else 15)
        assert scheme.encode(large, "f32")["scale"][0, 0] == 65504
        for factor in (1.01, 1e32, np.inf):
            bad = large.copy()
            bad[0, 3] *= factor
            with pytest.raises(SchemeError, match=r"65504|not finite"):
                scheme.encode(bad, "f32")
    with pytest.raises(SchemeError, match="not finite"):
        scheme.encode(np.full((2, 16), np.nan, np.float32), "f32")


def test_bytes_of_the_planes():
    scheme = parse("int4-group,group=row")
    planes = scheme.encode(np.array([[0, 1.5, -0.5, 0.3, 1.0], [0, 0, 0, -3, 0]], np.float32), "f32")
    assert planes["codes"].tobytes().hex() == "4f06c0" + "fff0f0"
    assert planes["zero_point"].tolist() == [[4], [15]]
    assert planes["scale"].tobytes().hex() == "4430" + "6632"


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (1, 1), (2, 3, 40), (2, 0, 40)])
@pytest.mark.parametrize("group", [0, 32])
def test_every_shape_of_a_matrix_or_more(shape, group):
    scheme = make("int4-group", 1, (group,))
    values = RNG.normal(size=shape).astype(np.float32)
    planes = scheme.encode(values, "f32")
    assert [(spec.role, spec.shape) for spec in scheme.planes(shape, "f32")] == [
        (role, plane.shape) for role, plane in planes.items()
    ]
    decoded = scheme.decode(planes, shape, "f32")
    assert decoded.shape == shape and not [*scheme.bad_values(planes), *scheme.bad_codes(planes, shape)]
    if len(shape) == 3 and values.size:  # an expert's planes are its slice of them
        one = {role: plane[1] for role, plane in planes.items()}
        assert np.array_equal(scheme.decode(one, shape[1:], "f32"), decoded[1])


@pytest.mark.parametrize(("symmetric", "ordered"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_some_rows_decode_as_they_do_in_the_whole(symmetric, ordered):
    scheme, shape = make("int4-group", 1, (32, symmetric, ordered)), (9, 77)
    planes = {
        "codes": RNG.integers(0, 256, (9, 39)).astype(np.uint8) & np.uint8([0xFF] * 38 + [0xF0]),
        "scale": RNG.normal(size=(9, 3)).astype(np.float16),  # negative ones too
        "zero_point": RNG.integers(0, 17, (9, 3)).astype(np.uint8),
        "group_index": RNG.integers(0, 3, 77).astype(np.int32),
    }
    planes = {spec.role: planes[spec.role] for spec in scheme.planes(shape, "f16")}
    whole = scheme.decode(planes, shape, "f16")
    assert np.array_equal(whole, exact(planes, 32, shape))
    for rows in (slice(2, 5), slice(0, 0), np.array([8, 1, 1]), np.arange(0, 9, 4)):
        assert np.array_equal(scheme.decode_rows(planes, shape, "f16", rows), whole[rows])
    assert not [*scheme.bad_values(planes), *scheme.bad_codes(planes, shape)]


@pytest.mark.parametrize(
    ("role", "place", "value"),
    [("scale", (1, 1), np.nan), ("scale", (0, 0), np.inf), ("zero_point", (1, 0), 17), ("group_index", 3, 2),
     ("group_index", 0, -1), ("codes", (1, 16), 0x01)],
)  # fmt: skip
def test_planes_that_no_checkpoint_holds_are_named(role, place, value):
    scheme, shape = make("int4-group", 1, (32, 0, 1)), (2, 33)
    planes = {
        "codes": np.full((2, 17), 0x10, np.uint8), "scale": np.ones((2, 2), np.float16),
        "zero_point": np.full((2, 2), 16, np.uint8), "group_index": (np.arange(33) // 32).astype(np.int32),
    }  # fmt: skip
    problems = lambda: [*scheme.bad_values(planes), *scheme.bad_codes(planes, shape)]  # noqa: E731
    assert not problems()
    planes[role][place] = value
    assert [found for found, _ in problems()] == [role]


def test_parameters():
    assert parse("int4-group,group=row,symmetric") == make("int4-group", 1, (0, 1))
    assert make("int4-group", 1, (0, 1)).text == "int4-group,group=row,symmetric=1"
    assert parse("int4-group").bits_per_weight((8, 1024), "f16") == 4 + 24 / 128
    assert parse("int4-group,symmetric=1,group=32").bits_per_weight((8, 1024), "f16") == 4 + 16 / 32
    for text in ("group=33", "group=8", "group=tensor", "symmetric=2", "ordered=2", "ordered=1,group=row"):
        with pytest.raises(SchemeError) as caught:
            parse(f"int4-group,{text}")
        assert caught.value.code == "AIB-E407"
    with pytest.raises(SchemeError, match="comes with a checkpoint"):
        parse("int4-group,ordered=1").encode(np.zeros((2, 32), np.float32), "f32")
    for shape, dtype in (((5,), "f16"), ((4, 4), "i8")):
        with pytest.raises(SchemeError):
            parse("int4-group").planes(shape, dtype)
