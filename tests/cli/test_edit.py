"""The command ``aibit edit``."""

from __future__ import annotations

import json

import numpy as np
import pytest

import aibit_format as aibit
from tests.support.command import run
from tests.support.edited_models import model as model


def test_edit_on_the_command_line(model, tmp_path, capsys):
    out = tmp_path / "out.aibit"
    (tmp_path / "text").write_bytes(b"free\n")
    settings = {
        "a.int": ("7", 7), "a.negative": ("-1", -1), "a.float": ("0.5", 0.5), "a.bool": ("true", True),
        "a.text": ("two words = more", "two words = more"), "a.quoted": ('"7"', "7"), "a.empty": ("", ""),
        "a.ints": ("[1, 2]", [1, 2]), "a.floats": ("[1, 0.5]", [1.0, 0.5]), "a.texts": ('["x", "y"]', ["x", "y"]),
        "a.nan": ("NaN", "NaN"), "a.none": ("[]", []), "tool.version": ("1.5", "1.5"),
        "model.type": ('"quoted"', "quoted"),
        "quantization.outlier_threshold": ("5", 5.0),
    }  # fmt: skip
    arguments = [part for key, (text, _) in settings.items() for part in ("--set", f"{key}={text}")]
    arguments += ["--document", f"LICENSE={tmp_path / 'text'}", "--unset", "tool.libraries", "--json"]
    status, text, err = run("edit", model / "m.aibit", "-o", out, *arguments, capsys=capsys)
    assert status == 0 and not err
    assert json.loads(text) == {"files": [{"path": str(out), "bytes": out.stat().st_size}]}
    file = aibit.open(out)
    for key, (_, value) in settings.items():
        found = file.metadata[key]
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == value
        assert isinstance(found, np.ndarray) or type(found) is type(value)
    assert bytes(file.documents["LICENSE"]) == b"free\n" and "tool.libraries" not in file.metadata
    status, _, err = run("edit", model / "m.aibit", "-o", out, "--unset", "tool.name", capsys=capsys)
    assert status == 1 and "exists" in err
    assert run("edit", model / "m.aibit", "-o", out, "--unset", "tool.name", "--force", capsys=capsys)[0] == 0
    missing = ["--document", f"x={tmp_path / 'none'}"]
    assert run("edit", model / "m.aibit", "-o", tmp_path / "y", *missing, capsys=capsys)[0] == 1
    (tmp_path / "bad").write_bytes(b"\x89aibit\r\n\x1a\n")
    assert run("edit", tmp_path / "bad", "-o", tmp_path / "y", "--unset", "a.b", capsys=capsys)[0] == 3
    assert run("edit", tmp_path / "none", "-o", tmp_path / "y", "--unset", "a.b", capsys=capsys)[0] == 1
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("arguments", [
    [], ["--set", "a.b"], ["--set", "=1"], ["--set", "a.b={}"], ["--set", "a.b=null"], ["--set", "a.b=[1, true]"],
    ["--set", "a.b=[[1]]"], ["--document", "x"], ["--set", "a.b=1", "--set", "a.b=2"],
    ["--set", "a.b=1", "--unset", "a.b"],
])  # fmt: skip
def test_wrong_arguments_of_edit(arguments, model, tmp_path, capsys):
    status, _, err = run("edit", model / "m.aibit", "-o", tmp_path / "x", *arguments, capsys=capsys)
    assert status == 2 and "usage:" in err and not (tmp_path / "x").exists()
