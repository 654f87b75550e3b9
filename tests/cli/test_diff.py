"""The command ``aibit diff``."""

from __future__ import annotations

import json

from tests.support.command import run
from tests.support.edited_models import model as model


def test_diff_on_the_command_line(model, tmp_path, capsys):
    first = sorted(model.glob("s-*.aibit"))[0]
    status, out, err = run("diff", model / "m.aibit", first, capsys=capsys)
    assert (status, out, err) == (0, "the same metadata, documents and tensors\n", "")
    status, out, _ = run("diff", model / "m.aibit", model / "nf4.aibit", capsys=capsys)
    assert status == 1 and "scheme model.layers.0.mlp.up_proj.weight: int8 -> nf4" in out
    assert "relative rms error 0.1" in out and "metadata quantization.recipe: " in out
    status, out, _ = run("diff", model / "m.aibit", model / "nf4.aibit", "--json", capsys=capsys)
    report = json.loads(out)
    assert status == 1 and report["same"] is False
    assert {d["kind"] for d in report["differences"]} == {"metadata", "scheme", "values"}
    status, out, _ = run("diff", first, first, "--json", capsys=capsys)
    assert status == 0 and json.loads(out) == {"same": True, "differences": []}
    (tmp_path / "bad").write_bytes(b"\x89aibit\r\n\x1a\n")
    assert run("diff", first, tmp_path / "bad", capsys=capsys)[0] == 3
    assert run("diff", first, tmp_path / "none", capsys=capsys)[0] == 1
    assert run("diff", first, capsys=capsys)[0] == 2
