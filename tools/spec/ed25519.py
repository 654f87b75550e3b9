"""Compute with the points of edwards25519 (RFC 8032, sections 5.1 and 6), those of small order included.

Made to be read, and to make test vectors: it is slow, and takes a time that depends on secrets.
"""

from __future__ import annotations

import hashlib
from itertools import count
from typing import NamedTuple, Self

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493  # the order of B
D = -121665 * pow(121666, -1, P) % P
I = pow(2, (P - 1) // 4, P)  # a square root of -1  # noqa: E741


class Point(NamedTuple):
    """A point in extended coordinates: x = X/Z, y = Y/Z, xy = T/Z."""

    X: int
    Y: int
    Z: int
    T: int

    @classmethod
    def of(cls, x: int, y: int) -> Self:
        return cls(x, y, 1, x * y % P)

    def plus(self, other: Point) -> Point:
        """Add, by the formulas of RFC 8032, section 5.1.4; they are complete."""
        a, b = (self.Y - self.X) * (other.Y - other.X), (self.Y + self.X) * (other.Y + other.X)
        c, d = 2 * D * self.T * other.T, 2 * self.Z * other.Z
        e, f, g, h = b - a, d - c, d + c, b + a
        return Point(e * f % P, g * h % P, f * g % P, e * h % P)

    def times(self, n: int) -> Point:
        """Multiply by an integer that is not negative."""
        found, power = O, self
        while n:
            if n & 1:
                found = found.plus(power)
            power, n = power.plus(power), n >> 1
        return found

    def minus(self, other: Point) -> Point:
        return self.plus(other._replace(X=-other.X % P, T=-other.T % P))

    def affine(self) -> tuple[int, int]:
        inverse = pow(self.Z, -1, P)
        return self.X * inverse % P, self.Y * inverse % P

    def same(self, other: Point) -> bool:
        return self.affine() == other.affine()

    def encoded(self) -> bytes:
        """Return the one canonical encoding."""
        x, y = self.affine()
        return _bytes(x, y)

    def encodings(self) -> list[bytes]:
        """Return all encodings that a lenient decoder takes for this point, the canonical one first.

        There is more than one if y + p is below 2^255, or if x is 0, so that its sign says nothing.
        """
        x, y = self.affine()
        signs = [0, 1] if x == 0 else [x]
        return [_bytes(sign, each) for each in (y, y + P) if each < 1 << 255 for sign in signs]


def _bytes(x: int, y: int) -> bytes:
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decoded(encoding: bytes) -> Point | None:
    """Return the point of an encoding, canonical or not; ``None`` where there is none on the curve."""
    number = int.from_bytes(encoding, "little")
    y = number % (1 << 255) % P
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * I % P
    if x * x % P != square:
        return None
    return Point.of(x if x & 1 == number >> 255 else -x % P, y)


O = Point.of(0, 1)  # noqa: E741
_y = 4 * pow(5, -1, P) % P
_b = decoded(_bytes(0, _y))
assert _b is not None  # noqa: S101
B = _b


def _of_order_8() -> Point:
    """Return a point of order 8: L times a point that has such a part, the first by y."""
    for y in count(2):
        point = decoded(_bytes(0, y))
        if point is not None and not (found := point.times(L)).times(4).same(O):
            return found
    raise AssertionError


SMALL = [_of_order_8().times(i) for i in range(8)]  # all points of small order; that at i has the order 8 / gcd(i, 8)


class Secret(NamedTuple):
    """A private key: what RFC 8032, section 5.1.5, makes of 32 bytes."""

    scalar: int
    prefix: bytes

    @classmethod
    def of(cls, seed: bytes) -> Self:
        hashed = hashlib.sha512(seed).digest()
        return cls(int.from_bytes(hashed[:32], "little") & ((1 << 254) - 8) | 1 << 254, hashed[32:])

    def public(self) -> bytes:
        return B.times(self.scalar).encoded()

    def sign(self, message: bytes) -> bytes:
        r = _hash(self.prefix, message)
        return halves(B.times(r).encoded(), r + challenge(B.times(r).encoded(), self.public(), message) * self.scalar)


def _hash(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % L


def challenge(r: bytes, key: bytes, message: bytes) -> int:
    """Return k of RFC 8032, section 5.1.7."""
    return _hash(r, key, message)


def halves(r: bytes, s: int) -> bytes:
    """Return a signature: R, which is given encoded, and s modulo L."""
    return r + (s % L).to_bytes(32, "little")


def equations(key: bytes, message: bytes, signature: bytes) -> tuple[bool, bool]:
    """Tell whether [S]B = R + [k]A, and whether 8 times both sides are equal; encodings and S are not judged."""
    a, r = decoded(key), decoded(signature[:32])
    if a is None or r is None:
        return False, False
    s, k = int.from_bytes(signature[32:], "little"), challenge(signature[:32], key, message)
    difference = B.times(s).minus(r).minus(a.times(k))
    return difference.same(O), difference.times(8).same(O)


def is_sound(encoding: bytes) -> bool:
    """Tell whether these are the canonical encoding of a point, and that is not of small order."""
    point = decoded(encoding)
    return point is not None and point.encoded() == encoding and not point.times(8).same(O)


def verifies(key: bytes, message: bytes, signature: bytes) -> bool:
    """Verify by the rule of section 24 of the specification."""
    in_range = int.from_bytes(signature[32:], "little") < L
    return in_range and is_sound(key) and is_sound(signature[:32]) and equations(key, message, signature)[0]
