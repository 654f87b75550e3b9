"""The command ``aibit extract``."""

from __future__ import annotations

import numpy as np

from tests.support.command import run
from tests.support.command_models import model as model


def test_extract_gives_documents_and_tensors_back(model, tmp_path, capsys):
    status, _, _ = run(
        "extract", model / "m.aibit", "-o", tmp_path, "--tensor", "model.norm.weight", capsys=capsys
    )
    assert status == 0
    assert np.load(tmp_path / "model.norm.weight.npy").shape == (64,)
    status, _, _ = run("extract", model / "m.aibit", "-o", tmp_path, capsys=capsys)
    assert status == 0
    assert (tmp_path / "config.json").read_bytes() == (model / "hf" / "config.json").read_bytes()
    status, _, err = run("extract", model / "m.aibit", "-o", tmp_path, capsys=capsys)
    assert status == 1 and "exists" in err
