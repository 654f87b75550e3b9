"""XXH3 in plain Python, as far as `.aibit` needs it: seed 0 and the default secret.

    xxh3_64(data) -> int        any length: the leaves of a file
    xxh3_128(data) -> bytes     more than 240 bytes, canonical form: its root, which covers 368 or more

Written from the description of the algorithm that xxHash publishes (doc/xxhash_spec.md, Yann Collet). It is here so
that `reader.py` needs no package.
"""

from __future__ import annotations

import struct

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
M = (1 << 64) - 1  # arithmetic is modulo 2^64
STRIPE, BLOCK = 64, 16  # bytes that are added to the lanes at a time; stripes between two scramblings


def u64(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def swapped(value: int) -> int:
    return int.from_bytes(value.to_bytes(8, "little"), "big")


KEYS = [u64(SECRET, i) for i in range(len(SECRET) - 7)]


def rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & M


def folded(a: int, b: int) -> int:
    """The halves of the 128-bit product, one on the other."""
    product = a * b
    return (product & M) ^ (product >> 64)


def avalanche(h: int) -> int:
    h = (h ^ h >> 37) * 0x165667919E3779F9 & M
    return h ^ h >> 32


def avalanche_64(h: int) -> int:
    """The finish of XXH64, which the shortest inputs get."""
    h = (h ^ h >> 33) * P64[1] & M
    h = (h ^ h >> 29) * P64[2] & M
    return h ^ h >> 32


def xxh3_64(data: bytes) -> int:
    size = len(data)
    if size > 240:
        return merged(accumulated(data), 11, size * P64[0])
    if size > 128:
        return middle(data)
    if size > 16:
        h = size * P64[0]
        for i in range((size - 1) // 32 + 1):  # from both ends inwards
            h += mix(data, 16 * i, 32 * i) + mix(data, size - 16 * (i + 1), 32 * i + 16)
        return avalanche(h & M)
    if size > 8:
        low = u64(data, 0) ^ u64(SECRET, 24) ^ u64(SECRET, 32)
        high = u64(data, size - 8) ^ u64(SECRET, 40) ^ u64(SECRET, 48)
        return avalanche((size + swapped(low) + high + folded(low, high)) & M)
    if size > 3:
        h = (u32(data, size - 4) + (u32(data, 0) << 32)) ^ u64(SECRET, 8) ^ u64(SECRET, 16)
        h = (h ^ rotated(h, 49) ^ rotated(h, 24)) * 0x9FB21C651E98DF25 & M
        h = (h ^ (h >> 35) + size) * 0x9FB21C651E98DF25 & M
        return h ^ h >> 28
    if size:
        h = data[0] << 16 | data[size >> 1] << 24 | data[-1] | size << 8
        return avalanche_64(h ^ u32(SECRET, 0) ^ u32(SECRET, 4))
    return avalanche_64(u64(SECRET, 56) ^ u64(SECRET, 64))


def xxh3_128(data: bytes) -> bytes:
    size = len(data)
    if size <= 240:
        raise ValueError(f"{size} bytes: shorter inputs than 241 have another formula, which no root needs")
    lanes = accumulated(data)
    low, high = merged(lanes, 11, size * P64[0]), merged(lanes, 192 - 64 - 11, ~(size * P64[1]))
    return struct.pack(">QQ", high, low)


def mix(data: bytes, at: int, secret: int) -> int:
    return folded(u64(data, at) ^ u64(SECRET, secret), u64(data, at + 8) ^ u64(SECRET, secret + 8))


def middle(data: bytes) -> int:
    """129 to 240 bytes."""
    size = len(data)
    h = avalanche((size * P64[0] + sum(mix(data, 16 * i, 16 * i) for i in range(8))) & M)
    h += sum(mix(data, 16 * i, 16 * (i - 8) + 3) for i in range(8, size // 16)) + mix(data, size - 16, 136 - 17)
    return avalanche(h & M)


def accumulated(data: bytes) -> list[int]:
    """The eight lanes after more than 240 bytes."""
    lanes = [P32[2], *P64[:4], P32[1], P64[4], P32[0]]
    stripes = (len(data) - 1) // STRIPE
    for i in range(stripes):
        add(lanes, data, STRIPE * i, 8 * (i % BLOCK))
        if i % BLOCK == BLOCK - 1:
            for j in range(8):
                lanes[j] = (lanes[j] ^ lanes[j] >> 47 ^ KEYS[128 + 8 * j]) * P32[0] & M
    add(lanes, data, len(data) - STRIPE, 192 - STRIPE - 7)
    return lanes


def add(lanes: list[int], data: bytes, at: int, secret: int) -> None:
    """One stripe: each value to its neighbour, and to its own lane the product of its halves, keyed."""
    for i, value in enumerate(struct.unpack_from("<8Q", data, at)):
        key = value ^ KEYS[secret + 8 * i]
        lanes[i ^ 1] = lanes[i ^ 1] + value & M
        lanes[i] = lanes[i] + (key & 0xFFFFFFFF) * (key >> 32) & M


def merged(lanes: list[int], secret: int, start: int) -> int:
    h = start + sum(
        folded(lanes[i] ^ KEYS[secret + 8 * i], lanes[i + 1] ^ KEYS[secret + 8 * (i + 1)]) for i in range(0, 8, 2)
    )
    return avalanche(h & M)
