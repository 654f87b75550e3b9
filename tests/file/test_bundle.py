"""Bundles of OpenSSF Model Signing: their bytes, by hashlib and cryptography, and what the real verifier says."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

import aibit_format as aibit
from aibit_format.errors import FormatError, LoadError, SigningError, WriteError
from aibit_format.file import bundle
from tests.support.command import run
from tools.fixtures import file_builder

CURVES = {
    "P-256": (ec.SECP256R1(), hashes.SHA256()), "P-384": (ec.SECP384R1(), hashes.SHA384()),
    "P-521": (ec.SECP521R1(), hashes.SHA512()),
}  # fmt: skip
PEM = serialization.Encoding.PEM
PKCS8, SEC1 = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL
SHARDS = [f"sharded-0000{i}-of-00003.aibit" for i in (1, 2, 3)]
PACKAGES = ["model-signing>=1.1,<2", "pyOpenSSL"]  # 1.1.1 imports the second, and does not declare it


def save(key, folder, name="k", form=PKCS8, password=None):
    """Write the two halves of a key; returns the path of the private one."""
    cipher = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    (folder / f"{name}.pem").write_bytes(key.private_bytes(PEM, form, cipher))
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem"


@pytest.fixture
def path(fixtures, tmp_path):
    """A file of one, in a folder of its own."""
    (tmp_path / "one").mkdir()
    return shutil.copy(fixtures / "container" / "hello.aibit", tmp_path / "one" / "hello.aibit")


@pytest.fixture
def first(fixtures, tmp_path):
    """The first of three shards, which have a folder of their own."""
    (tmp_path / "several").mkdir()
    for name in SHARDS:
        shutil.copy(fixtures / "container" / name, tmp_path / "several" / name)
    return tmp_path / "several" / SHARDS[0]


@pytest.fixture
def key(tmp_path):
    return save(ec.generate_private_key(ec.SECP256R1()), tmp_path)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def opened(path, public, hashed):
    """The statement in a bundle, after everything around it was checked."""
    data = json.loads(path.read_text("ascii"))
    pem = public.public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert data.keys() == {"mediaType", "verificationMaterial", "dsseEnvelope"}
    assert data["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    hint = hashlib.sha256(pem).hexdigest()
    assert data["verificationMaterial"] == {"publicKey": {"hint": hint}, "tlogEntries": []}
    envelope = data["dsseEnvelope"]
    assert envelope.keys() == {"payload", "payloadType", "signatures"}
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    payload = base64.b64decode(envelope["payload"], validate=True)
    (signature,) = envelope["signatures"]
    assert signature.keys() == {"sig", "keyid"} and signature["keyid"] == ""
    signed = f"DSSEv1 28 application/vnd.in-toto+json {len(payload)} ".encode() + payload
    public.verify(base64.b64decode(signature["sig"], validate=True), signed, ec.ECDSA(hashed))
    with pytest.raises(InvalidSignature):
        public.verify(base64.b64decode(signature["sig"]), payload, ec.ECDSA(hashed))
    return json.loads(payload)


def statement(name, resources, ignored=None):
    """What is signed, by the page of the package's class ``Payload``."""
    whole = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in resources)).hexdigest()
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": whole}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": serialization | ({"ignore_paths": [ignored]} if ignored else {}),
            "resources": [{"name": n, "algorithm": "sha256", "digest": digest} for n, digest in resources],
        },
    }


@pytest.mark.parametrize("curve", sorted(CURVES))
def test_a_bundle_of_one_file(curve, path, tmp_path):
    kind, hashed = CURVES[curve]
    private = ec.generate_private_key(kind)
    before = path.read_bytes()
    made = aibit.sign_bundle(path, save(private, tmp_path))
    assert made.path == f"{path}.model.sig" and made.model == str(path)
    found = opened(path.parent / "hello.aibit.model.sig", private.public_key(), hashed)
    assert found == statement("hello.aibit", [(".", sha256(path))])
    assert path.read_bytes() == before and sorted(os.listdir(path.parent)) == ["hello.aibit", "hello.aibit.model.sig"]


def test_a_bundle_of_all_shards(first, tmp_path, monkeypatch):
    private = ec.generate_private_key(ec.SECP256R1())
    key, wanted = save(private, tmp_path), [(name, sha256(first.parent / name)) for name in SHARDS]
    made = aibit.sign_bundle(first, key)
    assert made.model == str(first.parent) and dict(made.digests) == dict(wanted)
    beside = f"{SHARDS[0]}.model.sig"
    found = opened(first.parent / beside, private.public_key(), hashes.SHA256())
    assert found == statement("several", wanted, ignored=beside)  # so that it is not looked for in itself
    aibit.sign_bundle(first, key, tmp_path / "elsewhere")
    assert opened(tmp_path / "elsewhere", private.public_key(), hashes.SHA256()) == statement("several", wanted)
    monkeypatch.chdir(first.parent)
    assert aibit.sign_bundle(first.name, key, "here").model == "."
    assert opened(first.parent / "here", private.public_key(), hashes.SHA256())["subject"][0]["name"] == "several"


def test_a_set_of_one_shard_is_a_file(path, key, tmp_path):
    (shard,) = aibit.split(path, tmp_path / "s.aibit", "1GB")
    made = aibit.sign_bundle(shard, key)
    assert made.model == shard and list(made.digests) == ["."]


def test_a_file_is_hashed_in_pieces(path, key, monkeypatch):
    monkeypatch.setattr(bundle, "_STRETCH", 1000)  # of 1296 bytes
    assert dict(aibit.sign_bundle(path, key).digests) == {".": sha256(path)}


def test_what_does_not_verify_in_full_is_not_signed(path, first, key):
    path.write_bytes(file_builder.flip(-1)(path.read_bytes()))
    with pytest.raises(FormatError, match="AIB-E602"):
        aibit.sign_bundle(path, key)
    last = first.parent / SHARDS[2]
    last.write_bytes(file_builder.flip(-1)(last.read_bytes()))
    with pytest.raises(FormatError, match=r"00003-of-00003.*AIB-E602"):
        aibit.sign_bundle(first, key)
    with pytest.raises(LoadError, match="opened by the first"):
        aibit.sign_bundle(first.parent / SHARDS[1], key)
    last.unlink()
    with pytest.raises(FormatError, match="AIB-E607"):
        aibit.sign_bundle(first, key)
    assert os.listdir(path.parent) == ["hello.aibit"] and sorted(os.listdir(first.parent)) == SHARDS[:2]


def test_nothing_is_replaced_unasked_and_the_model_never(path, first, key):
    aibit.sign_bundle(path, key)
    with pytest.raises(WriteError, match="exists"):
        aibit.sign_bundle(path, key)
    aibit.sign_bundle(path, key, overwrite=True)
    for name in SHARDS:
        before = (first.parent / name).read_bytes()
        with pytest.raises(WriteError, match="is what is being read"):
            aibit.sign_bundle(first, key, first.parent / name, overwrite=True)
        assert (first.parent / name).read_bytes() == before
    with pytest.raises(SigningError, match="download"):
        aibit.sign_bundle("https://localhost/m.aibit", key, first.parent / "out")
    assert sorted(os.listdir(first.parent)) == SHARDS


@pytest.mark.parametrize("form", [PKCS8, SEC1], ids=["PKCS8", "SEC1"])
def test_a_key_with_a_password(form, path, tmp_path):
    key = save(ec.generate_private_key(ec.SECP256R1()), tmp_path, form=form, password=b"secret")
    for password in (None, b"wrong"):
        with pytest.raises(SigningError, match="password"):
            aibit.sign_bundle(path, key, password=password)
    aibit.sign_bundle(path, key, password=b"secret")


OTHER_KINDS = {
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}


@pytest.mark.parametrize("kind", sorted(OTHER_KINDS))
def test_a_key_of_another_kind_is_refused_with_what_to_do(kind, path, tmp_path):
    with pytest.raises(SigningError, match=r"P-256, P-384 or P-521.*openssl genpkey .*NAME\.pub"):
        aibit.sign_bundle(path, save(OTHER_KINDS[kind](), tmp_path))
    assert os.listdir(path.parent) == ["hello.aibit"]


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_a_key_made_as_the_message_says_fits(path, tmp_path):
    with pytest.raises(SigningError) as caught:
        aibit.sign_bundle(path, save(ed25519.Ed25519PrivateKey.generate(), tmp_path))
    make, publish = str(caught.value).partition("openssl ")[2].removesuffix(" [AIB-E906]").split("; openssl ")
    for command in (make, publish):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    public = serialization.load_pem_public_key((tmp_path / "NAME.pub").read_bytes())
    aibit.sign_bundle(path, tmp_path / "NAME.pem")
    opened(path.parent / "hello.aibit.model.sig", public, hashes.SHA256())


def test_the_command(path, first, key, tmp_path, capsys):
    status, out, _ = run("sign", path, "--bundle", "--key", key, capsys=capsys)
    assert status == 0 and out.rstrip().endswith(
        f"model_signing verify key {path} --signature {path}.model.sig --public_key NAME.pub"
    )
    status, _, err = run("sign", path, "--bundle", "--key", key, capsys=capsys)
    assert status == 1 and "--force" in err
    status, out, _ = run("sign", first, "--bundle", "--key", key, "-o", tmp_path / "b", "--json", capsys=capsys)
    found = json.loads(out)
    assert status == 0 and found["output"] == str(tmp_path / "b") and list(found["digests"]) == SHARDS
    assert found["key_sha256"] == sha256(tmp_path / "k.pub") and found["model"] == str(first.parent)
    status, out, _ = run("sign", first, "--bundle", "--key", key, "-o", tmp_path / "b", "--force", capsys=capsys)
    assert status == 0 and out.rstrip().endswith("--ignore_unsigned_files")
    for wrong in (["--key", key, "--key", key], ["--key", key, "--detached"], []):
        assert run("sign", path, "--bundle", *wrong, capsys=capsys)[0] == 2


# The real verifier


@pytest.fixture(scope="session")
def model_signing(tmp_path_factory):
    """A function that runs Python where ``model-signing`` is installed, and nothing of this package."""
    folder = tmp_path_factory.mktemp("model-signing")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def start(*arguments):
        command = [folder / "bin" / "python", *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)

    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    installed = start("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES)
    if installed.returncode and not os.environ.get("CI"):
        pytest.skip(f"model-signing cannot be installed, so it is not tried here\n{installed.stderr[-500:]}")
    assert installed.returncode == 0, installed.stderr
    return start


@pytest.mark.slow
@pytest.mark.parametrize("curve", sorted(CURVES))
def test_model_signing_verifies_a_file_until_a_byte_of_it_changes(curve, model_signing, path, tmp_path):
    def verify(public="k.pub"):
        options = ("--signature", f"{path}.model.sig", "--public_key", tmp_path / public)
        return model_signing("-m", "model_signing", "verify", "key", path, *options)

    private = ec.generate_private_key(CURVES[curve][0])
    aibit.sign_bundle(path, save(private, tmp_path))
    assert (done := verify()).returncode == 0 and "Verification succeeded" in done.stdout, done.stderr
    save(ec.generate_private_key(CURVES[curve][0]), tmp_path, "other")
    assert verify("other.pub").returncode == 1
    whole = path.read_bytes()
    for at in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert (done := verify()).returncode == 1 and "Hash mismatch" in done.stderr
    path.write_bytes(whole)
    assert verify().returncode == 0


@pytest.mark.slow
def test_model_signing_verifies_all_shards_until_a_byte_of_one_changes(model_signing, first, key, tmp_path):
    folder, beside = first.parent, f"{first}.model.sig"

    def verify(*options):
        given = ("--signature", beside, "--public_key", tmp_path / "k.pub", *options)
        return model_signing("-m", "model_signing", "verify", "key", folder, *given)

    aibit.sign_bundle(first, key)
    assert (done := verify()).returncode == 0, done.stderr
    program = """
import sys
from model_signing import verifying
verifying.Config().use_elliptic_key_verifier(public_key=sys.argv[1]).verify(*sys.argv[2:])
"""
    done = model_signing("-c", program, tmp_path / "k.pub", folder, beside)
    assert done.returncode == 0, done.stderr
    (folder / "README.md").write_text("More.\n")
    assert (done := verify()).returncode == 1 and "Extra files" in done.stderr
    assert (done := verify("--ignore_unsigned_files")).returncode == 0, done.stderr
    last = folder / SHARDS[2]
    whole = last.read_bytes()
    last.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = verify("--ignore_unsigned_files")
    assert done.returncode == 1 and "Hash mismatch" in done.stderr and SHARDS[2] in done.stderr
    last.unlink()
    assert verify("--ignore_unsigned_files").returncode == 1
    last.write_bytes(whole)
    assert verify("--ignore_unsigned_files").returncode == 0
