"""Writes bundles of OpenSSF Model Signing, which the package ``model-signing`` verifies, beside files of this format.

A bundle is a Sigstore bundle in JSON: a DSSE envelope, signed with ECDSA, around an in-toto statement that lists the
SHA-256 of each whole file. Bundles are no part of the format: no reader of it looks at them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..errors import SigningError, WriteError
from ..io.atomic import AtomicFile
from ..io.lease import still
from ..io.mapped import Path, is_url
from ..native.cores import usable_cores
from . import sharded_reader, signing
from .reader import File
from .rewrite import spare_inputs

SUFFIX = ".model.sig"  # appended to the whole name of the file: .sig alone is for signatures of the format
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
PAYLOAD = "application/vnd.in-toto+json"
MEDIA = "application/vnd.dev.sigstore.bundle.v0.3+json"

_STRETCH = 4 << 20  # bytes of a file that are read at a time


@dataclass(frozen=True)
class Bundle:
    """Describe a bundle that was written."""

    path: str
    model: str  # what model-signing is to verify: the file, or the folder of the shards
    key: str  # SHA-256 of the public key in PEM, in hex, by which model-signing knows it
    digests: Mapping[str, str]  # SHA-256 in hex, by file: "." alone, or the names of the shards in their folder


def sign_bundle(
    source: Path, key: Path, path: Path | None = None, *, overwrite: bool = False, password: bytes | None = None
) -> Bundle:
    """Sign a file, or all shards of the model of which it is the first, for ``model-signing``.

    Args:
        source: the file; it and its other shards are verified in full first.
        key: PEM file of an ECDSA private key on P-256, P-384 or P-521.
        path: of the bundle; ``source`` with ``.model.sig`` added, by default.
        overwrite: replace an existing file.
        password: of the key, if it is encrypted.

    Raises:
        FormatError: the file, or another shard, is not valid, or changes meanwhile.
        LoadError: it is a shard of several, but not the first.
        SigningError: the key cannot be used, or the file is at a URL.
        WriteError: the bundle cannot be written.
    """
    if is_url(os.fspath(source)):
        raise SigningError(f"{source}: the server may send other bytes later; download the file and sign that")
    private = _private_key(os.fspath(key), password)
    path = f"{os.fspath(source)}{SUFFIX}" if path is None else os.fspath(path)
    try:
        with AtomicFile(path, overwrite) as out, sharded_reader.open(source, "full") as file:
            spare_inputs(file, [path])
            parts = sharded_reader.whole(file).parts
            with ThreadPoolExecutor(usable_cores()) as pool:
                digests = list(pool.map(_sha256, parts))
            first = str(file.path)
            alone = len(parts) == 1
            model = first if alone else os.path.dirname(first) or "."
            names = ["."] if alone else [os.path.basename(str(part.path)) for part in parts]
            made = Bundle(path, model, _hint(private), dict(zip(names, digests, strict=True)))
            out.write(_signed(made, private))
            out.publish()
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror}") from error
    return made


def statement(bundle: Bundle) -> dict[str, Any]:
    """Return what is signed: the in-toto statement with the predicate of model-signing 1.0."""
    digests = dict(sorted(bundle.digests.items()))
    total = hashlib.sha256(b"".join(map(bytes.fromhex, digests.values()))).hexdigest()
    serialization: dict[str, Any] = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    folder, name = os.path.split(os.path.abspath(bundle.path))
    if folder == os.path.abspath(bundle.model):
        serialization["ignore_paths"] = [name]  # the bundle itself lies among the files
    resources = [{"name": name, "algorithm": "sha256", "digest": digest} for name, digest in digests.items()]
    return {
        "_type": STATEMENT,
        "subject": [{"name": os.path.basename(os.path.abspath(bundle.model)), "digest": {"sha256": total}}],
        "predicateType": PREDICATE,
        "predicate": {"serialization": serialization, "resources": resources},
    }


def encoded(payload: bytes) -> bytes:
    """Return the bytes that DSSE signs for a payload: its pre-authentication encoding (PAE), version 1."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _signed(bundle: Bundle, private: Any) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec

    payload = json.dumps(statement(bundle)).encode()
    signature = private.sign(encoded(payload), ec.ECDSA(_hash_for(private)))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }
    material = {"publicKey": {"hint": bundle.key}, "tlogEntries": []}
    whole = {"mediaType": MEDIA, "verificationMaterial": material, "dsseEnvelope": envelope}
    return json.dumps(whole).encode() + b"\n"


def _sha256(part: File) -> str:
    state = hashlib.sha256()
    with still(part.storage) as storage:
        for start in range(0, storage.size, _STRETCH):
            state.update(storage.read_at(start, min(_STRETCH, storage.size - start)).data)  # without the GIL
    return state.hexdigest()


def _private_key(path: str, password: bytes | None) -> Any:
    key = signing.private_key(path, password)
    if _hash_for(key) is None:
        raise SigningError(
            f"{path}: a private key of another kind, {type(key).__name__}; model-signing takes ECDSA on P-256, P-384 "
            "or P-521. To make one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out NAME.pem; "
            "openssl pkey -in NAME.pem -pubout -out NAME.pub"
        )
    return key


def _hash_for(key: Any) -> Any:
    """Return the hash that model-signing uses with a private key; ``None`` for keys that it does not take."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    curves = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
    return curves.get(key.curve.name) if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _hint(private: Any) -> str:
    from cryptography.hazmat.primitives import serialization

    pem, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(private.public_key().public_bytes(pem, form)).hexdigest()
