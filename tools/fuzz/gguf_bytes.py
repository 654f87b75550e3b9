"""Change one entry or one tensor of a GGUF file, and make counts and places of the rest right."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

from . import LONGEST, Mutate

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_EVIL = (0, 1, 2, 3, 7, 8, 255, 256, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1)
_TYPES = (*range(44), 1 << 31)  # numbers of tensor types, known and not


@dataclass
class _File:
    head: bytes
    entries: list[tuple[bytes, int, bytes]] = field(default_factory=list)  # key, type, the bytes of the value
    tensors: list[tuple[bytes, list[int], int, int]] = field(default_factory=list)  # name, sizes, type, offset
    data: bytes = b""

    def packed(self, extra: tuple[int, int] = (0, 0)) -> bytes:
        """The bytes again; ``extra`` is what the counts of tensors and of entries say too much."""
        alignment = next((v[0] for k, t, v in self.entries if k == b"general.alignment" and len(v) == 4 and v[0]), 32)
        out = self.head
        for count in (len(self.tensors) + extra[0], len(self.entries) + extra[1]):
            out += struct.pack("<Q", count % (1 << 64))
        for key, kind, value in self.entries:
            out += struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
        for name, sizes, kind, offset in self.tensors:
            out += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(sizes))
            out += b"".join(struct.pack("<Q", n % (1 << 64)) for n in sizes)
            out += struct.pack("<IQ", kind, offset % (1 << 64))
        return out.ljust(-(-len(out) // alignment) * alignment, b"\0") + self.data


def changed(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Another file."""
    if rng.random() < 0.1:
        return bytes(mutate(data, LONGEST))
    file = _parsed(data)
    way = rng.choice((_value, _value, _value, _entry, _tensor, _tensor, _data))
    way(file, rng, mutate)
    return file.packed(rng.choice(((0, 0),) * 8 + ((1, 0), (0, 1), (-1, 0), (0, -1))))


def _parsed(data: bytes) -> _File:
    at = 24

    def number(letter: str) -> int:
        nonlocal at
        at += struct.calcsize("<" + letter)
        return struct.unpack_from("<" + letter, data, at - struct.calcsize("<" + letter))[0]

    def taken(length: int) -> bytes:
        nonlocal at
        if length > len(data) - at:
            raise ValueError("cut off")
        at += length
        return data[at - length : at]

    def value(kind: int) -> None:
        if kind == _STRING:
            taken(number("Q"))
        elif kind == _ARRAY:
            inner, count = number("I"), number("Q")
            for _ in range(count) if inner == _STRING else ():
                taken(number("Q"))
            taken(0 if inner == _STRING else count * _SIZES[inner])
        else:
            taken(_SIZES[kind])

    tensors, entries = struct.unpack_from("<QQ", data, 8)
    file = _File(data[:8])
    for _ in range(entries):
        key, kind = taken(number("Q")), number("I")
        start = at
        value(kind)
        file.entries.append((key, kind, data[start:at]))
    for _ in range(tensors):
        name, rank = taken(number("Q")), number("I")
        file.tensors.append((name, [number("Q") for _ in range(rank)], number("I"), number("Q")))
    alignment = next((v[0] for k, _, v in file.entries if k == b"general.alignment" and v[0]), 32)
    file.data = data[-(-at // alignment) * alignment :]
    return file


def _value(file: _File, rng: random.Random, mutate: Mutate) -> None:
    """Another value of an entry: of its type, or of another."""
    at = rng.randrange(len(file.entries))
    key, kind, value = file.entries[at]
    way = rng.choice(("number", "bytes", "items", "new"))
    if way == "new":
        kind, value = rng.choice(_new_values(rng, mutate))
    elif kind in _SIZES and way == "number":
        value = (rng.choice(_EVIL) % (1 << 8 * len(value))).to_bytes(len(value), "little")
    elif kind == _STRING:
        text = bytes(mutate(value[8:] or b"a", 200))
        value = struct.pack("<Q", len(text)) + text
    elif kind == _ARRAY and way == "items" and value[:4] != struct.pack("<I", _STRING):
        size = _SIZES[struct.unpack_from("<I", value)[0]]
        items = bytes(mutate(value[12:] or b"\0", len(value) + 16))
        items = items[: len(items) // size * size]
        value = value[:4] + struct.pack("<Q", len(items) // size) + items
    elif kind == _ARRAY and way == "items":
        texts = _strings(value)
        place = rng.randrange(len(texts) + 1)
        if rng.random() < 0.5 and place < len(texts):
            texts[place] = rng.choice((bytes(mutate(texts[place] or b"a", 100)), rng.choice(texts)))
        elif rng.random() < 0.5:
            texts[place : place + 1] = []
        else:
            texts.insert(place, rng.choice([*texts, b"x"]))
        value = value[:4] + struct.pack("<Q", len(texts)) + b"".join(struct.pack("<Q", len(t)) + t for t in texts)
    else:
        value = bytes(mutate(value or b"\0", len(value) + 8))
    file.entries[at] = key, kind, value


def _strings(value: bytes) -> list[bytes]:
    count, at, found = struct.unpack_from("<Q", value, 4)[0], 12, []
    for _ in range(count):
        length = struct.unpack_from("<Q", value, at)[0]
        found.append(value[at + 8 : at + 8 + length])
        at += 8 + length
    return found


def _new_values(rng: random.Random, mutate: Mutate) -> list[tuple[int, bytes]]:
    text = rng.choice(
        (b"llama", b"gpt2", b"qwen2", b"none", b"linear", b"yarn", b"", b"\xff", bytes(mutate(b"text", 40)))
    )
    return [
        (4, struct.pack("<I", rng.choice(_EVIL) % (1 << 32))), (5, struct.pack("<i", rng.randrange(-5, 5))),
        (10, struct.pack("<Q", rng.choice(_EVIL))), (7, bytes([rng.randrange(3)])),
        (6, struct.pack("<f", rng.choice((0.0, -1.0, 1.0, 1e-9, 3e38, float("inf"), float("nan"))))),
        (12, struct.pack("<d", rng.choice((0.0, 1e300, float("-inf"), 5e-324)))),
        (_STRING, struct.pack("<Q", len(text)) + text), (_ARRAY, struct.pack("<IQ", rng.choice((0, 6, 8, 9)), 0)),
        (_ARRAY, struct.pack("<IQ", 4, 2) + rng.randbytes(8)), (_ARRAY, struct.pack("<IQ", rng.randrange(14), 1 << 61)),
        (_ARRAY, struct.pack("<IQQ", _STRING, 1, len(text)) + text),
    ]  # fmt: skip


def _entry(file: _File, rng: random.Random, mutate: Mutate) -> None:
    """An entry fewer, or twice, or under another key."""
    at = rng.randrange(len(file.entries))
    key, kind, value = file.entries[at]
    way = rng.choice(("drop", "repeat", "key", "key"))
    if way == "drop":
        del file.entries[at]
    elif way == "repeat":
        file.entries.insert(rng.randrange(len(file.entries)), file.entries[at])
    else:
        prefix = file.entries[0][2][8:] or b"llama"
        others = [key for key, *_ in file.entries] + [prefix + end for end in _KEYS]
        file.entries[at] = rng.choice((rng.choice(others), bytes(mutate(key or b"a", 80)))), kind, value


_KEYS = (
    b".rope.scaling.type", b".rope.scaling.factor", b".rope.freq_base", b".rope.scaling.original_context_length",
    b".expert_count", b".attention.key_length", b".attention.sliding_window", b".rope.scaling.yarn_beta_fast",
    b".rope.scale_linear",
)  # fmt: skip


def _tensor(file: _File, rng: random.Random, mutate: Mutate) -> None:
    """Another name, size, type or place of a tensor, or one fewer or twice."""
    at = rng.randrange(len(file.tensors))
    name, sizes, kind, offset = file.tensors[at]
    way = rng.choice(("name", "sizes", "sizes", "type", "offset", "drop", "repeat", "rank"))
    if way == "drop":
        del file.tensors[at]
        return
    if way == "repeat":
        file.tensors.insert(at, file.tensors[at])
        return
    if way == "name":
        names = [other for other, *_ in file.tensors]
        name = rng.choice(
            (rng.choice(names), b"rope_freqs.weight", b"blk.1.attn_q.bias", bytes(mutate(name or b"a", 80)))
        )
    elif way == "sizes" and sizes:
        place = rng.randrange(len(sizes))
        old = sizes[place]
        sizes = [*sizes]
        sizes[place] = rng.choice((old + 1, old - 1, old * 2, old // 2, 0, 1, 32, 256, *_EVIL))
    elif way == "rank":
        sizes = rng.choice(([], sizes[:-1], [*sizes, 1], [*sizes, 0], sizes[::-1], [1] * 5))
    elif way == "type":
        kind = rng.choice(_TYPES)
    elif way == "offset":
        offset = rng.choice((offset + 32, offset - 32, offset + 1, *_EVIL))
    file.tensors[at] = name, sizes, kind, offset


def _data(file: _File, rng: random.Random, mutate: Mutate) -> None:
    size = len(file.data)
    file.data = bytes(mutate(file.data or b"\0", size + 64))
    if rng.random() < 0.7:
        file.data = file.data[:size].ljust(size, b"\0")
