"""Every model type of transformers that a small configuration can build; see docs/models.md."""

from __future__ import annotations

import os
import re

import pytest

from tools.models import __main__ as models

RIGHT = re.findall(r"^\| ([\w.-]+) \| `", models.PAGE.read_text().partition("## Neither")[0], re.MULTILINE)
PARTS = [RIGHT[i : i + 10] for i in range(0, len(RIGHT), 10)]


def test_at_least_220_types_are_right():
    text = models.PAGE.read_text()
    assert int(re.search(r"\| right \| (\d+) \|", text)[1]) >= 220
    named = re.findall(r"^\| ([\w.-]+) \|", text.partition("## Right")[2], re.MULTILINE)
    total = int(re.search(r"\| with a class of models \| (\d+) \|", text)[1])
    assert len(set(named) - {"type"}) == total  # each with its class, or with the reason


@pytest.mark.parametrize("model_type", ["llama", "t5", "mamba", "qwen2_moe"])
def test_some_types_are_right(model_type):
    (row,) = models.tried([model_type])
    assert models.right(row) or models.alone(row), row


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part[0]}-{part[-1]}")
def test_what_was_right_is_right(part):
    for row in models.all_tried(part, os.cpu_count() or 1):
        assert models.right(row) or models.alone(row), row
