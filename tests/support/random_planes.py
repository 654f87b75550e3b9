"""Planes of random bits, within the rules: every code and every scale that a checkpoint could hold."""

from __future__ import annotations

import numpy as np

from aibit_format.dtypes import DTYPES
from aibit_format.schemes import Scheme

_NOT_FINITE = {"f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F80_0000, "f8_e4m3": 0x7F, "f8_e5m2": 0x7C}  # and above
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def random_plane(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], positive: bool = False) -> np.ndarray:
    """Return a plane as it is stored, of any finite values; of small ones each has a chance, subnormals included."""
    kind = DTYPES[dtype]
    if kind.is_packed:
        stored = rng.integers(0, 256, kind.stored(shape), np.uint8)
        if spare := -shape[-1] * kind.bits % 8:
            stored[..., -1] &= 0xFF >> spare
        return stored
    size = kind.numpy.itemsize
    if dtype == "f8_e8m0":
        return rng.integers(0, 255, shape, np.uint8)
    if dtype not in _NOT_FINITE:
        return rng.integers(0, 1 << 8 * size, shape, _BITS[size]).view(kind.numpy)
    bits = rng.integers(0, _NOT_FINITE[dtype], shape, _BITS[size])
    if not positive:
        bits |= rng.integers(0, 2, shape, _BITS[size]) << _BITS[size](8 * size - 1)
    return bits.view(kind.numpy)


def random_planes(scheme: Scheme, shape: tuple[int, ...], dtype: str = "f32", seed: int = 0) -> dict[str, np.ndarray]:
    """Return random planes of a tensor; scales are positive, and orders of columns name groups that exist."""
    rng = np.random.default_rng(seed)
    specs = {spec.role: spec for spec in scheme.planes(shape, dtype)}
    planes = {role: random_plane(rng, spec.dtype, spec.shape, positive="scale" in role) for role, spec in specs.items()}
    if "group_index" in planes:
        planes["group_index"] = rng.integers(0, max(specs["scale"].shape[-1], 1), shape[-1], np.int32)
    if scheme.name == "int-group" and specs.get("zero_point") and specs["zero_point"].dtype == "u8":
        planes["zero_point"] = np.minimum(planes["zero_point"], min(1 << scheme.parameters[0], 255)).astype(np.uint8)
    if scheme.name == "ternary":
        planes["codes"] &= ~(planes["codes"] & planes["codes"] >> 1 & np.uint8(0x55))
    return planes
