"""``aibit card``: prints a model card, or writes it."""

from __future__ import annotations

import json

import pytest
import torch

import aibit_format as aibit
from aibit_format.cli import main
from tests.support import architectures


@pytest.fixture
def model(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", torch.bfloat16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    return str(tmp_path / "m.aibit")


def test_it_is_printed_or_written(model, tmp_path, capsys):
    target = tmp_path / "README.md"
    assert main(["card", model, "--license", "mit", "--base-model", "o/n"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("---\nlibrary_name: aibit\n") and 'license: "mit"' in shown and 'base_model: "o/n"' in shown
    assert main(["card", model, "--license", "mit", "--base-model", "o/n", "-o", str(target)]) == 0
    assert target.read_text() == shown and "README.md" in capsys.readouterr().out
    assert main(["card", model, "-o", str(target)]) == 1 and "exists" in capsys.readouterr().err
    assert main(["card", model, "-o", str(target), "--force"]) == 0 and target.read_text() != shown
    capsys.readouterr()
    assert main(["card", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["card"] == target.read_text()
