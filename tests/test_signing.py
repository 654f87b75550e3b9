"""Signatures: what they cover, byte by byte, and every way in which checking one fails."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys

import craft
import numpy as np
import pytest
from command import run
from craft import rebuilt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519

import aibit_format as aibit
from aibit_format.cli import main
from aibit_format.container import signatures
from aibit_format.errors import AibitError, FormatError, MissingPackageError, SigningError, WriteError
from aibit_format.file import signing
from aibit_format.file.reader import File

GOOD = craft.good()
RECORD, ROOM = 104, 8
PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with the keys ``a`` and ``b``, each a private and a public half, and ``only-a`` with a's public one."""
    folder = tmp_path_factory.mktemp("keys")
    for name in "ab":
        signing.new_key(folder / name)
    (folder / "only-a").mkdir()
    shutil.copy(folder / "a.pub", folder / "only-a")
    return folder


@pytest.fixture(scope="module")
def signed(keys, tmp_path_factory):
    """The bytes of the good file, signed inside by ``a``."""
    folder = tmp_path_factory.mktemp("signed")
    (folder / "m.aibit").write_bytes(GOOD)
    signing.sign(folder / "m.aibit", keys / "a.pem", folder / "s.aibit")
    return (folder / "s.aibit").read_bytes()


@pytest.fixture
def path(tmp_path):
    (tmp_path / "m.aibit").write_bytes(GOOD)
    return tmp_path / "m.aibit"


def code_of(source, signed_by=None):
    """The code that opening gets, or None."""
    try:
        File(source, signed_by=signed_by)
    except FormatError as error:
        return error.code
    return None


def with_section(change, flags=0, count=ROOM):
    """The section of signatures with another body, all else made right again."""
    return rebuilt(lambda entries: [(k, flags, count, change(c)) if k == 8 else (k, f, n, c) for k, f, n, c in entries])


def section_of(data):
    """(offset, body) of the signatures, by the section table alone."""
    for row in craft.table(data, "section"):
        if row["kind"] == 8:
            return int(row["offset"]), bytes(data[int(row["offset"]) :][: int(row["length"])])
    return None


# What is signed


def content_digest_of(data):
    """The definition of the specification, once more."""
    data = bytearray(data)
    data[112:128] = bytes(16)
    if found := section_of(data):
        data[found[0] : found[0] + len(found[1])] = bytes(len(found[1]))
    pieces = [hashlib.sha256(data[i : i + (1 << 20)]).digest() for i in range(0, len(data), 1 << 20)]
    return hashlib.sha256(b"aibit content\0\0\0" + struct.pack("<Q", len(data)) + b"".join(pieces)).digest()


def test_the_content_digest_is_what_the_specification_says(signed):
    for data in (GOOD, signed):
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


def test_the_signed_message_and_the_record_are_what_the_specification_says(signed, keys):
    public = serialization.load_pem_public_key((keys / "a.pub").read_bytes())
    raw = public.public_bytes_raw()
    _, body = section_of(signed)
    assert len(body) == ROOM * RECORD and not any(body[RECORD:])
    algorithm, reserved, key, signature = struct.unpack("<H6s32s64s", body[:RECORD])
    assert (algorithm, reserved, key) == (1, bytes(6), raw)
    public.verify(signature, b"aibit signature\0" + raw + content_digest_of(signed))


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
        assert file.tables.header(front) + front == signed[: craft.front_end(signed)]


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
    assert [e.kind for e in File(data, signed_by=keys / "a.pub").tables.extra] == [8, 0x8001]
    assert code_of(craft.reseal(data.replace(b"private", b"Private")), keys / "a.pub") == "AIB-E605"


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


def test_no_byte_of_a_signed_file_can_be_changed_unnoticed(fixtures):
    """Each byte in turn, with root and leaves made right again, as one would who forges the file."""
    data = (fixtures / "container" / "signed.aibit").read_bytes()
    key = fixtures / "keys" / "test-only.pub"
    start, body = section_of(data)
    codes = set()
    for at in range(len(data)):
        if 112 <= at < 128:
            continue  # the root is made right again
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        try:
            changed = craft.reseal(changed, leaves=True)
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
    "header": craft.put("header", minor=1),
    "compatible features": craft.put("header", compatible=1),
    "metadata": rebuilt(metadata=(1, craft.entry(b"a.b", 1, bytes(8)))),
    "tensor name": craft.renamed("tensor", 0, b"thirst"),
    "document name": craft.renamed("document", 0, b"aonfig.json"),
    "document": craft.flip(lambda data: int(craft.table(data, "document")["offset"][0]), leaves=True),
    "plane": craft.put_values("norm", "values", np.zeros(8, "<u2")),
    "last byte": craft.flip(-1, leaves=True),
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
    assert code_of(path) is None, "valid, if nobody asks who signed it"
    with pytest.raises(FormatError, match=r"does not verify.*AIB-E605") as caught:
        File(path, signed_by=keys / "a.pub")
    assert str(path) in str(caught.value)


def test_padding_is_signed(signed, keys):
    """It belongs to no leaf between documents and data, and opening does not look at it."""
    document = craft.table(signed, "document")[-1]
    end = int(document["offset"] + document["length"]) + 64
    assert code_of(craft.flip(end)(signed)) is None
    assert code_of(craft.flip(end)(signed), keys / "a.pub") == "AIB-E605"


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
    other.write_bytes(craft.put("header", minor=1)(GOOD))
    signing.sign_detached(other, keys / "a.pem")
    os.rename(f"{other}.sig", f"{path}.sig")
    assert code_of(path, keys / "a.pub") == "AIB-E605"
    signing.sign(other, keys / "a.pem", tmp_path / "s.aibit")
    start, body = section_of(signed)
    moved = signed[:start] + section_of((tmp_path / "s.aibit").read_bytes())[1] + signed[start + len(body) :]
    assert code_of(craft.reseal(moved), keys / "a.pub") == "AIB-E605"


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


def record(algorithm=1, reserved=bytes(6), key=bytes(32), signature=b"s" * 64):
    return struct.pack("<H6s32s64s", algorithm, reserved, key, signature)


FIRST, SECOND = record(key=b"\1" * 32), record(key=b"\2" * 32)
# Bodies of the section, before the zeros that fill it.
SHAPES = {
    "none in use": b"",
    "algorithm 2": record(algorithm=2),
    "algorithm 65535": record(algorithm=65535),
    "second algorithm": FIRST + record(algorithm=2, key=b"\2" * 32),
    "reserved": record(reserved=b"\0\0\0\0\0\1"),
    "a gap": bytes(RECORD) + FIRST,
    "a gap between": FIRST + bytes(RECORD) + SECOND,
    "bytes in one not in use": FIRST + record(algorithm=0),
    "last byte": FIRST.ljust(ROOM * RECORD - 1, b"\0") + b"\1",
    "out of order": SECOND + FIRST,
    "the same key twice": FIRST + record(key=b"\1" * 32, signature=b"t" * 64),
}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_section_of_another_shape_is_refused_by_whoever_opens_it(name, signed, path, keys):
    bad = with_section(lambda _: SHAPES[name].ljust(ROOM * RECORD, b"\0"))(signed)
    assert code_of(bad) == code_of(bad, keys / "a.pub") == "AIB-E604"
    path.write_bytes(bad)
    assert code_of(path) == "AIB-E604"
    if name not in ("none in use", "last byte"):  # beside a file, with just the records there are
        records = SHAPES[name]
        head = b"\x89aibsig1\r\n\x1a\n" + struct.pack("<I", len(records) // RECORD)
        path.write_bytes(GOOD)
        (path.parent / "m.aibit.sig").write_bytes(head + records)
        assert code_of(path) is None and code_of(path, keys / "a.pub") == "AIB-E604"


@pytest.mark.parametrize("length", [0, 1, RECORD, ROOM * RECORD - 1, ROOM * RECORD + 1, (ROOM + 1) * RECORD])
def test_a_section_of_another_length_or_count_is_refused(length, signed):
    assert code_of(with_section(lambda body: (body + bytes(RECORD))[:length])(signed)) == "AIB-E604"
    if length == RECORD:
        assert code_of(with_section(lambda body: body[:length], count=1)(signed)) == "AIB-E604"
    if length == (ROOM + 1) * RECORD:
        assert code_of(with_section(lambda body: body.ljust(length, b"\0"), count=ROOM + 1)(signed)) == "AIB-E604"


@pytest.mark.parametrize("count", [0, 1, 7, 9, (1 << 32) - 1])
def test_a_section_that_counts_otherwise_is_refused(count, signed):
    assert code_of(with_section(bytes, count=count)(signed)) == "AIB-E604"


def test_a_critical_section_of_signatures_is_refused(signed):
    """By readers that know the kind, as by those that do not."""
    assert code_of(with_section(bytes, flags=1)(signed)) == "AIB-E202"


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
    path.write_bytes(craft.flip(-1)(GOOD))
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


# The command line


def test_sign_and_verify(path, tmp_path, capsys):
    status, out, _ = run("sign", "--new-key", tmp_path / "k", capsys=capsys)
    assert status == 0 and "keep it secret" in out and (tmp_path / "k.pub").exists()
    status, out, _ = run("sign", path, "--key", tmp_path / "k.pem", "-o", tmp_path / "s.aibit", capsys=capsys)
    assert status == 0 and "signed by ed25519:" in out
    status, out, _ = run("verify", tmp_path / "s.aibit", "--key", tmp_path / "k.pub", capsys=capsys)
    assert status == 0 and "the signature by ed25519:" in out and "not checked" not in out
    status, out, _ = run("verify", tmp_path / "s.aibit", capsys=capsys)
    assert status == 0 and "claims to be a signature by ed25519:" in out
    status, out, _ = run("inspect", tmp_path / "s.aibit", capsys=capsys)
    assert status == 0 and "not checked: aibit verify --key" in out
    status, out, _ = run("verify", path, "--key", tmp_path / "k.pub", capsys=capsys)
    assert status == 3 and "AIB-E606" in out
    status, out, _ = run("sign", path, "--key", tmp_path / "k.pem", "--detached", "--json", capsys=capsys)
    assert status == 0 and json.loads(out)["output"] == f"{path}.sig"
    status, out, _ = run("verify", path, "--key", tmp_path / "k.pub", "--json", capsys=capsys)
    assert status == 0 and json.loads(out)[0]["signed_by"].startswith("ed25519:")
    os.rename(f"{path}.sig", tmp_path / "moved")
    status, *_ = run("verify", path, "--key", tmp_path / "k.pub", "--signature", tmp_path / "moved", capsys=capsys)
    assert status == 0
    assert run("run", path, "x", "--key", tmp_path / "k.pub", capsys=capsys)[0] == 3


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["sign"], 2, "say which FILE"),
        (["sign", "{file}", "--new-key", "x"], 2, "say which FILE"),
        (["sign", "{file}"], 2, "--key PEM"),
        (["sign", "{file}", "--key", "{a}.pem"], 2, "-o OUT"),
        (["sign", "{file}", "--key", "{a}.pub", "--detached"], 1, "AIB-E906"),
        (["sign", "nowhere", "--key", "{a}.pem", "--detached"], 1, "No such file"),
        (["sign", "{file}", "--key", "{a}.pem", "-o", "{file}"], 1, "exists"),
        (["verify", "{file}", "--signature", "x"], 2, "says nothing without --key"),
        (["verify", "{file}", "--key", "nowhere"], 1, "AIB-E906"),
    ],
)
def test_what_goes_wrong_is_said(arguments, status, message, path, keys, capsys):
    arguments = [argument.format(file=path, a=keys / "a") for argument in arguments]
    found, out, err = run(*arguments, capsys=capsys)
    assert found == status and message in out + err and "Traceback" not in err


def test_it_signs_a_key_asked_a_password_for(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("aibit_format.cli.sign.getpass", lambda prompt: "secret")
    assert run("sign", "--new-key", tmp_path / "k", "--password", capsys=capsys)[0] == 0
    arguments = ("sign", "--detached", "--key", tmp_path / "k.pem", path)
    assert run(*arguments, capsys=capsys)[0] == 1
    assert run(*arguments, "--password", capsys=capsys)[0] == 0
    assert isinstance(
        serialization.load_pem_private_key((tmp_path / "k.pem").read_bytes(), b"secret"), ed25519.Ed25519PrivateKey
    )
