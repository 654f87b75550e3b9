"""Encodes and decodes typed metadata; each set of values has exactly one encoding.

A value is an int (64 bits, signed), a finite float, a bool, a string, bytes, or a list of one of these.
numpy arrays of ints and floats are accepted as lists; such lists are decoded to read-only arrays.
Entries are sorted by key. The entry head is ``layout.METADATA``; key and value follow it without padding:
ints and floats take 8 bytes each, bools one; a single string or bytes value fills ``length``;
in an array, each string is a u32 length followed by its bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import FormatError, Problem
from . import layout
from .names import bad_key

Value = Any  # int | float | bool | str | bytes | list of one of them | numpy array of i64 or f64

INT, FLOAT, BOOL, STRING, BYTES = 1, 2, 3, 4, 5
_TYPES: dict[type, int] = {int: INT, float: FLOAT, bool: BOOL, str: STRING, bytes: BYTES}
_FIXED = {INT: np.dtype("<i8"), FLOAT: np.dtype("<f8"), BOOL: np.dtype("u1")}
_HEAD = layout.struct_of(layout.METADATA)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def encode(metadata: Mapping[str, Value]) -> bytes:
    """Encode values as a metadata section.

    Raises:
        FormatError: the format cannot hold a key or a value.
    """
    return b"".join(_entry(key, metadata[key]) for key in sorted(metadata))


def decode(data: bytes) -> dict[str, Value]:
    """Decode a whole metadata section, checking every rule of the encoding.

    Raises:
        FormatError: codes AIB-E301 to AIB-E308.
    """
    values: dict[str, Value] = {}
    position, last = 0, ""
    strings = 0
    while position < len(data):
        if len(data) - position < _HEAD.size:
            raise _wrong("AIB-E301", "entry runs past the section", position)
        key_length, kind, is_array, items, length = _HEAD.unpack_from(data, position)
        body = position + _HEAD.size
        if key_length > len(data) - body or length > len(data) - body - key_length:
            raise _wrong("AIB-E301", "entry runs past the section", position, found=length)
        key = data[body : body + key_length].decode("ascii", "backslashreplace")  # no key has a backslash
        if reason := bad_key(key):
            raise _wrong("AIB-E302", f"key {key!r}: {reason}", position)
        if key <= last:
            raise _wrong("AIB-E303", f"key {key!r} is repeated or out of order after {last!r}", position)
        if is_array > 1 or (not is_array and items != 1):
            raise _wrong("AIB-E305", f"key {key!r}: array flag {is_array} with count {items}", position)
        strings += items if kind in (STRING, BYTES) else 0
        if strings > layout.MAX_STRINGS:
            raise _wrong("AIB-E305", "strings in all", position, f"at most {layout.MAX_STRINGS}", strings)
        body += key_length
        values[key] = _value(data[body : body + length], kind, bool(is_array), items, key, position)
        position, last = body + length, key
    return values


def _entry(key: str, value: Value) -> bytes:
    if reason := bad_key(key):
        raise _wrong("AIB-E302", f"key {key!r}: {reason}")
    is_array = isinstance(value, (list, tuple, np.ndarray))
    kind, body, count = _pack(key, value if is_array else [value], is_array)
    name = key.encode()
    return _HEAD.pack(len(name), kind, is_array, count, len(body)) + name + body


def _pack(key: str, items: Any, is_array: bool) -> tuple[int, bytes, int]:
    if len(items) == 0:
        kind = INT
    elif isinstance(items, np.ndarray):
        kind = {"i": INT, "u": INT, "f": FLOAT}.get(items.dtype.kind)
        if kind is None or items.ndim != 1:
            raise _wrong("AIB-E304", f"key {key!r}: no type for an array of {items.dtype}")
    else:
        kinds = {_TYPES.get(type(item)) for item in items}
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is None:
            raise _wrong("AIB-E304", f"key {key!r}: values of mixed or unknown types")
    if kind in (STRING, BYTES):
        try:
            parts = [item.encode() if kind == STRING else item for item in items]
        except UnicodeEncodeError as error:
            raise _wrong("AIB-E206", f"key {key!r}: text is not UTF-8") from error
        if not is_array:
            return kind, parts[0], 1
        return kind, b"".join(struct.pack("<I", len(part)) + part for part in parts), len(parts)
    try:
        if isinstance(items, np.ndarray) and items.dtype.kind == "u" and items.max() > np.iinfo(np.int64).max:
            raise OverflowError
        array = np.asarray(items, dtype=_FIXED[kind])
    except OverflowError as error:
        raise _wrong("AIB-E304", f"key {key!r}: an int beyond 64 bits") from error
    if kind == FLOAT and not np.isfinite(array).all():
        raise _wrong("AIB-E307", f"key {key!r}: not a finite number")
    return kind, array.tobytes(), len(array)


def _value(data: bytes, kind: int, is_array: bool, count: int, key: str, position: int) -> Value:
    if kind in _FIXED:
        # count < 2^32 and 8 bytes each: the product cannot wrap in Python, nor run past the section.
        if count * _FIXED[kind].itemsize != len(data):
            raise _wrong("AIB-E305", f"key {key!r}: value bytes", position, count * _FIXED[kind].itemsize, len(data))
        array = np.frombuffer(data, _FIXED[kind])
        if kind == FLOAT and not np.isfinite(array).all():
            raise _wrong("AIB-E307", f"key {key!r}: not a finite number", position)
        if is_array and count == 0 and kind != INT:
            raise _wrong("AIB-E308", f"key {key!r}: an empty array is an array of ints", position)
        if kind == BOOL:
            if array.size and array.max() > 1:
                raise _wrong("AIB-E306", f"key {key!r}: a bool", position, "0 or 1", int(array.max()))
            return array.astype(bool).tolist() if is_array else bool(array[0])
        return array if is_array else array[0].item()
    if kind not in (STRING, BYTES):
        raise _wrong("AIB-E304", f"key {key!r}: unknown type", position, "1 to 5", kind)
    if not is_array:
        return _text(data, position) if kind == STRING else data
    items = _split(data, count, key, position)
    if count == 0:
        list(items)  # bytes that belong to no item are looked at first
        raise _wrong("AIB-E308", f"key {key!r}: an empty array is an array of ints", position)
    return [_text(item, position) for item in items] if kind == STRING else list(items)


def _split(data: bytes, count: int, key: str, position: int) -> Iterable[bytes]:
    if count > len(data) // 4:  # checked first: every item takes at least the 4 bytes of its length
        raise _wrong("AIB-E305", f"key {key!r}: more items than bytes can hold", position, len(data) // 4, count)
    start = 0
    for _ in range(count):
        if len(data) - start < 4:
            raise _wrong("AIB-E305", f"key {key!r}: an item runs past the value", position)
        length = int.from_bytes(data[start : start + 4], "little")
        start += 4
        if length > len(data) - start:
            raise _wrong("AIB-E305", f"key {key!r}: an item runs past the value", position, len(data) - start, length)
        yield data[start : start + length]
        start += length
    if start != len(data):
        raise _wrong("AIB-E305", f"key {key!r}: bytes after the last item", position, start, len(data))


def _text(data: bytes, position: int) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _wrong("AIB-E206", "text is not UTF-8", position + error.start) from error
    if found := _CONTROLS.search(text):
        raise _wrong("AIB-E207", "text has a control character", position, found=hex(ord(found[0])))
    return text


def _wrong(code: str, what: str, offset: int | None = None, expected: Any = None, found: Any = None) -> FormatError:
    return FormatError(Problem(code, f"metadata: {what}", offset=offset, expected=expected, found=found))
