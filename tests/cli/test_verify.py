"""The command ``aibit verify``."""

from __future__ import annotations

import json

from tests.support.command import run
from tests.support.command_models import model as model
from tests.support.paths import FIXTURES


def test_verify_says_what_it_checked_and_what_not(model, tmp_path, capsys):
    status, out, _ = run("verify", model / "m.aibit", capsys=capsys)
    assert status == 0 and "valid" in out and "not checked: where the file came from" in out
    damaged = bytearray((model / "m.aibit").read_bytes())
    damaged[-5] ^= 1
    (tmp_path / "d.aibit").write_bytes(damaged)
    status, out, _ = run("verify", tmp_path / "d.aibit", model / "m.aibit", "--json", capsys=capsys)
    first, second = json.loads(out)
    assert status == 3 and not first["valid"] and first["problems"][0]["code"] == "AIB-E602" and second["valid"]
    status, out, _ = run("verify", tmp_path / "d.aibit", "--level", "structure", capsys=capsys)
    assert status == 0 and "not checked: the checksums, padding and values of documents and planes" in out


def test_verify_lists_what_is_valid_in_another_form(capsys):
    good, newer = (FIXTURES / "container" / f"{name}.aibit" for name in ("hello", "newer-minor"))
    status, out, _ = run("verify", good, "--canonical", capsys=capsys)
    assert status == 0 and "canonical: nothing would have been written otherwise" in out
    status, out, _ = run("verify", newer, "--canonical", capsys=capsys)
    assert status == 1 and "valid" in out and "not as this program writes it: minor version 7" in out
    status, out, _ = run("verify", good, newer, "--canonical", "--json", capsys=capsys)
    first, second = json.loads(out)
    assert status == 1 and first["other_forms"] == [] and len(second["other_forms"]) == 3
    assert run("verify", newer, capsys=capsys)[0] == 0
    status, _, err = run("verify", good, "--canonical", "--level", "structure", capsys=capsys)
    assert status == 2 and "--level full" in err
