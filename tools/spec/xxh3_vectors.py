"""Make the test vectors of xxh3 for `spec/xxh3.json`, and the tables of `spec/xxh3.md`, with the package `xxhash`.

Inputs are prefixes of one sequence of bytes, that of xxHash's own sanity checks. `make_spec` writes and checks what
comes of this.
"""

from __future__ import annotations

import json
from functools import cache

import xxhash

from tools.conformance.python.xxh3 import SECRET

# Every length up to one beyond a block of 1024 bytes; then a second block of several stripes, two whole blocks and a
# byte around, and a leaf.
LENGTHS = (*range(1026), 1087, 1088, 1089, 2047, 2048, 2049, 1 << 20)
# The first and the last length of every formula and of every number of rounds in it.
EDGES = (
    0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 32, 33, 64, 65, 96, 97, 128, 129, 143, 144, 159, 160, 161, 191, 192, 193,
    223, 224, 225, 239, 240, 241, 255, 256, 257, 512, 1024, 1025, 1089, 2048, 2049, 1 << 20,
)  # fmt: skip


def inputs(length: int) -> bytes:
    """Return the first ``length`` bytes of the sequence."""
    state, found = 0x9E3779B1, bytearray(length)
    for i in range(length):
        found[i] = state >> 56
        state = state * 0x9E3779B185EBCA8D & 0xFFFF_FFFF_FFFF_FFFF
    return bytes(found)


@cache
def vectors() -> list[tuple[int, str, str]]:
    """Return (length, xxh3_64, xxh3_128) for each of ``LENGTHS``, digests in hex, the most significant digit first."""
    data = inputs(max(LENGTHS))
    return [(n, xxhash.xxh3_64_hexdigest(data[:n]), xxhash.xxh3_128_hexdigest(data[:n])) for n in LENGTHS]


def text() -> str:
    """Return `spec/xxh3.json`: a vector a line."""
    return "[\n" + ",\n".join(map(json.dumps, vectors())) + "\n]\n"


def edges() -> str:
    """Return the vectors at the edges of each formula as a table."""
    found = {length: digests for length, *digests in vectors()}
    rows = [f"| {length} | `{found[length][0]}` | `{found[length][1]}` |\n" for length in EDGES]
    return "| bytes | xxh3_64 | xxh3_128 |\n| ---: | --- | --- |\n" + "".join(rows)


def secret() -> str:
    """Return the default secret as text, 24 bytes a line after the offset of the first."""
    return "".join(f"    {i:3d}  {SECRET[i : i + 24].hex(' ')}\n" for i in range(0, len(SECRET), 24))
