"""Model cards: what they say, and that nothing in a file can break out of one."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import ModelCard

import aibit_format as aibit
from aibit_format.integrations.card import MARK, card
from tests.support import architectures

CARD = """---
license: llama3.2
language:
- en
- de
tags:
- chat
pipeline_tag: text-generation
base_model: meta/original
---
# The original
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    architectures.save("llama-untied", folder / "hf", torch.bfloat16)
    (folder / "hf" / "README.md").write_text(CARD)
    aibit.convert(folder / "hf", folder / "m.aibit", scheme="nf4")
    metadata = {"quality.kl_mean": 0.0123456789, "quality.tokens": 2048, "source.repository": "meta/derived"}
    aibit.edit(folder / "m.aibit", folder / "e.aibit", metadata=metadata)
    with aibit.open(folder / "e.aibit") as opened:
        yield opened


def test_a_hub_reads_what_it_says(file):
    data = ModelCard(card(file)).data
    assert (data.license, data.language, data.pipeline_tag) == ("llama3.2", ["en", "de"], "text-generation")
    assert data.base_model == "meta/derived" and data["base_model_relation"] == "quantized"
    assert data.library_name == "aibit" and data.tags == ["aibit", "bf16", "nf4"]
    data = ModelCard(card(file, base_model="a/b", license="mit")).data
    assert (data.base_model, data.license) == ("a/b", "mit")


def test_people_read_what_the_file_knows(file):
    text = card(file)
    assert MARK in text and file.root in text and "`0.0123457`" in text and f"`{file.size}`" in text
    assert "| nf4 | `14 tensors, 41,472 bytes` |" in text
    assert text.count("*=nf4") == 1


def test_without_a_card_of_the_original(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", torch.bfloat16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as file:
        data = ModelCard(card(file)).data
    assert data.license is None and data.base_model is None and data.pipeline_tag == "text-generation"
    assert "base_model_relation" not in data.to_dict()


@pytest.mark.parametrize("text", ["a`b|c\n\n# Heading", "<script>", "x\u202ey", "---\nlicense: mit\n---"])
def test_no_value_ends_its_cell(file, text, tmp_path):
    aibit.edit(file.path, tmp_path / "m.aibit", metadata={"source.kind": text, "transform.applied": text})
    with aibit.open(tmp_path / "m.aibit") as changed:
        found = card(changed, base_model="o/n")
    assert "# Heading" not in found.splitlines() and "<script>" not in found and "\u202e" not in found
    assert ModelCard(found).data.license == "llama3.2"
    assert len(found.splitlines()) == len(card(file).splitlines()) + 1  # the row of the transforms
