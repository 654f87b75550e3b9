"""Reads and writes the fields of a message of protobuf, whatever they mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # kinds of fields


class Field(NamedTuple):
    """Hold a field: its number, its value (an integer, or bytes), and all its bytes."""

    number: int
    value: Any
    raw: memoryview


def fields(data: Any) -> Iterator[Field]:
    """Yield the fields of a message.

    Raises:
        ValueError: it is no message, or truncated.
    """
    if not isinstance(data, (bytes, memoryview)):
        raise ValueError("a number in the place of a message")
    view, at = memoryview(data), 0
    while at < len(view):
        start = at
        tag, at = _varint(view, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(view, at)
            yield Field(number, value, view[start:at])
            continue
        size = {_EIGHT: 8, _FOUR: 4}.get(kind)
        if kind == _BYTES:
            size, at = _varint(view, at)
        if size is None or size > len(view) - at:
            raise ValueError(f"field {number} of kind {kind} at byte {at}")
        at += size
        yield Field(number, view[at - size : at], view[start:at])


def written(number: int, value: int | bytes) -> bytes:
    """Return the bytes of a field that holds an integer, or bytes."""
    if isinstance(value, bytes):
        return _number(number << 3 | _BYTES) + _number(len(value)) + value
    return _number(number << 3 | _VARINT) + _number(value % (1 << 64))  # negative ones as if they had no sign


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return the number at an offset, of 7 bits a byte, and the offset after it."""
    value = 0
    for place, byte in enumerate(view[at : at + 10]):
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise ValueError(f"a number at byte {at} without end")
