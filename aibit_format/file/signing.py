"""Makes keys, signed copies of files, and signatures beside files. ``container.signatures`` defines what is signed.

Only files that verify in full are signed. A signed copy has strong leaves, and its signatures are over the front matter
with these in it. They take the place of slack, so that nothing after them moves. What follows is shared with the source
where the file system can do that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..container import layout, plan, signatures
from ..container.signatures import Keys, Signature
from ..container.tables import ExtraSection, FileInfo
from ..errors import FormatError, Problem, SigningError, WriteError
from ..io.atomic import AtomicFile, insist
from ..io.mapped import Path
from .progress import Progress, counting
from .reader import File
from .writer import Writer

PRIVATE, PUBLIC = ".pem", ".pub"


def new_key(name: Path, password: bytes | None = None) -> str:
    """Make ``name.pem``, a private key that only its owner can read, and ``name.pub``; return the public key's id.

    Args:
        name: of the files, without an extension.
        password: encrypts the private key.

    Raises:
        WriteError: a file of one of these names exists, or cannot be written.
    """
    serialization, ed25519 = signatures.primitives()
    key = ed25519.Ed25519PrivateKey.generate()
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    name = os.fspath(name)
    for path in (name + PRIVATE, name + PUBLIC):
        if os.path.lexists(path):
            raise WriteError(f"{path}: exists, and keys are never replaced; choose another name")
    try:
        with AtomicFile(name + PRIVATE, mode=0o600) as secret, AtomicFile(name + PUBLIC) as shared:
            secret.write(private)
            shared.write(public)
            shared.publish()  # first: by itself it does no harm
            try:
                secret.publish()
            except BaseException:
                insist(partial(os.unlink, name + PUBLIC))
                raise
    except OSError as error:
        raise WriteError(f"{name}: {error.strerror or error}") from error
    return signatures.key_id(key.public_key().public_bytes_raw())


def sign(
    source: Path,
    keys: Keys,
    path: Path,
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
    password: bytes | None = None,
) -> list[Signature]:
    """Write a copy of a file that is signed inside, with one private key or several; return its signatures.

    Signatures of the front matter that are already in the file are kept. Those over the whole content, which version
    1.0 made, would not be valid for the copy, whose bytes differ; nor is a detached signature of the unsigned file.

    Args:
        source: the file; it is verified in full first.
        keys: PEM files of Ed25519 private keys: a path, or several.
        path: of the copy.
        overwrite: replace an existing file.
        on_progress: called with bytes done, total bytes, and the tensor's name.
        password: of the keys that are encrypted.

    Raises:
        FormatError: the file, or a signature in it, is not valid (AIB-E605).
        SigningError: a key cannot be used, there are more signatures than a file has room for, or those in the file
            would no longer be valid.
        WriteError: the copy cannot be written.
    """
    signers = _signers(keys, password)
    with File(source, verify="full") as file:
        info = file.tables
        if file.metadata.get("shard.index", 1) > 1:
            raise SigningError(
                f"{file.path}: a signature inside it would change the root by which the first shard lists it; "
                f"put one beside it (--detached)"
            )
        if info.section(layout.SIGNATURES) is not None:
            raise SigningError(
                f"{file.path}: holds signatures over the whole file, which would not be valid for a copy with others; "
                f"put one beside it (--detached), or remove them first: aibit edit FILE -o OUT"
            )
        kept = [signature for signature in info.signatures if signature.key not in signers]
        digest = info.front_digest() if kept else b""
        for signature in kept:
            if not signatures.verifies(signature, digest):
                what = f"the existing signature by {signature.key_id} does not verify"
                raise FormatError(Problem("AIB-E605", what), file.path)
        strong = file.strong_leaves()
        # No signature covers the places of signatures, so zeros can hold them until they are made.
        planned = _with(info, strong, [*kept, *(Signature(key, bytes(64)) for key in signers)])
        planned = plan.placed(planned, info.front_matter_length)

        def put(info: FileInfo) -> FileInfo:
            if not np.array_equal(info.leaves, file.tables.leaves):
                raise FormatError(Problem("AIB-E802", "file changed while it was copied"), file.path)
            made = _made(signers, info.front_digest(), layout.ED25519_FRONT)
            return _with(info, strong, [*kept, *made])

        finished = counting({name: file.info(name).nbytes for name in info.stored_names}, on_progress)
        with Writer(path, planned, overwrite=overwrite, source=file) as writer:
            for name in file.documents:
                writer.write_document(name, bytes(file.documents[name]))
            writer.take_data(finished)
            return writer.commit(sign=put).signatures


def sign_detached(
    source: Path, keys: Keys, path: Path | None = None, *, overwrite: bool = False, password: bytes | None = None
) -> list[Signature]:
    """Sign a file without changing it, into ``path`` (``source`` with ``.sig`` added, by default); see ``sign``.

    The signatures are over the front matter if the file has strong leaves, and over its whole content otherwise.
    """
    signers = _signers(keys, password)
    with File(source, verify="full") as file:
        if file.tables.strong_leaves is None:
            made = _made(signers, file.content_digest(), layout.ED25519)
        else:
            made = _made(signers, file.tables.front_digest(), layout.ED25519_FRONT)
    path = f"{os.fspath(source)}{signatures.SUFFIX}" if path is None else os.fspath(path)
    try:
        with AtomicFile(path, overwrite) as out:
            out.write(signatures.detached(made))
            out.publish()
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror}") from error
    return made


Signers = dict[bytes, Callable[[bytes], bytes]]  # raw public key -> function that signs a message with its private half


def _signers(keys: Keys, password: bytes | None) -> Signers:
    found: Signers = {}
    for path in [keys] if isinstance(keys, (str, os.PathLike)) else keys:
        key = _private_key(os.fspath(path), password)
        found[key.public_key().public_bytes_raw()] = key.sign
    if not found:
        raise SigningError("no key to sign with")
    return found


def _private_key(path: str, password: bytes | None) -> Any:
    _, ed25519 = signatures.primitives()
    key = private_key(path, password)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise SigningError(f"{path}: a private key of another kind, {type(key).__name__}; Ed25519 is needed")
    return key


def private_key(path: str, password: bytes | None) -> Any:
    """Read a private key of any kind from a PEM file.

    Raises:
        SigningError: there is none, or the password is missing or wrong.
        MissingPackageError: ``cryptography`` is not installed.
    """
    serialization, _ = signatures.primitives()
    data = signatures.read_key(path)
    encrypted = b"ENCRYPTED" in data  # cryptography refuses a password for an unencrypted key; it may be for another
    if encrypted and not password:
        raise SigningError(f"{path}: the key is encrypted, but no password was given")
    try:
        return serialization.load_pem_private_key(data, password if encrypted else None)
    except Exception as error:  # of several types, depending on what is wrong with it
        what = "wrong password, or a damaged key" if encrypted else "no private key in PEM format"
        raise SigningError(f"{path}: {what}") from error


def _made(signers: Signers, digest: bytes, algorithm: int) -> list[Signature]:
    made = ((key, sign(signatures.message(key, digest))) for key, sign in sorted(signers.items()))
    return [Signature(key, signature, algorithm) for key, signature in made]


def _with(info: FileInfo, strong: np.ndarray, found: Iterable[Signature]) -> FileInfo:
    """Return the same file with these strong leaves, u8 [leaves, 32], and signatures in it."""
    made = (
        ExtraSection(layout.STRONG_LEAVES, 0, len(strong), strong.tobytes()),
        ExtraSection(layout.FRONT_SIGNATURES, 0, layout.SIGNATURE_ROOM, signatures.section(found)),
    )
    kinds = {section.kind for section in made}
    others = (extra for extra in info.extra if extra.kind not in kinds)
    return replace(info, extra=tuple(sorted((*made, *others), key=lambda extra: extra.kind)))
