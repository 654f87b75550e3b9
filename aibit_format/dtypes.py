"""Defines the closed list of element types: code on disk, size in bits, and the numpy dtype that carries the bits.

numpy has no bfloat16 and no fp8, so those are carried as unsigned integers of the same width;
``to_float32`` and ``from_float32`` convert between them and numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from .errors import SchemeError


@dataclass(frozen=True, slots=True)
class DType:
    """Describe one element type. ``code`` is the number a file stores and is never reused; ``bits`` is its size."""

    name: str
    code: int
    bits: int
    storage: str
    meaning: str

    @property
    def numpy(self) -> np.dtype:
        """Return the little-endian numpy dtype that holds one element (its bits, where numpy lacks the type)."""
        return np.dtype(self.storage)

    @property
    def is_float(self) -> bool:
        """Tell whether it is a floating-point type, the 8-bit ones and their scale type included."""
        return self.name in _FLOATS


_TABLE = (
    DType("bool", 1, 8, "?", "0 or 1, one byte"),
    DType("u8", 2, 8, "<u1", "unsigned integer"),
    DType("i8", 3, 8, "<i1", "two's complement integer"),
    DType("u16", 4, 16, "<u2", "unsigned integer"),
    DType("i16", 5, 16, "<i2", "two's complement integer"),
    DType("u32", 6, 32, "<u4", "unsigned integer"),
    DType("i32", 7, 32, "<i4", "two's complement integer"),
    DType("u64", 8, 64, "<u8", "unsigned integer"),
    DType("i64", 9, 64, "<i8", "two's complement integer"),
    DType("f16", 10, 16, "<f2", "IEEE 754 binary16"),
    DType("bf16", 11, 16, "<u2", "bfloat16: the upper half of binary32"),
    DType("f32", 12, 32, "<f4", "IEEE 754 binary32"),
    DType("f64", 13, 64, "<f8", "IEEE 754 binary64"),
    DType("f8_e4m3", 14, 8, "<u1", "OCP E4M3: bias 7, no infinity, NaN at 0x7f and 0xff"),
    DType("f8_e5m2", 15, 8, "<u1", "OCP E5M2: bias 15, infinity at 0x7c, NaN above"),
    DType("f8_e8m0", 16, 8, "<u1", "OCP E8M0 scale: 2^(code - 127), NaN at 0xff"),
)
_FLOATS = frozenset({"f16", "bf16", "f32", "f64", "f8_e4m3", "f8_e5m2", "f8_e8m0"})

DTYPES: dict[str, DType] = {dtype.name: dtype for dtype in _TABLE}
BY_CODE: dict[int, DType] = {dtype.code: dtype for dtype in _TABLE}
_UNKNOWN = "unknown_"


def name_of(code: int) -> str:
    """Return the name of any dtype's number, also of one that is not known here."""
    return BY_CODE[code].name if code in BY_CODE else f"{_UNKNOWN}{code}"


def storage_of(name: str) -> np.dtype:
    """Return the numpy dtype that holds one element; bytes, for a dtype that is not known here."""
    return DTYPES[name].numpy if name in DTYPES else np.dtype("<u1")


def code_of(name: str) -> int:
    """Return the number of a dtype by its name, also of one that is not known here.

    Raises:
        KeyError: no dtype has this name.
    """
    number = name.removeprefix(_UNKNOWN)
    if name.startswith(_UNKNOWN) and number.isdecimal() and int(number) < 256 and int(number) not in BY_CODE:
        return int(number)
    return DTYPES[name].code


@cache
def _minifloat_values(name: str) -> np.ndarray:
    """Return the float32 value of each of the 256 codes of an 8-bit float (OCP 8-bit floating point, 1.0)."""
    code = np.arange(256)
    if name == "f8_e8m0":
        # 2^-127 is subnormal in float32 but still exact; code 255 is NaN.
        return np.where(code == 255, np.nan, np.exp2(code - 127.0)).astype(np.float32)
    mantissa_bits, bias = (3, 7) if name == "f8_e4m3" else (2, 15)
    exponent = (code & 0x7F) >> mantissa_bits
    fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    value = np.where(
        exponent == 0,
        fraction * np.exp2(1.0 - bias),
        (1 + fraction) * np.exp2(exponent - float(bias)),
    )
    if name == "f8_e4m3":
        value[(code & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == 31
        value[top] = np.where(fraction[top] == 0, np.inf, np.nan)
    return np.where(code & 0x80, -value, value).astype(np.float32)


def to_float32(array: np.ndarray, dtype: str) -> np.ndarray:
    """Convert ``array``, stored as ``DTYPES[dtype].numpy``, to float32: exact except for f64 and wide integers."""
    if dtype == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype.startswith("f8_"):
        return _minifloat_values(dtype)[array]
    return array.astype(np.float32)


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 ``values`` to ``dtype``, nearest with ties to even, as torch's casts do.

    Raises:
        SchemeError: a finite value would become infinite or NaN, or ``dtype`` is not a float.
    """
    if dtype == "bf16":
        bits = values.view(np.uint32)
        rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
        result = np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
    elif dtype.startswith("f8_"):
        return _to_minifloat(values, dtype)
    elif dtype in _FLOATS:
        with np.errstate(over="ignore"):
            result = values.astype(DTYPES[dtype].numpy)
    else:
        raise SchemeError(f"float values cannot be stored as {dtype}")
    if not np.isfinite(to_float32(result, dtype)).all() and np.isfinite(values).all():
        raise SchemeError(f"a value is too large for {dtype}: largest magnitude {np.abs(values).max():g}")
    return result


def _to_minifloat(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "f8_e8m0":
        raise SchemeError("f8_e8m0 holds power-of-two scales; weights cannot be rounded to it")
    table = _minifloat_values(dtype)[:128]
    finite = table[np.isfinite(table)]
    # Positive codes increase with their values, so a value's code is the number of midpoints below it;
    # a value on a midpoint gets the even code.
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    magnitude = np.abs(values)
    code = np.searchsorted(middles, magnitude, side="left")
    tie = (code < len(middles)) & (middles[np.minimum(code, len(middles) - 1)] == magnitude)
    code = np.where(tie & (code % 2 == 1), code + 1, code).astype(np.uint8)
    limit = finite[-1] + (finite[-1] - finite[-2]) / 2
    # `not <` is also true for NaN.
    if not (magnitude < limit).all():
        raise SchemeError(f"a value is too large for {dtype}: largest magnitude {magnitude.max():g}")
    return np.where(np.signbit(values), code | np.uint8(0x80), code)
