"""Change a safetensors file; its header stays as long as it says, and bodies as long as that says."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from typing import Any

from . import LONGEST, Mutate, json_text

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def pack(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], metadata: Any = None) -> bytes:
    """A file of these: name -> dtype, shape, bytes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    return _joined(json.dumps(header).encode(), b"".join(data for _, _, data in tensors.values()))


def changed(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Another file: another header, another tensor, another body, or other bytes anywhere."""
    way = rng.choice((_header, _header, _header, _tensor, _tensor, _body, _bytes))
    return way(data, rng, mutate)


def _joined(header: bytes, body: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def _parts(data: bytes) -> tuple[bytes, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], data[end:]


def _header(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    header, body = _parts(data)
    header = json_text.changed(header, rng, mutate)
    return _joined(header + b" " * rng.choice((0, 0, 0, 1, 5)), body)


def _tensor(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Another shape, dtype or name of a tensor, and a file that fits it."""
    header, body = _parts(data)
    entries = json.loads(header)
    metadata = entries.pop("__metadata__", None)
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    names = [*entries]
    chosen = rng.choice(names)
    for name, entry in entries.items():
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        start, end = entry["data_offsets"]
        content = body[start:end]
        if name == chosen:
            dtype = rng.choice((dtype, dtype, *BITS))
            shape = tuple(rng.choice((n, n, n + 1, n * 2, n // 2, 1, 0, rng.randrange(70))) for n in shape)
            shape = rng.choice((shape, shape, shape[:-1], (*shape, 1), shape[::-1], (0, 1 << 62, *shape)))
            length = math.prod(shape) * BITS[dtype] // 8
            if length > LONGEST:
                raise ValueError("longer than an input may be")
            content = (content or b"\1").ljust(length, rng.choice((b"\0", b"\1", b"\xff")))[:length]
            if rng.random() < 0.3:
                name = rng.choice((rng.choice(names), bytes(mutate(name.encode(), 80)).decode("utf-8", "replace")))
        tensors[name] = dtype, shape, content
    return pack(tensors, metadata)


def _body(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    header, body = _parts(data)
    return _joined(header, bytes(mutate(body, len(body)))[: len(body)].ljust(len(body), b"\0"))


def _bytes(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    return bytes(mutate(data, LONGEST))
