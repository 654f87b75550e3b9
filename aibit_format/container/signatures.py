"""Reads, builds and checks signatures, and computes the digest that they cover. ``file/signing.py`` makes them.

A signature is Ed25519 over one of two digests, by its algorithm. The *front digest* is the SHA-256 of header and front
matter, with the strong leaves of everything else in it: it is checked on opening, and each leaf when it is read. The
*content digest*, of files without strong leaves, is that of the whole file. Both leave out the root, which follows from
the rest, and the signatures over it: so the same signature works inside the file and beside it, and adding one leaves
existing ones valid. ``cryptography`` is imported when a key is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FormatError, MissingPackageError, Problem, SigningError
from ..native.cores import usable_cores
from . import ed25519, layout

Keys = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Read = Callable[[int, int], Any]  # (offset, length) -> bytes

POLICY = "AIBIT_SIGNED_BY"  # environment variable: keys of which one must have signed every file that is opened
SUFFIX = ".sig"  # of detached signatures, appended to the whole name of their file
MAX_DETACHED = layout.DETACHED.sizeof() + layout.SIGNATURE_ROOM * layout.SIGNATURE_RECORD.sizeof()

_RECORD = layout.dtype_of(layout.SIGNATURE_RECORD)
_STRETCH = 64 << 20  # bytes read at a time


@dataclass(frozen=True, slots=True, order=True)
class Signature:
    """Hold one record: a public key (32 bytes) and what claims to be its signature (64 bytes), not yet checked.

    ``algorithm`` says which digest was signed: ``layout.ED25519`` or ``layout.ED25519_FRONT``.
    """

    key: bytes
    signature: bytes
    algorithm: int = layout.ED25519_FRONT

    @property
    def key_id(self) -> str:
        """Return the key as people see it."""
        return key_id(self.key)


def key_id(key: bytes) -> str:
    """Format a raw public key for people: ``ed25519:`` and its bytes in hex."""
    return f"ed25519:{key.hex()}"


def read_section(kind: int, body: bytes | memoryview, count: int) -> list[Signature]:
    """Parse the signatures in the body of a section of a kind that holds some.

    Raises:
        FormatError: AIB-E604.
    """
    if count != layout.SIGNATURE_ROOM:
        raise _bad(f"section {layout.SECTION_NAMES[kind]}: count", layout.SIGNATURE_ROOM, count)
    return _records(body, count, {layout.ALGORITHMS[kind]}, spare=True)


def read_detached(data: bytes | memoryview) -> list[Signature]:
    """Parse a file of detached signatures.

    Raises:
        FormatError: AIB-E604.
    """
    size = layout.DETACHED.sizeof()
    if bytes(data[: len(layout.DETACHED_MAGIC)]) != layout.DETACHED_MAGIC or len(data) < size:
        raise _bad("no file of detached signatures", layout.DETACHED_MAGIC.hex(), bytes(data[:12]).hex())
    count = layout.DETACHED.parse(bytes(data[:size])).count
    return _records(data[size:], count, {*layout.ALGORITHMS.values()}, spare=False)


def _records(data: bytes | memoryview, count: int, algorithms: Collection[int], *, spare: bool) -> list[Signature]:
    """Parse ``count`` records. With ``spare``, unused ones are allowed: they are all zero and follow the others."""
    if not 1 <= count <= layout.SIGNATURE_ROOM or len(data) != count * _RECORD.itemsize:
        limit = f"{_RECORD.itemsize} for each of 1 to {layout.SIGNATURE_ROOM} signatures"
        raise _bad("bytes of signatures", limit, f"{len(data)} for {count}")
    table = np.frombuffer(data, _RECORD)
    used = np.flatnonzero(table["algorithm"])
    rows = table[: len(used)]
    if not len(rows) or any(table[len(rows) :].tobytes()) or not (spare or len(rows) == count):
        raise _bad("signatures must be there, and records that are not used must be zero and follow them")
    if other := sorted({*rows["algorithm"].tolist()} - {*algorithms}):
        raise _bad("signature algorithm", " or ".join(map(str, sorted(algorithms))), other[0])
    if any(rows["reserved"].tobytes()):
        raise _bad("reserved bytes of a signature are not zero")
    found = [Signature(r["key"].tobytes(), r["signature"].tobytes(), int(r["algorithm"])) for r in rows]
    keys = [signature.key for signature in found]
    if keys != sorted(set(keys)):
        raise _bad("keys of signatures are not strictly increasing")
    return found


def _bad(what: str, expected: Any = None, found: Any = None) -> FormatError:
    return FormatError(Problem("AIB-E604", what, expected=expected, found=found))


def section(found: Iterable[Signature]) -> bytes:
    """Build the body of a section of these signatures; 64 zeros hold the place of one that is not made yet."""
    return _packed(found).ljust(layout.SIGNATURE_ROOM * _RECORD.itemsize, b"\0")


def detached(found: Iterable[Signature]) -> bytes:
    """Build the contents of a file of detached signatures."""
    records = _packed(found)
    head = {"magic": layout.DETACHED_MAGIC, "count": len(records) // _RECORD.itemsize}
    return layout.DETACHED.build(head) + records


def _packed(found: Iterable[Signature]) -> bytes:
    found = sorted(found)
    if not 1 <= len(found) <= layout.SIGNATURE_ROOM:
        raise SigningError(f"{len(found)} signatures; a file has room for 1 to {layout.SIGNATURE_ROOM}")
    return b"".join(
        layout.SIGNATURE_RECORD.build(
            {"algorithm": s.algorithm, "reserved": bytes(6), "key": s.key, "signature": s.signature}
        )
        for s in found
    )


def content_digest(read: Read, size: int, unsigned: list[tuple[int, int]], jobs: int | None = None) -> bytes:
    """Compute the 32 bytes that signatures over a whole file cover: SHA-256 of a domain, its size, each MiB's SHA-256.

    Args:
        read: returns bytes of the file, given an offset and a length.
        size: of the file, in bytes.
        unsigned: chunks (start, end) that are hashed as zeros; see ``FileInfo.unsigned``.
        jobs: threads; as many as there are cores by default.
    """

    import hashlib  # slow to import, as are threads, and seldom needed
    from concurrent.futures import ThreadPoolExecutor

    def digest(piece: memoryview, start: int) -> bytes:
        for low, high in unsigned:
            low, high = max(low - start, 0), min(high - start, len(piece))
            if low < high:
                piece = memoryview(bytes(piece[:low]) + bytes(high - low) + bytes(piece[high:]))
        return hashlib.sha256(piece).digest()  # without the GIL

    total = hashlib.sha256(layout.CONTENT_DOMAIN + size.to_bytes(8, "little"))
    with ThreadPoolExecutor(jobs or usable_cores()) as pool:
        for start in range(0, size, _STRETCH):
            data = memoryview(read(start, min(_STRETCH, size - start)))
            places = range(0, len(data), layout.SHA256_PIECE)
            pieces = (data[i : i + layout.SHA256_PIECE] for i in places)
            for found in pool.map(digest, pieces, (start + i for i in places)):
                total.update(found)
    return total.digest()


def message(key: bytes, digest: bytes) -> bytes:
    """Build the message that is signed for a file with this digest by the owner of the public ``key``."""
    return layout.SIGNED_MESSAGE.build({"domain": layout.SIGNED_DOMAIN, "key": key, "digest": digest})


def verifies(found: Signature, digest: bytes) -> bool:
    """Verify that the signature was made by its key over this digest, which its algorithm names."""
    return ed25519.verifies(found.key, message(found.key, digest), found.signature)


def check(found: list[Signature], keys: Mapping[bytes, str], digest: Callable[[int], bytes]) -> Signature:
    """Return a signature by one of these keys that verifies.

    Args:
        found: the signatures of a file.
        keys: public keys that are trusted, raw -> where they come from.
        digest: computes the digest that an algorithm names. It is called only for signatures that claim to be by one
            of the keys, and for the front digest, which costs little, first.

    Raises:
        FormatError: AIB-E606: none claims to be by one of the keys; AIB-E605: those that do, do not verify.
    """
    claimed = [signature for signature in found if signature.key in keys]
    if not claimed:
        there = ", ".join(signature.key_id for signature in found) or "none"
        raise FormatError(
            Problem("AIB-E606", "a signature is demanded", expected=f"one by {_listed(keys)}", found=there)
        )
    digests: dict[int, bytes] = {}
    for signature in sorted(claimed, key=lambda signature: -signature.algorithm):
        if signature.algorithm not in digests:
            digests[signature.algorithm] = digest(signature.algorithm)
        if verifies(signature, digests[signature.algorithm]):
            return signature
    what = f"signature does not verify: this file is not what was signed with {_listed(s.key for s in claimed)}"
    computed = ", ".join(f"{_DIGESTS[algorithm]} {digest.hex()}" for algorithm, digest in digests.items())
    raise FormatError(Problem("AIB-E605", what, found=computed))


_DIGESTS = {layout.ED25519: "content digest", layout.ED25519_FRONT: "front digest"}


def _listed(keys: Iterable[bytes]) -> str:
    return " or ".join(key_id(key) for key in keys)


def demanded(signed_by: Keys | None) -> dict[bytes, str] | None:
    """Return the keys of which one must have signed: those given, else those of the environment, else ``None``.

    Raises:
        SigningError: keys are demanded but none can be read: that must not turn the demand off.
    """
    if signed_by is None:
        if POLICY not in os.environ:
            return None
        signed_by = os.environ[POLICY].split(os.pathsep)
    return public_keys(signed_by)


def public_keys(source: Keys) -> dict[bytes, str]:
    """Read raw public keys from PEM files, and from all ``*.pub`` in folders; returns key -> file.

    Raises:
        SigningError: a file is not an Ed25519 public key, or one that can mean nobody, or there is none.
        MissingPackageError: ``cryptography`` is not installed.
    """
    found: dict[bytes, str] = {}
    for path in [source] if isinstance(source, (str, os.PathLike)) else source:
        path = os.fspath(path)
        names = sorted(n for n in os.listdir(path) if n.endswith(".pub")) if os.path.isdir(path) else [None]
        for name in names:
            file = os.path.join(path, name) if name else path
            found[_public_key(file)] = file
    if not found:
        raise SigningError(f"no public key in {source!r}, but a signature is demanded")
    return found


def _public_key(path: str) -> bytes:
    serialization, kinds = primitives()
    data = read_key(path)
    try:
        key = serialization.load_pem_public_key(data)
    except Exception as error:  # of several types, depending on what is wrong with it
        hint = "; it is a private one: give the public key" if b"PRIVATE" in data else ""
        raise SigningError(f"{path}: no public key in PEM format{hint}") from error
    if not isinstance(key, kinds.Ed25519PublicKey):
        raise SigningError(f"{path}: a public key of another kind, {type(key).__name__}; Ed25519 is needed")
    raw = key.public_bytes_raw()
    if not ed25519.is_point(raw):
        raise SigningError(
            f"{path}: {key_id(raw)} is nobody's key: it is no point of the curve, or one of small order, for which "
            "anybody can sign; ask whoever gave it to you for another"
        )
    return raw


def read_key(path: str) -> bytes:
    """Read a key file.

    Raises:
        SigningError: it cannot be read, or is far too long for a key.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_OF_A_KEY + 1)
    except OSError as error:
        raise SigningError(f"{path}: key cannot be read: {error.strerror}") from error
    if len(data) > _MOST_OF_A_KEY:
        raise SigningError(f"{path}: not a key: longer than {_MOST_OF_A_KEY} bytes")
    return data


_MOST_OF_A_KEY = 1 << 16


def primitives() -> tuple[Any, Any]:
    """Import ``cryptography``'s modules for PEM files and for Ed25519.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519 as kinds
    except ImportError as error:
        raise MissingPackageError("signatures need cryptography: pip install 'aibit-format[sign]'") from error
    return serialization, kinds
