"""Make the tables of `spec/schemes/plain.md` that show, value by value, what the bytes of a dtype decode to."""

from __future__ import annotations

import struct

import numpy as np

from aibit_format.dtypes import DTYPES, to_float32
from aibit_format.schemes.packing import pack_plane

# Codes of floats that numpy and Python lack: zeros, subnormals, the least normal, one, the largest, infinity and NaN.
CODES = {
    "f8_e5m2": (0x00, 0x80, 0x01, 0x03, 0x04, 0x3C, 0x3D, 0xBE, 0x7B, 0x7C, 0xFC, 0x7D, 0xFF),
    "f8_e8m0": (0x00, 0x01, 0x7E, 0x7F, 0x80, 0xFE, 0xFF),
    "f4_e2m1": tuple(range(16)),
    "f6_e2m3": (0x00, 0x20, 0x01, 0x07, 0x08, 0x09, 0x2C, 0x1F, 0x3F),
    "f6_e3m2": (0x00, 0x20, 0x01, 0x03, 0x04, 0x0C, 0x2D, 0x1F, 0x3F),
}
# Codes of a row of elements of less than a byte.
ROWS = {
    "u1": (1, 0, 0, 1, 1, 0, 1, 0, 1), "u2": (0, 1, 2, 3, 1), "i2": (0, 1, 2, 3, 1), "u3": (1, 2, 3, 4, 5),
    "u4": (1, 2, 15), "i4": (1, 8, 15), "f4_e2m1": (2, 9, 7), "u5": (1, 2, 31), "u6": (1, 2, 63),
    "f6_e2m3": (8, 33, 31), "f6_e3m2": (12, 33, 31),
}  # fmt: skip
# Numbers that float32 does not hold: ties to both sides, and what a rounding to float64 before would get wrong.
ROUNDED: dict[str, tuple[int | float, ...]] = {
    "u32": ((1 << 24) + 1, (1 << 24) + 3, (1 << 32) - 1),
    "i32": (-(1 << 24) - 1, (1 << 31) - 1),
    "u64": ((1 << 60) + (1 << 36) + 1, (1 << 64) - 1),
    "i64": (-(1 << 60) - (1 << 36) - 1, -(1 << 63)),
    "f64": (
        0.1, -0.0, 1 + 2.0**-24, 1 + 2.0**-23 + 2.0**-24, 2.0**-150, 2.0**-150 * 1.5, 2.0**128 - 2.0**104,
        2.0**128 - 2.0**103, -1e300, float("-inf"), float("nan"),
    ),
}  # fmt: skip


def codes(name: str) -> str:
    """Return the table of a small float's codes and their values."""
    array, bits = np.array(CODES[name], np.uint8), DTYPES[name].bits
    rows = [
        f"| `0x{code:0{-(-bits // 4)}X}` | `{code:0{bits}b}` | {_shown(value)} | `0x{value.view(np.uint32):08X}` |\n"
        for code, value in zip(array.tolist(), to_float32(array, name), strict=True)
    ]
    return "| code | bits | value | as f32 |\n| --- | --- | --- | --- |\n" + "".join(_without_payload(rows))


def packed_rows() -> str:
    """Return the table of rows of elements of less than a byte."""
    rows = []
    for name, found in ROWS.items():
        array = np.array(found, np.uint8)
        values = ", ".join(f"{x:g}" for x in to_float32(array, name).tolist())
        stored = pack_plane(array, name)
        bits = " ".join(f"{byte:08b}" for byte in stored[::-1].tolist())
        codes = ", ".join(map(str, found))
        rows.append(f"| `{name}` | {codes} | {values} | `{stored.tobytes().hex(' ')}` | `{bits}` |\n")
    return "| dtype | codes | values | bytes | in bits |\n| --- | --- | --- | --- | --- |\n" + "".join(rows)


def rounded() -> str:
    """Return the table of numbers that are rounded to float32."""
    rows = []
    for name, numbers in ROUNDED.items():
        array = np.array(numbers, DTYPES[name].numpy)
        with np.errstate(over="ignore"):
            values = to_float32(array, name)
        for number, stored, value in zip(numbers, array, values, strict=True):
            bits = f"`0x{value.view(np.uint32):08X}`"
            rows.append(f"| `{name}` | {number!r} | `{stored.tobytes().hex(' ')}` | {_shown(value)} | {bits} |\n")
    return "| dtype | number | bytes | decoded | as f32 |\n| --- | --- | --- | --- | --- |\n" + "".join(
        _without_payload(rows)
    )


def _shown(value: np.float32) -> str:
    return {"nan": "NaN", "inf": "infinity", "-inf": "-infinity"}.get(str(value)) or repr(
        struct.unpack("<f", value.tobytes())[0]
    )


def _without_payload(rows: list[str]) -> list[str]:
    """Leave out the bits of NaN, which nothing states."""
    return [row if "| NaN |" not in row else row[: row.index("| NaN |")] + "| NaN | any NaN |\n" for row in rows]
