"""Signatures: what they cover, byte by byte, and every way in which checking one fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519

import aibit_format as aibit
from aibit_format.cli import main
from aibit_format.container import checksums, signatures
from aibit_format.errors import AibitError, FormatError, MissingPackageError, SigningError, WriteError
from aibit_format.file import rewrite, signing
from aibit_format.file.reader import File
from tests.support.signed_files import (
    FRONT,
    GOOD,
    RECORD,
    STRONG,
    WHOLE,
    code_of,
    content_digest_of,
    front_digest_of,
    section_of,
    whole,
    with_section,
)
from tests.support.signed_files import keys as keys
from tests.support.signed_files import path as path
from tests.support.signed_files import signed as signed
from tests.support.signed_files import signed_whole as signed_whole
from tools.fixtures import file_builder
from tools.fixtures.file_builder import rebuilt

PEM = serialization.Encoding.PEM


# What is signed


def test_the_content_digest_is_what_the_specification_says(signed, signed_whole):
    for data in (GOOD, signed, signed_whole):
        assert File(data).content_digest() == content_digest_of(data)
    assert File(GOOD).content_digest() != File(signed).content_digest()


@pytest.mark.parametrize("jobs", [1, 3, None])
def test_a_digest_of_many_pieces_does_not_depend_on_threads(jobs, monkeypatch):
    monkeypatch.setattr(signatures, "_STRETCH", 2 << 20)
    data = os.urandom((5 << 20) + 12345)  # what the bytes mean is no matter
    unsigned = [(112, 128), ((1 << 20) - 10, (1 << 20) + 822)]  # the second one lies across two pieces
    wanted = bytearray(data)
    for low, high in unsigned:
        wanted[low:high] = bytes(high - low)
    pieces = [hashlib.sha256(wanted[i : i + (1 << 20)]).digest() for i in range(0, len(data), 1 << 20)]
    head = b"aibit content\0\0\0" + struct.pack("<Q", len(data))
    found = signatures.content_digest(lambda at, n: data[at : at + n], len(data), unsigned, jobs)
    assert found == hashlib.sha256(head + b"".join(pieces)).digest()


def test_the_fixture_is_signed_by_the_key_of_rfc_8032(fixtures):
    file = fixtures / "container" / "signed.aibit"
    with aibit.open(file, verify="full", signed_by=fixtures / "keys" / "test-only.pub") as f:
        assert f.signed_by == "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    twin = json.loads((fixtures / "container" / "signed.json").read_text())
    section = next(s for s in twin["sections"] if s["name"] == "signatures")
    assert [signatures.key_id(bytes.fromhex(r["key"])) for r in section["records"]] == [f.signed_by]


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_openssl_verifies_our_signature_and_makes_keys_that_we_use(path, keys, tmp_path):
    def openssl(*arguments):
        return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)

    (found,) = signing.sign_detached(path, keys / "a.pem")
    message, signature = tmp_path / "message", tmp_path / "signature"
    message.write_bytes(b"aibit signature\0" + found.key + content_digest_of(GOOD))
    signature.write_bytes(found.signature)
    verify = ("pkeyutl", "-verify", "-pubin", "-inkey", keys / "a.pub", "-rawin", "-in", message)
    assert openssl(*verify, "-sigfile", signature).returncode == 0
    message.write_bytes(message.read_bytes() + b"\0")
    assert openssl(*verify, "-sigfile", signature).returncode != 0

    assert openssl("genpkey", "-algorithm", "ed25519", "-out", tmp_path / "o.pem").returncode == 0
    assert openssl("pkey", "-in", tmp_path / "o.pem", "-pubout", "-out", tmp_path / "o.pub").returncode == 0
    signing.sign(path, tmp_path / "o.pem", tmp_path / "s.aibit")
    assert code_of(tmp_path / "s.aibit", tmp_path / "o.pub") is None


# It holds


def test_a_signed_copy_has_the_same_content_and_verifies_in_full(signed, keys):
    with File(signed, "full", keys / "a.pub") as file, File(GOOD) as plain:
        assert file.verified().signed_by == file.signed_by == file.signatures[0].key_id
        assert file.keys() == plain.keys() and list(file.metadata) == list(plain.metadata)
        assert np.array_equal(file.tables.leaves, plain.tables.leaves)
        for name in plain:
            assert all(np.array_equal(p, file.planes(name)[role]) for role, p in plain.planes(name).items())
        front = file.tables.front_matter()
        assert file.tables.header(front) + front == signed[: file_builder.front_end(signed)]


def test_a_detached_signature_is_written_whole_or_not_at_all(path, keys, tmp_path, monkeypatch):
    """The system may take a part of what is to be written; a disk may be full after that."""
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: real(file, bytes(data)[:10]))
        signing.sign_detached(path, keys / "a.pem", tmp_path / "short.sig")
    signing.sign_detached(path, keys / "a.pem", tmp_path / "whole.sig")
    assert (tmp_path / "short.sig").read_bytes() == (tmp_path / "whole.sig").read_bytes()
    taken: list[int] = []

    def full(file, data):
        if taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken.append(real(file, bytes(data)[:10]))
        return taken[0]

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(WriteError, match="No space left"):
        signing.sign_detached(path, keys / "a.pem", tmp_path / "full.sig")
    assert not (tmp_path / "full.sig").exists()


def test_signing_gives_the_same_bytes_each_time(path, keys, signed, tmp_path):
    signing.sign(path, keys / "a.pem", tmp_path / "s.aibit")
    assert (tmp_path / "s.aibit").read_bytes() == signed
    with pytest.raises(WriteError, match="exists"):
        signing.sign(path, keys / "a.pem", tmp_path / "s.aibit")
    signing.sign(path, keys / "b.pem", tmp_path / "s.aibit", overwrite=True)
    assert code_of(tmp_path / "s.aibit", keys / "b.pub") is None


def test_a_second_signature_leaves_the_first_valid(signed, keys, tmp_path):
    (tmp_path / "s.aibit").write_bytes(signed)
    found = signing.sign(tmp_path / "s.aibit", keys / "b.pem", tmp_path / "both.aibit")
    assert len(found) == 2 and found == sorted(found)
    for name in ("a.pub", "b.pub"):
        assert code_of(tmp_path / "both.aibit", keys / name) is None
    together = signing.sign(tmp_path / "s.aibit", [keys / "a.pem", keys / "b.pem"], tmp_path / "again.aibit")
    assert together == found and (tmp_path / "again.aibit").read_bytes() == (tmp_path / "both.aibit").read_bytes()
    # Beside the file, too: what is signed is the same for both.
    for name in ("s", "both"):
        signing.sign_detached(tmp_path / f"{name}.aibit", keys / "b.pem")
    assert (tmp_path / "s.aibit.sig").read_bytes() == (tmp_path / "both.aibit.sig").read_bytes()
    assert code_of(tmp_path / "s.aibit", keys / "b.pub") is None


def test_eight_signatures_fit_and_a_ninth_does_not(path, tmp_path):
    for i in range(9):
        signing.new_key(tmp_path / f"k{i}")
    private = [tmp_path / f"k{i}.pem" for i in range(9)]
    assert len(signing.sign(path, private[:8], tmp_path / "s.aibit")) == 8
    assert len(signing.sign_detached(path, private[:8])) == 8
    assert code_of(tmp_path / "s.aibit", tmp_path / "k7.pub") is code_of(path, tmp_path / "k7.pub") is None
    for output in (lambda: signing.sign(tmp_path / "s.aibit", private[8], tmp_path / "t.aibit"),
                   lambda: signing.sign_detached(path, private, tmp_path / "t.sig")):  # fmt: skip
        with pytest.raises(SigningError, match="9 signatures"):
            output()
    assert not {"t.aibit", "t.sig"} & set(os.listdir(tmp_path))


def test_other_ancillary_sections_stay_and_are_signed(keys, tmp_path):
    extra = rebuilt(lambda entries: [*entries, (0x8001, 0, 1, b"private")])(GOOD)
    (tmp_path / "m.aibit").write_bytes(extra)
    signing.sign(tmp_path / "m.aibit", keys / "a.pem", tmp_path / "s.aibit")
    data = (tmp_path / "s.aibit").read_bytes()
    assert [e.kind for e in File(data, signed_by=keys / "a.pub").tables.extra] == [10, 11, 12, 0x8001]
    assert code_of(file_builder.reseal(data.replace(b"private", b"Private")), keys / "a.pub") == "AIB-E605"


def test_a_file_converted_anew_is_not_signed(fixtures, keys, tmp_path):
    aibit.convert(fixtures / "models" / "tiny-llama", tmp_path / "m.aibit")
    signing.sign(tmp_path / "m.aibit", keys / "a.pem", tmp_path / "s.aibit")
    aibit.convert(tmp_path / "s.aibit", tmp_path / "n.aibit", tensors={"mlp": "bf16"})
    assert aibit.open(tmp_path / "n.aibit").signatures == []
    model = aibit.load_model(tmp_path / "s.aibit", signed_by=keys / "a.pub")
    assert type(model).__name__ == "LlamaForCausalLM"
    for load in (aibit.load_model, aibit.load):
        with pytest.raises(FormatError, match="AIB-E606"):
            load(tmp_path / "m.aibit", signed_by=keys / "a.pub")


# It does not


@pytest.mark.parametrize(("name", "kind"), [("signed", WHOLE), ("signed-front", FRONT)])
@pytest.mark.parametrize("leaves", [True, False])
def test_no_byte_of_a_signed_file_can_be_changed_unnoticed(name, kind, leaves, fixtures):
    """Each byte in turn, with root and leaves, or the root alone, made right again, as who forges the file would."""
    data = (fixtures / "container" / f"{name}.aibit").read_bytes()
    key = fixtures / "keys" / "test-only.pub"
    start, body = section_of(data, kind)
    codes = set()
    for at in range(len(data)):
        if 112 <= at < 128:
            continue  # the root is made right again
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        try:
            changed = file_builder.reseal(changed, leaves=leaves)
        except Exception:  # nothing to be made right: offsets that lead nowhere
            changed = bytes(changed)
        if changed == data:
            continue  # a leaf, made right again
        code = code_of(changed, key)
        assert code is not None, at
        codes.add(code)
        if start <= at < start + len(body):
            assert code in ("AIB-E604", "AIB-E605", "AIB-E606"), at
    assert codes >= {"AIB-E604", "AIB-E605", "AIB-E606"}


CHANGES = {
    "header": file_builder.put("header", minor=1),
    "compatible features": file_builder.put("header", compatible=1),
    "metadata": rebuilt(metadata=(1, file_builder.entry(b"a.b", 1, bytes(8)))),
    "tensor name": file_builder.renamed("tensor", 0, b"thirst"),
    "document name": file_builder.renamed("document", 0, b"aonfig.json"),
    "document": file_builder.flip(lambda data: int(file_builder.table(data, "document")["offset"][0]), leaves=True),
    "plane": file_builder.put_values("norm", "values", np.zeros(8, "<u2")),
    "last byte": file_builder.flip(-1, leaves=True),
}


@pytest.mark.parametrize("where", ["inside", "beside"])
@pytest.mark.parametrize("name", sorted(CHANGES))
def test_a_changed_file_that_is_valid_otherwise_is_refused(name, where, signed, keys, tmp_path):
    path = tmp_path / "m.aibit"
    path.write_bytes(signed if where == "inside" else GOOD)
    if where == "beside":
        signing.sign_detached(path, keys / "a.pem")
    assert code_of(path, keys / "a.pub") is None
    path.write_bytes(CHANGES[name](path.read_bytes()))
    assert code_of(path) is None, "valid, if nobody asks who signed it"  # but for its strong leaves
    with pytest.raises(FormatError, match=r"does not verify.*AIB-E605") as caught:
        File(path, signed_by=keys / "a.pub")
    assert str(path) in str(caught.value)


def test_what_is_read_is_what_was_signed(signed, keys):
    """Nothing of it is read on opening: each part is checked when it is used, and only that."""
    (plane,) = File(signed).info("norm").planes
    changed = file_builder.flip(plane.offset)(signed)
    with File(changed, signed_by=keys / "a.pub") as file:
        assert file.signed_by and dict(file.documents)
        for use in (file.planes, file.dequantize):
            with pytest.raises(FormatError, match=r"expected [0-9a-f]{64}, found [0-9a-f]{64}.*AIB-E602"):
                use("norm")
    with File(changed) as file:  # who demands nothing gets the damaged bytes, until a key is named
        file.planes("norm")
        file.check_signature(keys / "a.pub")
        with pytest.raises(FormatError, match="AIB-E602"):
            file.planes("norm")


def test_a_full_verification_looks_at_both_kinds_of_leaves_whoever_demands_a_signature(signed, keys, monkeypatch):
    computed = []

    def counted(name, real):
        def compute(region, **options):
            computed.append(name)
            return real(region, **options)

        return compute

    for name in ("leaves", "strong_leaves"):
        monkeypatch.setattr(checksums, name, counted(name, getattr(checksums, name)))
    with File(signed, signed_by=keys / "a.pub") as file:
        file.verify()
    assert sorted(computed) == ["leaves"] * 2 + ["strong_leaves"] * 2  # of documents and data


def test_a_wrong_strong_leaf_is_found_by_whoever_verifies_in_full(signed):
    wrong = with_section(lambda body: body[:-1] + bytes([body[-1] ^ 1]), count=2, kind=STRONG)(signed)
    with File(wrong) as file, pytest.raises(FormatError, match=r"expected [0-9a-f]{64}.*AIB-E602"):
        file.verify()


def test_signatures_over_the_whole_file_are_still_read_and_not_made_anew_inside(signed_whole, keys, tmp_path):
    path = tmp_path / "old.aibit"
    path.write_bytes(signed_whole)
    with File(path, "full", keys / "a.pub") as file:
        assert file.signed_by == file.signatures[0].key_id and not file.checks_reads
    with pytest.raises(SigningError, match=r"--detached.*aibit edit"):
        signing.sign(path, keys / "b.pem", tmp_path / "new.aibit")
    signing.sign_detached(path, keys / "b.pem")
    assert code_of(path, keys / "b.pub") is code_of(path, keys / "a.pub") is None
    rewrite.edit(path, tmp_path / "bare.aibit")
    signing.sign(tmp_path / "bare.aibit", keys / "b.pem", tmp_path / "new.aibit")
    assert code_of(tmp_path / "new.aibit", keys / "b.pub") is None
    assert code_of(tmp_path / "new.aibit", keys / "a.pub") == "AIB-E606"


def test_beside_a_file_with_strong_leaves_the_front_matter_is_signed(signed, keys, tmp_path):
    path = tmp_path / "s.aibit"
    path.write_bytes(signed)
    (found,) = signing.sign_detached(path, keys / "b.pem")
    assert found.algorithm == 2 and code_of(path, keys / "b.pub") is None
    path.write_bytes(file_builder.flip(-1)(signed))
    assert code_of(path) is None and code_of(path, keys / "b.pub") == "AIB-E602"
    # Without strong leaves nothing of the data would be checked: such a signature counts for nothing.
    path.write_bytes(GOOD)
    assert code_of(path, keys / "b.pub") == "AIB-E605"


def test_a_signature_covers_the_front_matter_of_its_file_alone(signed, keys):
    """Both digests are signed in the same form: one does not pass for the other."""
    public = next(iter(signatures.public_keys(keys / "a.pub")))
    (made,) = File(signed).signatures
    other = with_section(
        lambda _: struct.pack("<H6s32s64s", 1, bytes(6), public, made.signature).ljust(832, b"\0"), kind=WHOLE
    )(whole(GOOD, keys / "a.pem"))
    assert code_of(other) is None and code_of(other, keys / "a.pub") == "AIB-E605"
    assert front_digest_of(signed) != content_digest_of(signed)


def test_padding_is_signed_with_the_content_and_checked_in_full_else(signed, signed_whole, keys):
    """It belongs to no leaf between documents and data, and opening does not look at it."""
    for data, code in ((signed_whole, "AIB-E605"), (signed, None)):
        document = file_builder.table(data, "document")[-1]
        end = int(document["offset"] + document["length"]) + 64
        changed = file_builder.flip(end)(data)
        assert code_of(changed) is None and code_of(changed, keys / "a.pub") == code
        with pytest.raises(FormatError, match="AIB-E603"):
            File(changed, verify="full")


def test_a_key_that_did_not_sign_is_refused(signed, keys, path):
    assert code_of(signed, keys / "b.pub") == "AIB-E606"
    assert code_of(signed, [keys / "b.pub", keys / "a.pub"]) is None
    assert code_of(signed, keys) is code_of(signed, keys / "only-a") is None
    signing.sign_detached(path, keys / "a.pem")
    assert code_of(path, keys / "b.pub") == "AIB-E606"
    with pytest.raises(FormatError, match=r"expected one by ed25519:.*found ed25519:"):
        File(signed, signed_by=keys / "b.pub")


def test_an_unsigned_file_is_refused_where_a_signature_is_demanded(path, keys):
    for source in (path, GOOD):
        assert code_of(source, keys / "a.pub") == "AIB-E606"
    with pytest.raises(FormatError, match="found none"):
        File(path, signed_by=keys / "a.pub")


def test_a_signature_of_another_file_is_refused(signed, keys, tmp_path):
    path, other = tmp_path / "m.aibit", tmp_path / "other.aibit"
    path.write_bytes(GOOD)
    other.write_bytes(file_builder.put("header", minor=1)(GOOD))
    signing.sign_detached(other, keys / "a.pem")
    os.rename(f"{other}.sig", f"{path}.sig")
    assert code_of(path, keys / "a.pub") == "AIB-E605"
    signing.sign(other, keys / "a.pem", tmp_path / "s.aibit")
    start, body = section_of(signed)
    moved = signed[:start] + section_of((tmp_path / "s.aibit").read_bytes())[1] + signed[start + len(body) :]
    assert code_of(file_builder.reseal(moved), keys / "a.pub") == "AIB-E605"


def test_a_signature_by_another_key_under_the_name_of_ours_is_refused(signed, keys, tmp_path):
    """The record says a's key, the signature is b's."""
    (tmp_path / "s.aibit").write_bytes(signed)
    found = signing.sign(tmp_path / "s.aibit", keys / "b.pem", tmp_path / "both.aibit")
    a = next(s for s in found if s.key in signatures.public_keys(keys / "a.pub"))
    b = next(s for s in found if s != a)
    forged = with_section(lambda _: signatures.section([signatures.Signature(a.key, b.signature)]))(signed)
    assert code_of(forged) is None and code_of(forged, keys / "a.pub") == "AIB-E605"


def test_one_good_signature_of_several_is_enough_and_a_bad_one_alone_is_not(signed, keys):
    (a,) = File(signed).signatures
    (b,) = signatures.public_keys(keys / "b.pub")
    data = with_section(lambda _: signatures.section([a, signatures.Signature(b, a.signature)]))(signed)
    assert code_of(data, keys / "a.pub") is code_of(data, keys) is None
    assert code_of(data, keys / "b.pub") == "AIB-E605"


def test_a_detached_file_that_is_missing_or_damaged(path, keys):
    beside = path.parent / "m.aibit.sig"
    signing.sign_detached(path, keys / "a.pem")
    whole = beside.read_bytes()
    assert len(whole) == 16 + RECORD
    for damaged in (*(whole[:n] for n in range(len(whole))), whole + b"\0", b"\x88" + whole[1:], bytes(len(whole)),
                    whole[:12] + struct.pack("<I", 0) + whole[16:], whole[:12] + b"\xff" * 4 + whole[16:],
                    whole + whole[16:], whole.replace(b"\r\n", b"\n"), os.urandom(1 << 16)):  # fmt: skip
        beside.write_bytes(damaged)
        with pytest.raises(FormatError) as caught:
            File(path, signed_by=keys / "a.pub")
        assert caught.value.code == "AIB-E604" and str(beside) in str(caught.value)
    beside.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert code_of(path, keys / "a.pub") == "AIB-E605"
    beside.unlink()
    assert code_of(path, keys / "a.pub") == "AIB-E606"
    with File(path) as file:
        for other, code in (("nowhere.sig", "AIB-E803"), (".", "AIB-E801"), ("m.aibit", "AIB-E604")):
            with pytest.raises(FormatError) as caught:
                file.check_signature(keys / "a.pub", path.parent / other)
            assert caught.value.code == code
    os.mkfifo(beside)
    assert code_of(path, keys / "a.pub") == "AIB-E801"


def test_a_detached_signature_from_elsewhere(path, keys, tmp_path):
    signing.sign_detached(path, keys / "a.pem", tmp_path / "elsewhere")
    with File(path) as file:
        assert file.check_signature(keys / "a.pub", tmp_path / "elsewhere") == file.signed_by
    with pytest.raises(WriteError, match="exists"):
        signing.sign_detached(path, keys / "b.pem", tmp_path / "elsewhere")
    signing.sign_detached(path, keys / "b.pem", tmp_path / "elsewhere", overwrite=True)
    with File(path) as file, pytest.raises(FormatError, match="AIB-E606"):
        file.check_signature(keys / "a.pub", tmp_path / "elsewhere")
    with pytest.raises(WriteError):
        signing.sign_detached(path, keys / "b.pem", keys, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "m.aibit"]


def test_a_signature_that_is_wrong_stops_a_second_one(signed, keys, tmp_path):
    (tmp_path / "s.aibit").write_bytes(CHANGES["metadata"](signed))
    with pytest.raises(FormatError, match="AIB-E605"):
        signing.sign(tmp_path / "s.aibit", keys / "b.pem", tmp_path / "t.aibit")
    assert os.listdir(tmp_path) == ["s.aibit"]
    # Its signer may sign anew.
    signing.sign(tmp_path / "s.aibit", keys / "a.pem", tmp_path / "t.aibit")
    assert code_of(tmp_path / "t.aibit", keys / "a.pub") is None


def test_what_does_not_verify_in_full_is_not_signed(path, keys):
    path.write_bytes(file_builder.flip(-1)(GOOD))
    for sign in (lambda: signing.sign_detached(path, keys / "a.pem"),
                 lambda: signing.sign(path, keys / "a.pem", path.parent / "s.aibit")):  # fmt: skip
        with pytest.raises(FormatError, match="AIB-E602"):
            sign()
    assert os.listdir(path.parent) == ["m.aibit"]


# Keys


def test_new_keys_are_secret_and_replace_nothing(tmp_path):
    key = signing.new_key(tmp_path / "k")
    assert os.stat(tmp_path / "k.pem").st_mode & 0o777 == 0o600
    before = (tmp_path / "k.pem").read_bytes()
    for there in ("k.pem", "k.pub"):
        with pytest.raises(WriteError, match="exists"):
            signing.new_key(tmp_path / "k")
        os.rename(tmp_path / there, tmp_path / f"{there}.old")
        with pytest.raises(WriteError, match="exists"):
            signing.new_key(tmp_path / "k")
        os.rename(tmp_path / f"{there}.old", tmp_path / there)
    assert (tmp_path / "k.pem").read_bytes() == before and sorted(os.listdir(tmp_path)) == ["k.pem", "k.pub"]
    assert [signatures.key_id(k) for k in signatures.public_keys(tmp_path / "k.pub")] == [key]


def test_a_private_key_with_a_password(path, tmp_path):
    signing.new_key(tmp_path / "k", b"secret")
    assert b"ENCRYPTED" in (tmp_path / "k.pem").read_bytes()
    for password in (None, b"", b"wrong"):
        with pytest.raises(SigningError, match="password"):
            signing.sign_detached(path, tmp_path / "k.pem", password=password)
    signing.sign_detached(path, tmp_path / "k.pem", password=b"secret")
    assert code_of(path, tmp_path / "k.pub") is None


OTHER_KINDS = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "EC": lambda: ec.generate_private_key(ec.SECP256R1()),
    "Ed448": ed448.Ed448PrivateKey.generate,
    "X25519": x25519.X25519PrivateKey.generate,
}


@pytest.mark.parametrize("kind", sorted(OTHER_KINDS))
def test_a_key_of_another_kind_is_refused(kind, path, tmp_path):
    key, no = OTHER_KINDS[kind](), serialization.NoEncryption()
    private, public = tmp_path / "k.pem", tmp_path / "k.pub"
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, no))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(SigningError, match="of another kind"):
        signing.sign_detached(path, private)
    with pytest.raises(SigningError, match="of another kind"):
        File(path, signed_by=public)


def test_what_is_no_key_is_refused(path, keys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise").write_bytes(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    (tmp_path / "long").write_bytes(b" " * (1 << 17))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.pub").write_bytes(b"nothing")
    for source, why in ((keys / "a.pem", "it is a private one"), (tmp_path / "noise", "no public key"),
                        (tmp_path / "nowhere", "No such file"), (tmp_path / "empty", "no public key in"),
                        ([], "no public key in"), (tmp_path / "long", "longer"), (tmp_path / "bad", "x.pub"),
                        ([keys / "a.pub", tmp_path / "noise"], "noise")):  # fmt: skip
        with pytest.raises(SigningError, match=why):
            File(path, signed_by=source)
    for source, why in ((keys / "a.pub", "no private key"), (tmp_path / "nowhere", "No such file"), ([], "no key")):
        with pytest.raises(SigningError, match=why):
            signing.sign_detached(path, source)


# A policy


def test_the_environment_can_demand_a_signature(path, signed, keys, monkeypatch, tmp_path):
    monkeypatch.setenv("AIBIT_SIGNED_BY", str(keys / "only-a"))
    with pytest.raises(FormatError, match="AIB-E606"):
        aibit.open(path)
    with pytest.raises(FormatError, match="AIB-E606"):
        aibit.convert(path, tmp_path / "n.aibit")
    assert aibit.open(signed).signed_by
    assert main(["inspect", str(path)]) == 3
    monkeypatch.setenv("AIBIT_SIGNED_BY", os.pathsep.join([str(keys / "b.pub"), str(keys / "a.pub")]))
    assert aibit.open(signed).signed_by
    with pytest.raises(FormatError, match="AIB-E606"):
        aibit.open(signed, signed_by=keys / "b.pub")  # who names a key means that one
    for nothing in ("", str(tmp_path / "nowhere"), str(tmp_path)):
        monkeypatch.setenv("AIBIT_SIGNED_BY", nothing)
        with pytest.raises(SigningError):
            aibit.open(signed)


def test_without_cryptography_a_signed_file_opens_and_a_demanded_signature_is_no_matter_of_luck(fixtures, keys):
    program = f"""
import sys
sys.modules["cryptography"] = None
import aibit_format as aibit
from aibit_format.errors import MissingPackageError
path = {str(fixtures / "container" / "signed.aibit")!r}
assert aibit.open(path, verify="full").signed_by is None
try:
    aibit.open(path, signed_by={str(fixtures / "keys")!r})
except MissingPackageError as error:
    sys.exit(0 if "aibit-format[sign]" in str(error) else str(error))
sys.exit("nothing was raised")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert issubclass(MissingPackageError, AibitError)
