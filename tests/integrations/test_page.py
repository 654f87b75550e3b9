"""What the page about other libraries says, runs."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

import aibit_format as aibit

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text("utf-8")
BLOCKS = re.findall(r"^## (.+?)$\n(?:(?!^## ).*\n)*?```python\n(.+?)```", PAGE, re.MULTILINE | re.DOTALL)


def test_there_are_some():
    assert [title for title, _ in BLOCKS] == ["transformers"]


@pytest.mark.parametrize(("title", "block"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_it_runs(title, block, tmp_path):
    aibit.convert(ROOT / "fixtures" / "models" / "tiny-llama", tmp_path / "m.aibit")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("If the file") == 2, done.stdout
