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


def small_float(code: int, exponent_bits: int, fraction_bits: int, special: str = "") -> float:
    """An OCP float of at most 8 bits, which has infinities and NaN, NaN alone or neither."""
    bias, top = (1 << exponent_bits - 1) - 1, (1 << exponent_bits) - 1
    sign, exponent = -1.0 if code >> exponent_bits + fraction_bits else 1.0, code >> fraction_bits & top
    fraction = code & ((1 << fraction_bits) - 1)
    if special == "infinity" and exponent == top:
        return math.nan if fraction else sign * math.inf
    if special == "nan" and code & 0x7F == 0x7F:
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


def small(exponent_bits: int, fraction_bits: int, special: str = "") -> Callable[[Sequence[int]], list]:
    return lambda codes: [small_float(code, exponent_bits, fraction_bits, special) for code in codes]


def signed(bits: int) -> Callable[[Sequence[int]], list]:
    return lambda codes: [code - (1 << bits) if code >> bits - 1 else code for code in codes]


@dataclass(frozen=True)
class Dtype:
    name: str
    bits: int
    elements: Callable[[Any], list]  # its bytes as numbers; of less than 8 bits, its codes

    def nbytes(self, shape: Shape) -> int:
        """Bytes of a plane of this shape; rows of less than 8 bits each are whole bytes."""
        if self.bits >= 8:
            return product(shape) * self.bits // 8
        return product(shape[:-1]) * up(self.bits * (shape or [1])[-1], 8)

    def numbers(self, data: bytes, shape: Shape) -> list:
        """The elements of a plane (AIB-E503: bits after the last one of a row are zero)."""
        return self.elements(data if self.bits >= 8 else self.codes(data, (shape or [1])[-1]))

    def codes(self, data: bytes, columns: int) -> list[int]:
        """Code i of a row is in its bits from bits * i on, of which the first are the lowest of the first byte."""
        width, mask, found = up(columns * self.bits, 8), (1 << self.bits) - 1, []
        for at in range(0, len(data), max(width, 1)):
            row, codes = data[at : at + width], []
            for eight in (row[i : i + self.bits] for i in range(0, width, self.bits)):  # bytes of eight codes
                bits = int.from_bytes(eight, "little")
                codes += [bits >> i * self.bits & mask for i in range(8)]
            need(not any(codes[columns:]), "AIB-E503", f"bits after the last {self.name} of a row are not zero")
            found += codes[:columns]
        return found


DTYPES = {
    code: Dtype(*row)
    for code, row in enumerate((
        ("bool", 8, list), ("u8", 8, list), ("i8", 8, packed("b")), ("u16", 16, packed("H")), ("i16", 16, packed("h")),
        ("u32", 32, packed("I")), ("i32", 32, packed("i")), ("u64", 64, packed("Q")), ("i64", 64, packed("q")),
        ("f16", 16, packed("e")), ("bf16", 16, bf16), ("f32", 32, packed("f")), ("f64", 64, packed("d")),
        ("f8_e4m3", 8, small(4, 3, "nan")), ("f8_e5m2", 8, small(5, 2, "infinity")),
        ("f8_e8m0", 8, lambda data: [math.ldexp(1, code - 127) if code < 255 else math.nan for code in data]),
        None,  # 17 stands for nothing
        ("f4_e2m1", 4, small(2, 1)), ("u4", 4, list), ("i4", 4, signed(4)), ("u2", 2, list), ("i2", 2, signed(2)),
        ("u1", 1, list), ("f6_e2m3", 6, small(2, 3)), ("f6_e3m2", 6, small(3, 2)), ("u3", 3, list), ("u5", 5, list),
        ("u6", 6, list),
    ), 1)
    if row
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
    """Functions of the six parameters p of the scheme table, with the two of the tensor after them, and of the tensor's
    shape s."""

    parameters: Callable[[Shape], bool]  # does its page allow the six
    takes: Callable[[Shape, Shape], bool]  # can it hold the shape
    dtypes: Sequence[str]  # logical dtypes it can hold
    planes: Callable[[Shape, Shape, str], list[Spec]]
    check: Callable[[Shape, Shape, Planes], None]
    decode: Callable[[Shape, Shape, Planes], list[float]]
    of_tensor: int = 0  # how many of a tensor's parameters it uses


def no_parameters(p: Shape) -> bool:
    return not any(p)
