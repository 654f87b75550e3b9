"""Wrong uses of ``aibit merge`` and ``aibit split``."""

from __future__ import annotations

import pytest

from tests.support.command import run
from tests.support.sharded_models import model as model


@pytest.mark.parametrize("arguments", [
    ("split", "m.aibit"), ("split", "m.aibit", "-o", "s.aibit"), ("merge", "m.aibit"),
    ("split", "m.aibit", "-o", "s.aibit", "--max-shard-size", "5 apples"),
    ("split", "m.aibit", "-o", "s.aibit", "--max-shard-size", "0"),
])  # fmt: skip
def test_wrong_arguments(arguments, model, capsys, monkeypatch):
    monkeypatch.chdir(model)
    status, out, err = run(*arguments, capsys=capsys)
    assert status == 2 and "usage:" in err and not out
