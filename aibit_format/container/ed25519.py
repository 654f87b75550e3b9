"""Verifies Ed25519 by the exact rule of section 24 of the specification, whatever a library does by itself.

Implementations of RFC 8032 differ in what they make of points of small order, of encodings that are not canonical and
of the cofactor (Chalkias, Garillot, Nikolaenko: Taming the many EdDSAs, 2020). OpenSSL, which ``cryptography`` calls,
compares R with the encoding of [S]B - [k]A, without the cofactor, and checks S; it takes any A that it can decode. What
it leaves out is checked here, before it is called.
"""

from __future__ import annotations

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493  # the order of the base point
D = -121665 * pow(121666, -1, P) % P  # of the curve: -x^2 + y^2 = 1 + d x^2 y^2

# The y of the eight points whose order divides 8. Orders 1, 2, 4 (two points), and 8 (four points, two to each y).
_OF_ORDER_8 = 0x5FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
SMALL_ORDER = frozenset({1, P - 1, 0, _OF_ORDER_8, P - _OF_ORDER_8})


def is_point(encoded: bytes) -> bool:
    """Tell whether 32 bytes are the canonical encoding of a point of the curve, and not one of small order."""
    y = int.from_bytes(encoded, "little") & (1 << 255) - 1  # the highest bit is the sign of x
    if y >= P or y in SMALL_ORDER:
        return False
    # x^2 = (y^2 - 1) / (d y^2 + 1) has a root if the product of both is a square. It is not 0: y is neither 1 nor -1.
    return pow((y * y - 1) * (D * y * y + 1), (P - 1) // 2, P) == 1


def verifies(key: bytes, message: bytes, signature: bytes) -> bool:
    """Verify a signature of 64 bytes by a raw public key of 32."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    if not (s < L and is_point(key) and is_point(r)):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
