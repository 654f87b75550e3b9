"""Draw weights for schemes of eight bits and fewer."""

from __future__ import annotations

import numpy as np

from aibit_format.dtypes import DTYPES, from_float32
from aibit_format.schemes import parse
from aibit_format.schemes.base import matrix

AFFINE = [f"{name}{group}" for name in ("int8-absmax", "int8-zp") for group in ("", ",group=tensor", ",group=16")]
FP8 = ["fp8-e4m3", "fp8-e4m3,group=tensor"]
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
