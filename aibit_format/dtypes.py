"""Defines the closed list of element types: code on disk, size in bits, and the numpy dtype that carries the bits.

numpy has no bfloat16 and no fp8, so those are carried as unsigned integers of the same width; ``to_float32`` and
``from_float32`` convert between them and numbers. Elements of less than a byte are *packed* in files: each row, along
the last dimension, is whole bytes, of which numpy sees u8 (``schemes/packing.py`` packs and unpacks). Unpacked they are
codes, one u8 each, and these are what the functions here convert.
"""

from __future__ import annotations

import math
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
        """Tell whether it is a floating-point type, those of at most 8 bits and their scale type included."""
        return self.name in _FLOATS

    @property
    def is_packed(self) -> bool:
        """Tell whether an element is smaller than a byte."""
        return self.bits < 8

    @property
    def in_numpy(self) -> bool:
        """Tell whether numpy has this type, so that a plane of it is an array of its numbers."""
        return not self.is_packed and self.is_float == (self.numpy.kind == "f")

    def stored(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the array that holds a plane of this logical shape: packed rows are whole bytes.

        A lone element, of rank 0, is a row of one.
        """
        if not self.is_packed:
            return shape
        *others, columns = shape or (1,)
        return *others, -(-columns * self.bits // 8)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a plane of this logical shape, a Python int: no shape from a file makes it overflow."""
        return math.prod(self.stored(shape)) * self.numpy.itemsize


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
    # 17 never gets a meaning: a fixture shows what readers do with a dtype that they do not know.
    DType("f4_e2m1", 18, 4, "<u1", "OCP E2M1: bias 1, no infinity, no NaN"),
    DType("u4", 19, 4, "<u1", "unsigned integer"),
    DType("i4", 20, 4, "<u1", "two's complement integer"),
    DType("u2", 21, 2, "<u1", "unsigned integer"),
    DType("i2", 22, 2, "<u1", "two's complement integer"),
    DType("u1", 23, 1, "<u1", "unsigned integer"),
    DType("f6_e2m3", 24, 6, "<u1", "OCP E2M3: bias 1, no infinity, no NaN"),
    DType("f6_e3m2", 25, 6, "<u1", "OCP E3M2: bias 3, no infinity, no NaN"),
    DType("u3", 26, 3, "<u1", "unsigned integer"),
    DType("u5", 27, 5, "<u1", "unsigned integer"),
    DType("u6", 28, 6, "<u1", "unsigned integer"),
)
# Bits of exponent and fraction of floats of at most 8 bits (OCP 8-bit floating point 1.0 and microscaling 1.0).
_SMALL = {"f8_e4m3": (4, 3), "f8_e5m2": (5, 2), "f6_e2m3": (2, 3), "f6_e3m2": (3, 2), "f4_e2m1": (2, 1)}
_FLOATS = frozenset({"f16", "bf16", "f32", "f64", "f8_e8m0", *_SMALL})

DTYPES: dict[str, DType] = {dtype.name: dtype for dtype in _TABLE}
BY_CODE: dict[int, DType] = {dtype.code: dtype for dtype in _TABLE}
_UNKNOWN = "unknown_"


def name_of(code: int) -> str:
    """Return the name of any dtype's number, also of one that is not known here."""
    return BY_CODE[code].name if code in BY_CODE else f"{_UNKNOWN}{code}"


def storage_of(name: str) -> np.dtype:
    """Return the numpy dtype that holds one element; bytes, for a dtype that is not known here."""
    return DTYPES[name].numpy if name in DTYPES else np.dtype("<u1")


def stored_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the array that holds a plane; the same one, for a dtype that is not known here."""
    return DTYPES[name].stored(shape) if name in DTYPES else shape


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
def _values(name: str) -> np.ndarray:
    """Return the float32 value of each code of a dtype of at most 8 bits that numpy lacks."""
    bits = DTYPES[name].bits
    code = np.arange(1 << bits)
    if name == "f8_e8m0":
        # 2^-127 is subnormal in float32 but still exact; code 255 is NaN.
        return np.where(code == 255, np.nan, np.exp2(code - 127.0)).astype(np.float32)
    if name not in _SMALL:
        return to_integers(code.astype(np.uint8), name).astype(np.float32)
    exponent_bits, fraction_bits = _SMALL[name]
    bias, sign = (1 << (exponent_bits - 1)) - 1, 1 << (bits - 1)
    exponent = (code & (sign - 1)) >> fraction_bits
    fraction = (code & ((1 << fraction_bits) - 1)) / (1 << fraction_bits)
    value = np.where(
        exponent == 0,
        fraction * np.exp2(1.0 - bias),
        (1 + fraction) * np.exp2(exponent - float(bias)),
    )
    if name == "f8_e4m3":
        value[(code & 0x7F) == 0x7F] = np.nan
    elif name == "f8_e5m2":
        top = exponent == 31
        value[top] = np.where(fraction[top] == 0, np.inf, np.nan)
    return np.where(code & sign, -value, value).astype(np.float32)


def to_integers(codes: np.ndarray, dtype: str) -> np.ndarray:
    """Convert codes u8 of an integer type of less than a byte to numbers: u8 as they are, or i8 with their sign."""
    if not dtype.startswith("i"):
        return codes
    sign = np.int8(1 << (DTYPES[dtype].bits - 1))
    return (codes.astype(np.int8) ^ sign) - sign


def to_float32(array: np.ndarray, dtype: str) -> np.ndarray:
    """Convert ``array``, stored as ``DTYPES[dtype].numpy``, to float32: exact except for f64 and wide integers.

    Elements of less than a byte are codes, one in each u8.
    """
    if dtype == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype.startswith("f8_") or DTYPES[dtype].is_packed:
        return _values(dtype)[array]
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
    elif dtype in _SMALL or dtype == "f8_e8m0":
        return _to_small(values, dtype)
    elif dtype in _FLOATS:
        with np.errstate(over="ignore"):
            result = values.astype(DTYPES[dtype].numpy)
    else:
        raise SchemeError(f"float values cannot be stored as {dtype}")
    if not np.isfinite(to_float32(result, dtype)).all() and np.isfinite(values).all():
        raise SchemeError(f"a value is too large for {dtype}: largest magnitude {np.abs(values).max():g}")
    return result


def nearest_codes(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 values to codes u8 of a float of at most 8 bits like ``from_float32``, but in integers.

    No magnitude may round to more than the dtype's largest one, which is not checked. The upper bits of a float32 are
    those of the small float with a bias of 127 instead of its own, and rounding up correctly carries into the exponent;
    subnormal values are integer multiples of the least.
    """
    exponent_bits, fraction_bits = _SMALL[dtype]
    bias, shift = (1 << (exponent_bits - 1)) - 1, np.uint32(23 - fraction_bits)
    bits = values.view(np.uint32)
    magnitude = bits & np.uint32(0x7FFF_FFFF)
    half = np.uint32((1 << (22 - fraction_bits)) - 1)
    codes = ((magnitude + half + ((magnitude >> shift) & np.uint32(1))) >> shift) - np.uint32(
        127 - bias << fraction_bits
    )
    subnormal = np.rint(np.abs(values) * np.float32(2.0 ** (bias - 1 + fraction_bits))).astype(np.uint32)
    codes = np.where(magnitude < np.uint32(128 - bias << 23), subnormal, codes)
    sign = np.uint32(1 << (DTYPES[dtype].bits - 1))
    return (codes | (bits >> np.uint32(32 - DTYPES[dtype].bits) & sign)).astype(np.uint8)


def largest_of(dtype: str) -> float:
    """Return the largest finite value of a float of at most 8 bits."""
    values = _values(dtype)
    return float(values[np.isfinite(values)].max())


def _to_small(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "f8_e8m0":
        raise SchemeError("f8_e8m0 holds power-of-two scales; weights cannot be rounded to it")
    sign = 1 << (DTYPES[dtype].bits - 1)
    table = _values(dtype)[:sign]
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
    return np.where(np.signbit(values), code | np.uint8(sign), code)
