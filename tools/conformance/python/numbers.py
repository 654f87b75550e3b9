"""Define rules, numbers and dtypes for `reader.py`, and what the schemes of `.aibit` share, in plain Python.

Planes are lists of numbers here, one for each element: a Python float holds every float32. Made for reading, not speed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]  # fields by name
Shape = Sequence[int]
Spec = tuple[str, str, list[int]]  # role, dtype, shape
Planes = dict[str, list]  # elements by role


class RuleError(Exception):
    """A rule of section 19 is broken."""

    def __init__(self, code: str, reason: str):
        super().__init__(f"{code}: {reason}")
        self.code = code


def need(holds: bool, code: str, reason: str) -> None:
    if not holds:
        raise RuleError(code, reason)


def unpack(text: str, data: bytes, at: int, reserved: str) -> Record:
    """The fields of a record. ``text`` has struct's letters and a name for each, in order; reserved bytes are called
    "-", must be zero (the code ``reserved``) and are dropped; "name" is where a name lies in the string pool."""
    letters, names = text.split()[::2], text.split()[1::2]
    record = {}
    for letter, name in zip(letters, names, strict=True):
        found = struct.unpack_from("<" + letter, data, at)
        at += struct.calcsize("<" + letter)
        if name == "-":
            need(not any(found[0]), reserved, "reserved bytes are not zero")
        elif name != "name":
            record[name] = found[0] if len(found) == 1 else list(found)
        else:
            record |= {"name_offset": found[0], "name_length": found[1]}
    return record


def size_of(text: str) -> int:
    return struct.calcsize("<" + "".join(text.split()[::2]))


# Numbers (section 10)


def f32(x: float) -> float:
    """The float32 nearest to x. A Python float holds sums and products of float32 well enough to be rounded once."""
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def f32_of_int(n: int) -> float:
    """The same for an integer of any size: what lies below its 53 highest bits is only remembered as not being zero."""
    low = max(abs(n).bit_length() - 53, 0)
    m = abs(n) >> low | (abs(n) & ((1 << low) - 1) != 0)
    return f32(math.copysign(math.ldexp(m, low), n))


def small_float(code: int, exponent_bits: int, infinity: bool) -> float:
    """An OCP float of 8 bits."""
    fraction_bits = 7 - exponent_bits
    bias, top = (1 << exponent_bits - 1) - 1, (1 << exponent_bits) - 1
    sign, exponent = -1.0 if code & 0x80 else 1.0, code >> fraction_bits & top
    fraction = code & ((1 << fraction_bits) - 1)
    if infinity and exponent == top:
        return math.nan if fraction else sign * math.inf
    if not infinity and code & 0x7F == 0x7F:
        return math.nan
    significand = fraction + ((1 << fraction_bits) if exponent else 0)
    return sign * math.ldexp(significand, max(exponent, 1) - bias - fraction_bits)


def bf16(data: bytes) -> list[float]:
    return [struct.unpack("<f", b"\0\0" + data[i : i + 2])[0] for i in range(0, len(data), 2)]


def bf16_bits(x: float) -> int:
    """float32 to bfloat16, to nearest with ties to even."""
    bits = int.from_bytes(struct.pack("<f", x), "little")
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def in_json(x: float) -> float | str:
    """A decoded value as twins write it: JSON has no numbers for NaN and infinities, so these are strings."""
    return x if math.isfinite(x) else "NaN" if math.isnan(x) else "Infinity" if x > 0 else "-Infinity"


def packed(letter: str) -> Callable[[bytes], list]:
    size = struct.calcsize("<" + letter)
    return lambda data: list(struct.unpack(f"<{len(data) // size}{letter}", data))


@dataclass(frozen=True)
class Dtype:
    name: str
    size: int
    elements: Callable[[bytes], list]  # its bytes as numbers


DTYPES = {
    code: Dtype(*row)
    for code, row in enumerate((
        ("bool", 1, list), ("u8", 1, list), ("i8", 1, packed("b")), ("u16", 2, packed("H")), ("i16", 2, packed("h")),
        ("u32", 4, packed("I")), ("i32", 4, packed("i")), ("u64", 8, packed("Q")), ("i64", 8, packed("q")),
        ("f16", 2, packed("e")), ("bf16", 2, bf16), ("f32", 4, packed("f")), ("f64", 8, packed("d")),
        ("f8_e4m3", 1, lambda data: [small_float(code, 4, False) for code in data]),
        ("f8_e5m2", 1, lambda data: [small_float(code, 5, True) for code in data]),
        ("f8_e8m0", 1, lambda data: [math.ldexp(1, code - 127) if code < 255 else math.nan for code in data]),
    ), 1)
}  # fmt: skip
BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}
FLOATS = ("f16", "bf16", "f32")  # the logical dtypes that can be quantized


# What schemes share


def product(shape: Shape) -> int:
    return math.prod(shape)


def up(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def align(x: int, a: int) -> int:
    return up(x, a) * a


def need_values(values: list, allowed: Callable[[float], bool], what: str) -> None:
    for i, value in enumerate(values):
        need(allowed(value), "AIB-E502", f"{what} {i} is {value}")


def is_zero(x: float) -> bool:
    """Zero, and not minus zero."""
    return x == 0 and math.copysign(1, x) > 0


def is_absmax(x: float) -> bool:
    return math.isfinite(x) and (x > 0 or is_zero(x))


def is_row_absmax(x: float) -> bool:
    return is_absmax(x) and x <= 65504


def is_scale(x: float) -> bool:
    return is_zero(x) or 2.0**-126 <= x <= 2.0**119


def unpacked(data: Sequence[int], bits: int) -> Iterator[int]:
    """Codes from the highest bits down; bits that are left over come last, as one more."""
    held = have = 0
    for byte in data:
        held, have = held << 8 | byte, have + 8
        while have >= bits:
            have -= bits
            yield held >> have
            held &= (1 << have) - 1
    if have:
        yield held


def unpacked_rows(data: list[int], bits: int, shape: Shape) -> list[int]:
    """Codes of rows that start a byte each (AIB-E503: what follows them is zero)."""
    width, codes = up(shape[-1] * bits, 8), []
    for i in range(0, len(data), max(width, 1)):
        row = list(unpacked(data[i : i + width], bits))
        need(not any(row[shape[-1] :]), "AIB-E503", f"bits after the last code of row {i // width} are not zero")
        codes += row[: shape[-1]]
    return codes


@dataclass(frozen=True)
class Scheme:
    """Functions of the six parameters p of the scheme table and of the tensor's shape s."""

    parameters: Callable[[Shape], bool]  # does its page allow them
    takes: Callable[[Shape, Shape], bool]  # can it hold the shape
    dtypes: Sequence[str]  # logical dtypes it can hold
    planes: Callable[[Shape, Shape, str], list[Spec]]
    check: Callable[[Shape, Shape, Planes], None]
    decode: Callable[[Shape, Shape, Planes], list[float]]


def no_parameters(p: Shape) -> bool:
    return not any(p)
