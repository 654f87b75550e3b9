"""Make the test vectors of Ed25519 for `spec/ed25519.json`: signatures on which implementations differ, and others.

All but RFC 8032's own are over an 80-byte signed message of the format, which names the key. Keys, messages and nonces
follow from the text of their names, so that the same vectors come out everywhere. `make_spec` writes and checks them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from itertools import count
from math import gcd
from typing import NamedTuple

from tools.spec.ed25519 import (
    SMALL,
    B,
    L,
    O,
    P,
    Point,
    Secret,
    challenge,
    decoded,
    equations,
    halves,
    is_sound,
    verifies,
)
from tools.spec.rfc8032 import VECTORS


class Vector(NamedTuple):
    """A signature to verify."""

    name: str
    key: bytes
    message: bytes
    signature: bytes


def seed(label: str) -> bytes:
    return hashlib.sha256(b"aibit ed25519 " + label.encode()).digest()


def message(key: bytes, label: str) -> bytes:
    """Return a signed message (section 24) over a content digest that follows from the label."""
    return b"aibit signature\0" + key + seed(f"content {label}")


def nonce(label: str) -> int:
    return int.from_bytes(hashlib.sha512(seed(f"nonce {label}")).digest(), "little") % L


SIGNER = Secret.of(seed("signer"))
KEY, SCALAR = SIGNER.public(), SIGNER.scalar


@cache
def vectors() -> list[Vector]:
    return [*_from_rfc(), *_plain(), *_altered(), *_large_s(), *_small_keys(), *_small_r(), *_mixed(), *_no_points()]


def text() -> str:
    """Return `spec/ed25519.json`: a vector a line."""
    rows = []
    for each in vectors():
        parts = {"name": each.name, "key": each.key, "message": each.message, "signature": each.signature}
        cofactorless, cofactored = equations(*each[1:])
        verdicts = {"cofactorless": cofactorless, "cofactored": cofactored, "is_key": is_sound(each.key)}
        rows.append(parts | verdicts | {"verifies": verifies(*each[1:])})
    return "[\n" + ",\n".join(json.dumps(row, default=bytes.hex) for row in rows) + "\n]\n"


def _from_rfc() -> Iterator[Vector]:
    for name, private, data, signed in VECTORS:
        key = Secret.of(bytes.fromhex(private)).public()
        yield Vector(f"RFC 8032, {name}", key, bytes.fromhex(data), bytes.fromhex(signed))


def _plain() -> Iterator[Vector]:
    for i in range(4):
        secret = Secret.of(seed(f"key {i}"))
        data = message(secret.public(), f"plain {i}")
        yield Vector(f"a signed message, {i + 1}", secret.public(), data, secret.sign(data))


def _altered() -> Iterator[Vector]:
    data = message(KEY, "altered")
    good = SIGNER.sign(data)
    other = Secret.of(seed("other"))
    for name, at in (("R", 0), ("the sign of R", 31), ("S", 32), ("the highest byte of S", 63)):
        changed = bytearray(good)
        changed[at] ^= 0x80 if at == 31 else 1
        yield Vector(f"a bit of {name} changed", KEY, data, bytes(changed))
    yield Vector("another content digest", KEY, message(KEY, "another"), good)
    yield Vector("by another key", other.public(), message(other.public(), "altered"), good)
    yield Vector("another key, that of the signature in the message", other.public(), data, good)
    yield Vector("all zeros", KEY, data, bytes(64))
    yield Vector("Ed25519ph", KEY, data, _prehashed(data))


def _prehashed(data: bytes) -> bytes:
    """Sign as Ed25519ph does: what is hashed begins with dom2(1, "")."""
    domain, hashed = b"SigEd25519 no Ed25519 collisions\1\0", hashlib.sha512(data).digest()
    r = B.times(nonce("ph"))
    k = int.from_bytes(hashlib.sha512(domain + r.encoded() + KEY + hashed).digest(), "little") % L
    return halves(r.encoded(), nonce("ph") + k * SCALAR)


def _large_s() -> Iterator[Vector]:
    data = message(KEY, "large S")
    good = SIGNER.sign(data)
    s = int.from_bytes(good[32:], "little")
    yield Vector("the signature that the next ones change", KEY, data, good)
    for times in (1, 2, 8, 14):
        name = f"S + {times} L" if times > 1 else "S + L"
        yield Vector(name, KEY, data, good[:32] + (s + times * L).to_bytes(32, "little"))
    yield Vector("S of ones alone", KEY, data, good[:32] + b"\xff" * 32)


def _small_keys() -> Iterator[Vector]:
    for i, point in enumerate(SMALL):
        for j, key in enumerate(point.encodings()):
            name = f"A of order {_order(i)}, point {i}" + f", not canonical, {j}" * bool(j)
            # R and S that fit whatever the order: k is a multiple of 8.
            for n in count():
                data, s = message(key, name), nonce(f"{name} {n}")
                r = B.times(s).encoded()
                if challenge(r, key, data) % 8 == 0:
                    yield Vector(name, key, data, halves(r, s))
                    break
            yield _nothing(f"{name}, S = 0", key, point)
            if i:  # where the equation holds only with the cofactor
                for n in count():
                    data, s = message(key, f"{name} {n}"), nonce(name)
                    r = B.times(s).encoded()
                    if challenge(r, key, data) % _order(i):
                        yield Vector(f"{name}, k is no multiple of the order", key, data, halves(r, s))
                        break


def _nothing(name: str, key: bytes, point: Point) -> Vector:
    """Return a signature that anybody can make: S is 0, and R is -[k]A."""
    for n, small in ((n, small) for n in count() for small in SMALL):
        data, r = message(key, f"{name} {n}"), small.encoded()
        if small.plus(point.times(challenge(r, key, data) % 8)).same(O):
            return Vector(name, key, data, halves(r, 0))
    raise AssertionError


def _small_r() -> Iterator[Vector]:
    for i, point in enumerate(SMALL):
        for j, r in enumerate(point.encodings()):
            name = f"R of order {_order(i)}, point {i}" + f", not canonical, {j}" * bool(j)
            data = message(KEY, name)
            yield Vector(name, KEY, data, halves(r, challenge(r, KEY, data) * SCALAR))


def _mixed() -> Iterator[Vector]:
    """Points with a part of small order and a large one."""
    for i in (1, 2, 4):
        small, order = SMALL[i], _order(i)
        mixed = B.times(SCALAR).plus(small)
        key = mixed.encoded()
        r = nonce(f"mixed {i}")
        for rest, says in ((False, "k is a multiple of the order"), (True, "k is no multiple of the order")):
            name = f"A with a part of order {order}, {says}"
            yield next(
                Vector(name, key, data, halves(B.times(r).encoded(), r + k * SCALAR))
                for data, k in _challenges(key, B.times(r).encoded(), name)
                if bool(k % order) == rest
            )
        name = f"A and R with parts of order {order} that cancel"
        yield next(
            Vector(name, key, data, halves(point.encoded(), r + k * SCALAR))
            for point in (B.times(r).minus(small),)
            for data, k in _challenges(key, point.encoded(), name)
            if k % order == 1
        )
        name = f"R of order {order}, and A with a part that it cancels"
        opposite = O.minus(small).encoded()
        yield next(
            Vector(name, key, data, halves(opposite, k * SCALAR))
            for data, k in _challenges(key, opposite, name)
            if k % order == 1
        )
        name = f"R with a part of order {order}"
        data, encoded = message(KEY, name), B.times(r).plus(small).encoded()
        yield Vector(name, KEY, data, halves(encoded, r + challenge(encoded, KEY, data) * SCALAR))


def _challenges(key: bytes, r: bytes, name: str) -> Iterator[tuple[bytes, int]]:
    for n in count():
        data = message(key, f"{name} {n}")
        yield data, challenge(r, key, data)


def _no_points() -> Iterator[Vector]:
    """Encodings of no point, and of points under a number too large, whose discrete logarithms nobody knows."""
    there = [y for y in range(2, 19) if decoded(y.to_bytes(32, "little")) is not None]
    nowhere = next(y for y in range(2, 19) if y not in there)
    s = nonce("no point")
    r = B.times(s).encoded()
    for name, y in (
        ("A is no point", nowhere), ("A is no point, and not canonical", nowhere + P),
        (f"A with y = {there[0]}, unsigned", there[0]), (f"A with y = p + {there[0]}", there[0] + P),
        (f"A with y = p + {there[-1]}", there[-1] + P), ("A of ones alone", (1 << 256) - 1),
    ):  # fmt: skip
        key = y.to_bytes(32, "little")
        yield Vector(name, key, message(key, name), halves(r, s))
    data = message(KEY, "R is no point")
    for name, y in (("R is no point", nowhere), (f"R with y = p + {there[0]}", there[0] + P)):
        encoded = y.to_bytes(32, "little")
        yield Vector(name, KEY, data, halves(encoded, challenge(encoded, KEY, data) * SCALAR))


def _order(i: int) -> int:
    return 8 // gcd(i, 8)
