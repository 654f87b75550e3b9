"""Compute XXH3 in plain Python, with seed 0 and the default secret, as spec/xxh3.md describes it.

    xxh3_64(data) -> int        of the leaves of a file
    xxh3_128(data) -> bytes     of its root, in canonical form

Both take any length, though a root covers 368 bytes or more. Written from the description of the algorithm that xxHash
publishes (doc/xxhash_spec.md, Yann Collet). It is here so that `reader.py` needs no package.
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
    low, high = (
        halves_long(data) if size > 240 else halves_mixed(data) if size > 16 else halves_9(data) if size > 8
        else halves_4(data) if size > 3 else halves_1(data) if size else halves_0()
    )  # fmt: skip
    return struct.pack(">QQ", high, low)


def halves_long(data: bytes) -> tuple[int, int]:
    size, lanes = len(data), accumulated(data)
    return merged(lanes, 11, size * P64[0]), merged(lanes, 192 - 64 - 11, ~(size * P64[1]))


def halves_mixed(data: bytes) -> tuple[int, int]:
    """17 to 240 bytes: pairs of 16 bytes, from both ends inwards up to 128 bytes, and then side by side."""
    size = len(data)
    low, high = size * P64[0] & M, 0
    if size <= 128:
        pairs = [(16 * i, size - 16 * (i + 1), 32 * i) for i in reversed(range((size - 1) // 32 + 1))]
    else:
        pairs = [(32 * i, 32 * i + 16, 32 * i if i < 4 else 32 * (i - 4) + 3) for i in range(size // 32)]
        pairs.append((size - 16, size - 32, 136 - 17 - 16))
    for i, (a, b, secret) in enumerate(pairs):
        if size > 128 and i == 4:
            low, high = avalanche(low), avalanche(high)
        low = (low + mix(data, a, secret) & M) ^ (u64(data, b) + u64(data, b + 8) & M)
        high = (high + mix(data, b, secret + 16) & M) ^ (u64(data, a) + u64(data, a + 8) & M)
    return avalanche(low + high & M), -avalanche((low * P64[0] + high * P64[3] + size * P64[1]) & M) & M


def halves_9(data: bytes) -> tuple[int, int]:
    """9 to 16 bytes."""
    size = len(data)
    first, last = u64(data, 0), u64(data, size - 8)
    product = (first ^ last ^ KEYS[32] ^ KEYS[40]) * P64[0]
    low, high = product + (size - 1 << 54) & M, product >> 64
    last ^= KEYS[48] ^ KEYS[56]
    high = high + last + (last & 0xFFFFFFFF) * (P32[1] - 1) & M
    product = (low ^ swapped(high)) * P64[1]
    return avalanche(product & M), avalanche((product >> 64) + high * P64[1] & M)


def halves_4(data: bytes) -> tuple[int, int]:
    """4 to 8 bytes."""
    size = len(data)
    product = ((u32(data, 0) | u32(data, size - 4) << 32) ^ KEYS[16] ^ KEYS[24]) * (P64[0] + (size << 2))
    low, high = product & M, product >> 64
    high = high + (low << 1) & M
    low ^= high >> 3
    low = (low ^ low >> 35) * 0x9FB21C651E98DF25 & M
    return low ^ low >> 28, avalanche(high)


def halves_1(data: bytes) -> tuple[int, int]:
    """1 to 3 bytes."""
    low = data[0] << 16 | data[len(data) >> 1] << 24 | data[-1] | len(data) << 8
    high = int.from_bytes(low.to_bytes(4, "little"), "big")
    high = (high << 13 | high >> 19) & 0xFFFFFFFF
    return (
        avalanche_64(low ^ u32(SECRET, 0) ^ u32(SECRET, 4)),
        avalanche_64(high ^ u32(SECRET, 8) ^ u32(SECRET, 12)),
    )


def halves_0() -> tuple[int, int]:
    return avalanche_64(KEYS[64] ^ KEYS[72]), avalanche_64(KEYS[80] ^ KEYS[88])


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
