"""Weights whose layers round their inputs to 8 bits, and the arithmetic of spec/schemes/w8a8.md in numpy."""

from __future__ import annotations

import numpy as np
import torch

from aibit_format import schemes
from aibit_format.interop import to_torch
from aibit_format.torch.kernels.functional import Weight

TEXTS = ("int8-dynamic", "int8-static", "int8-static,asymmetric=1")


def weight_of(text, shape, seed=0, low=-1.5, high=3.0):
    """A random weight, whose inputs lie between ``low`` and ``high``."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    scheme = schemes.parse(text).calibrated(np.array([low], np.float32), np.array([high], np.float32))
    planes = scheme.encode(values, "f32")
    dtypes = {spec.role: spec.dtype for spec in scheme.planes(shape, "f32")}
    return Weight(scheme, {role: to_torch(plane, dtypes[role]) for role, plane in planes.items()}, shape, "f32")


def reference(x, planes, bias):
    """The page of the spec, in numpy: sums in int64, all else in float32."""
    f32 = np.float32
    values, codes, scale = x.float().numpy(), planes["codes"].numpy().astype(np.int64), planes["scale"].numpy().ravel()
    zero = int(planes["input_zero_point"]) if "input_zero_point" in planes else 0
    if "input_scale" in planes:
        steps = planes["input_scale"].numpy()
    else:
        steps = np.abs(values).max(axis=1) / f32(127)
        steps = np.where(steps < f32(2.0**-126), f32(0), steps)
    inverse = np.where(steps == 0, f32(0), f32(1) / np.where(steps == 0, f32(1), steps))[:, None]
    inputs = np.clip(np.rint(values * inverse) + zero, -128, 127).astype(np.int64)
    sums = (inputs - zero) @ codes.T
    found = sums.astype(f32) * (steps[:, None] * scale)
    found = found if bias is None else found + bias.float().numpy()
    return torch.from_numpy(found.astype(f32)).to(x.dtype)
