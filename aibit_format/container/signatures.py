"""Signatures: what they cover, their records, and checking them. ``signing`` makes them.

A signature is Ed25519 over the *content digest*: SHA-256 of the whole file but for the root, which follows from the
rest, and for the signatures in it. So the same signature serves inside the file and beside it, and adding one leaves
those that are there valid. ``cryptography`` is imported when a key is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FormatError, MissingPackageError, Problem, SigningError
from ..native.cores import usable_cores
from . import layout

Keys = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Read = Callable[[int, int], Any]  # from an offset, so many bytes

POLICY = "AIBIT_SIGNED_BY"  # environment: the keys that whatever is opened must be signed by
SUFFIX = ".sig"  # of detached signatures, after the whole name of their file
MAX_DETACHED = layout.DETACHED.sizeof() + layout.SIGNATURE_ROOM * layout.SIGNATURE_RECORD.sizeof()

_RECORD = layout.dtype_of(layout.SIGNATURE_RECORD)
_STRETCH = 64 << 20  # bytes asked for at a time


@dataclass(frozen=True, slots=True, order=True)
class Signature:
    """One record: a public key (32 bytes) and what is said to be its signature (64). Nothing says that it is."""

    key: bytes
    signature: bytes

    @property
    def key_id(self) -> str:
        """The key as people see it."""
        return key_id(self.key)


def key_id(key: bytes) -> str:
    """``ed25519:`` and the raw public key in hex."""
    return f"ed25519:{key.hex()}"


def read_section(body: bytes | memoryview, count: int) -> list[Signature]:
    """The signatures of a section of kind 8.

    Raises:
        FormatError: AIB-E604.
    """
    if count != layout.SIGNATURE_ROOM:
        raise _bad("section signatures: count", layout.SIGNATURE_ROOM, count)
    return _records(body, count, spare=True)


def read_detached(data: bytes | memoryview) -> list[Signature]:
    """The signatures of a file of detached ones.

    Raises:
        FormatError: AIB-E604.
    """
    size = layout.DETACHED.sizeof()
    if bytes(data[: len(layout.DETACHED_MAGIC)]) != layout.DETACHED_MAGIC or len(data) < size:
        raise _bad("no file of detached signatures", layout.DETACHED_MAGIC.hex(), bytes(data[:12]).hex())
    return _records(data[size:], layout.DETACHED.parse(bytes(data[:size])).count, spare=False)


def _records(data: bytes | memoryview, count: int, *, spare: bool) -> list[Signature]:
    """``count`` records, those not used, if any may be ``spare``, at the end and all zero."""
    if not 1 <= count <= layout.SIGNATURE_ROOM or len(data) != count * _RECORD.itemsize:
        limit = f"{_RECORD.itemsize} for each of 1 to {layout.SIGNATURE_ROOM} signatures"
        raise _bad("bytes of signatures", limit, f"{len(data)} for {count}")
    table = np.frombuffer(data, _RECORD)
    used = np.flatnonzero(table["algorithm"])
    rows = table[: len(used)]
    if not len(rows) or any(table[len(rows) :].tobytes()) or not (spare or len(rows) == count):
        raise _bad("signatures must be there, and records that are not used must be zero and follow them")
    if any(rows["algorithm"] != layout.ED25519):
        raise _bad("signature algorithm", layout.ED25519, int(rows["algorithm"].max()))
    if any(rows["reserved"].tobytes()):
        raise _bad("reserved bytes of a signature are not zero")
    found = [Signature(row["key"].tobytes(), row["signature"].tobytes()) for row in rows]
    keys = [signature.key for signature in found]
    if keys != sorted(set(keys)):
        raise _bad("keys of signatures are not strictly increasing")
    return found


def _bad(what: str, expected: Any = None, found: Any = None) -> FormatError:
    return FormatError(Problem("AIB-E604", what, expected=expected, found=found))


def section(found: Iterable[Signature]) -> bytes:
    """The body of a section of these signatures; one of 64 zeros keeps a key's place until it is made."""
    return _packed(found).ljust(layout.SIGNATURE_ROOM * _RECORD.itemsize, b"\0")


def detached(found: Iterable[Signature]) -> bytes:
    """A file of these signatures."""
    records = _packed(found)
    head = {"magic": layout.DETACHED_MAGIC, "count": len(records) // _RECORD.itemsize}
    return layout.DETACHED.build(head) + records


def _packed(found: Iterable[Signature]) -> bytes:
    found = sorted(found)
    if not 1 <= len(found) <= layout.SIGNATURE_ROOM:
        raise SigningError(f"{len(found)} signatures; a file has room for 1 to {layout.SIGNATURE_ROOM}")
    fixed = {"algorithm": layout.ED25519, "reserved": bytes(6)}
    return b"".join(layout.SIGNATURE_RECORD.build({**fixed, "key": s.key, "signature": s.signature}) for s in found)


def content_digest(read: Read, size: int, unsigned: list[tuple[int, int]], jobs: int | None = None) -> bytes:
    """The 32 bytes that a file's signatures are over: SHA-256 of a domain, the size and the SHA-256 of each MiB.

    Args:
        read: gives bytes of the file.
        size: of the file.
        unsigned: chunks (start, end) that are taken for zeros; see ``FileInfo.unsigned``.
        jobs: threads; as many as there are cores by default.
    """

    import hashlib  # with its threads, not worth importing for a look at a file
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


def message(key: bytes, content: bytes) -> bytes:
    """What is signed with the key whose public half is ``key``, of a file with this content digest."""
    return layout.SIGNED_MESSAGE.build({"domain": layout.SIGNED_DOMAIN, "key": key, "content": content})


def verifies(found: Signature, content: bytes) -> bool:
    """Whether the signature is its key's, over this content digest."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(found.key).verify(found.signature, message(found.key, content))
    except (InvalidSignature, ValueError):
        return False
    return True


def check(found: list[Signature], keys: Mapping[bytes, str], content: Callable[[], bytes]) -> Signature:
    """The first signature by one of these keys that verifies; ``content`` gives the content digest, if it must.

    Raises:
        FormatError: AIB-E606: none is by one of the keys; AIB-E605: one is said to be, and is not over this content.
    """
    claimed = [signature for signature in found if signature.key in keys]
    if not claimed:
        there = ", ".join(signature.key_id for signature in found) or "none"
        raise FormatError(
            Problem("AIB-E606", "a signature is demanded", expected=f"one by {_listed(keys)}", found=there)
        )
    digest = content()
    for signature in claimed:
        if verifies(signature, digest):
            return signature
    what = f"signature does not verify: this file is not what was signed with {_listed(s.key for s in claimed)}"
    raise FormatError(Problem("AIB-E605", what, found=f"content digest {digest.hex()}"))


def _listed(keys: Iterable[bytes]) -> str:
    return " or ".join(key_id(key) for key in keys)


def demanded(signed_by: Keys | None) -> dict[bytes, str] | None:
    """The keys of which one must have signed: those given, or else those of the environment, or ``None``.

    Raises:
        SigningError: keys are demanded and none can be read: that is no reason to demand nothing.
    """
    if signed_by is None:
        if POLICY not in os.environ:
            return None
        signed_by = os.environ[POLICY].split(os.pathsep)
    return public_keys(signed_by)


def public_keys(source: Keys) -> dict[bytes, str]:
    """Raw public keys, with the file that each is from: of PEM files, and of all ``*.pub`` in folders.

    Raises:
        SigningError: a file is no Ed25519 public key, or there is none.
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
        raise SigningError(f"no public key in {source!r}, and a signature is demanded")
    return found


def _public_key(path: str) -> bytes:
    serialization, ed25519 = primitives()
    data = read_key(path)
    try:
        key = serialization.load_pem_public_key(data)
    except Exception as error:  # of several kinds, one for each way in which it is no key
        hint = "; it is a private one, the public one is wanted" if b"PRIVATE" in data else ""
        raise SigningError(f"{path}: no public key in PEM{hint}") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise SigningError(f"{path}: a public key of another kind, {type(key).__name__}; Ed25519 is wanted")
    return key.public_bytes_raw()


def read_key(path: str) -> bytes:
    """The bytes of a key's file.

    Raises:
        SigningError: it cannot be read, or is far too long for a key.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_OF_A_KEY + 1)
    except OSError as error:
        raise SigningError(f"{path}: key cannot be read: {error.strerror}") from error
    if len(data) > _MOST_OF_A_KEY:
        raise SigningError(f"{path}: no key: longer than {_MOST_OF_A_KEY} bytes")
    return data


_MOST_OF_A_KEY = 1 << 16


def primitives() -> tuple[Any, Any]:
    """``cryptography``'s modules for PEM files and for Ed25519.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingPackageError("signatures need cryptography: pip install 'aibit-format[sign]'") from error
    return serialization, ed25519
