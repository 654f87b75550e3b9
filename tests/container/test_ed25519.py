"""Ed25519 by the rule of section 24: every vector of ``spec/ed25519.json``, and where they come from."""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from aibit_format.container import ed25519, signatures
from aibit_format.container.signatures import Signature
from aibit_format.errors import FormatError, SigningError
from aibit_format.file import signing
from tests.support.paths import ROOT
from tests.support.signed_files import code_of, content_digest_of, with_section
from tests.support.signed_files import keys as keys
from tests.support.signed_files import signed as signed
from tools.spec import ed25519 as arithmetic
from tools.spec import rfc8032

VECTORS = json.loads((ROOT / "spec" / "ed25519.json").read_text("utf-8"))
HEX = ("key", "message", "signature")
ENCODINGS = [each for point in arithmetic.SMALL for each in point.encodings()]


def pem_of(key, folder):
    """A PEM file of 32 bytes as a public key, whatever they are."""
    public = Ed25519PublicKey.from_public_bytes(key)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / "k.pub").write_bytes(public.public_bytes(serialization.Encoding.PEM, form))
    return folder / "k.pub"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vector(vector, tmp_path):
    key, message, signature = (bytes.fromhex(vector[name]) for name in HEX)
    assert ed25519.verifies(key, message, signature) == vector["verifies"]
    assert ed25519.is_point(key) == vector["is_key"]
    if vector["is_key"]:
        assert signatures.public_keys(pem_of(key, tmp_path)).keys() == {key}
    else:
        with pytest.raises(SigningError, match=f"ed25519:{key.hex()} is nobody's key"):
            signatures.public_keys(pem_of(key, tmp_path))
    if message[:48] == b"aibit signature\0" + key:
        assert signatures.verifies(Signature(key, signature), message[48:]) == vector["verifies"]
    else:
        assert vector["name"].startswith("RFC 8032") or "another key" in vector["name"]


def test_the_vectors_have_what_implementations_differ_about():
    """A reader that leaves out one part of the rule says otherwise of some vector."""

    def number(half):
        return int.from_bytes(half, "little")

    parts = Counter()
    for vector in VECTORS:
        key, _, signature = (bytes.fromhex(vector[name]) for name in HEX)
        y, r = (number(each) & (1 << 255) - 1 for each in (key, signature[:32]))
        broken = [
            name
            for name, kept in {
                "S": number(signature[32:]) < arithmetic.L,
                "equation": vector["cofactorless"],
                "small A": key not in ENCODINGS,
                "small R": signature[:32] not in ENCODINGS,
                "canonical A": y < arithmetic.P,
                "canonical R": r < arithmetic.P,
            }.items()
            if not kept
        ]
        assert vector["verifies"] == (not broken), vector["name"]
        parts[tuple(broken), vector["cofactored"]] += 1
    assert parts[(), True] >= 16
    for alone in ("S", "equation", "small A", "small R"):
        assert parts[(alone,), True] >= 4  # all else is right, and the equation holds with the cofactor
    # Of points under too large a number, only those of small order have known discrete logarithms.
    assert parts[("small A", "canonical A"), True] >= 4 and parts[("small R", "canonical R"), True] >= 2
    small = {bytes.fromhex(vector["key"]) for vector in VECTORS} & {*ENCODINGS}
    assert small == {*ENCODINGS} and len(small) == 14
    assert {bytes.fromhex(vector["signature"])[:32] for vector in VECTORS} >= small


def test_rfc_8032():
    """What the tables of the tools say is what another implementation makes of the private keys."""
    for name, private, message, wanted in rfc8032.VECTORS:
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private))
        assert key.sign(bytes.fromhex(message)).hex() == wanted, name
        ours = arithmetic.Secret.of(bytes.fromhex(private))
        assert ours.public() == key.public_key().public_bytes_raw()
        assert ours.sign(bytes.fromhex(message)).hex() == wanted
    listed = [vector for vector in VECTORS if vector["name"].startswith("RFC 8032")]
    assert [vector["signature"] for vector in listed] == [wanted for *_, wanted in rfc8032.VECTORS]


def test_points_of_small_order_are_all_there():
    assert all(point.times(8).same(arithmetic.O) for point in arithmetic.SMALL)
    assert len({point.encoded() for point in arithmetic.SMALL}) == 8
    assert {point.affine()[1] for point in arithmetic.SMALL} == ed25519.SMALL_ORDER
    assert not any(map(ed25519.is_point, ENCODINGS))
    listed = re.findall(r"^ +([0-9a-f]{64})$", (ROOT / "spec" / "aibit-1.md").read_text("utf-8"), re.MULTILINE)
    assert {int.from_bytes(bytes.fromhex(each), "little") for each in listed} == ed25519.SMALL_ORDER


def test_what_is_a_point_is_what_the_slow_arithmetic_says():
    found = Counter()
    for each in (secrets.token_bytes(32) for _ in range(100)):
        assert ed25519.is_point(each) == arithmetic.is_sound(each)
        found[ed25519.is_point(each)] += 1
    assert min(found.values()) > 10 and len(found) == 2


def test_keys_that_are_made_are_keys(tmp_path):
    for i in range(20):
        signing.new_key(tmp_path / f"{i}")
    assert len(signatures.public_keys(tmp_path)) == 20


def test_a_record_that_anybody_can_make_means_nothing(signed, keys, tmp_path):
    """OpenSSL alone verifies it: A is of order 2, so that every other R fits."""
    key, content = arithmetic.SMALL[4].encoded(), content_digest_of(signed)
    message = signatures.message(key, content)
    made = (arithmetic.halves(arithmetic.B.times(s).encoded(), s) for s in range(1000, 2000))
    record = Signature(key, next(each for each in made if arithmetic.equations(key, message, each)[0]))
    Ed25519PublicKey.from_public_bytes(key).verify(record.signature, message)  # it does
    assert not signatures.verifies(record, content)
    data = with_section(lambda _: signatures.section([record]))(signed)
    assert code_of(data) is None and code_of(data, keys / "a.pub") == "AIB-E606"
    with pytest.raises(SigningError, match="small order"):
        code_of(data, pem_of(key, tmp_path))
    with pytest.raises(FormatError, match="AIB-E605"):  # were it trusted all the same
        signatures.check([record], {key: "k.pub"}, lambda algorithm: content)
