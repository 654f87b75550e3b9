"""Models are loaded and used as transformers' own."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers

import aibit_format as aibit
from aibit_format.errors import LoadError
from tests.support import architectures

warnings.filterwarnings("ignore", message="MatMul8bitLt")


def test_several_devices_are_refused_clearly(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    with pytest.raises(LoadError, match="one device"):
        aibit.load_model(tmp_path / "m.aibit", device_map={"model": 0, "lm_head": "cpu"})
    with pytest.raises(LoadError, match="one device"):
        aibit.load_model(tmp_path / "m.aibit", device_map="balanced")
    assert aibit.load_model(tmp_path / "m.aibit", device_map={"": "cpu"}) is not None
    if not torch.cuda.is_available():
        with pytest.raises(LoadError, match="no CUDA device"):
            aibit.load_model(tmp_path / "m.aibit", device="cuda")


def test_the_loaded_model_can_be_saved_by_transformers(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    model = aibit.load_model(tmp_path / "m.aibit")
    expected = architectures.output(model, "llama-untied")
    model.save_pretrained(tmp_path / "again")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "again", device_map={"": "cpu"}).eval()
    assert torch.equal(architectures.output(again, "llama-untied"), expected)


def test_a_file_without_a_model_says_so(fixtures):
    with pytest.raises(LoadError, match="no model"):
        aibit.load_model(fixtures / "container" / "dtypes.aibit")
    with pytest.raises(LoadError, match="no tokenizer"):
        aibit.load_tokenizer(fixtures / "container" / "dtypes.aibit")
