"""What a model says of its tensors."""

from __future__ import annotations

import warnings

import aibit_format as aibit
from tests.support import architectures

warnings.filterwarnings("ignore", message="MatMul8bitLt")


def test_ties_are_aliases_and_share_memory(tmp_path):
    architectures.save("llama-tied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    file = aibit.open(tmp_path / "m.aibit")
    assert file.info("lm_head.weight").alias_of == "model.embed_tokens.weight"
    model = aibit.load_model(file)
    assert model.lm_head.weight is model.model.embed_tokens.weight
