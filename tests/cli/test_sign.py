"""The command ``aibit sign``."""

from __future__ import annotations

import json
import os

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.support.command import run
from tests.support.signed_files import keys as keys
from tests.support.signed_files import path as path


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
