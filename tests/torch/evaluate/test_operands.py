"""What can be compared: files of this format, GGUF files, directories."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

import aibit_format as aibit
from aibit_format.errors import LoadError
from aibit_format.io.scratch import temporary_folder
from aibit_format.torch.evaluate.operands import is_gguf, operand, stored_bytes
from tests.support import architectures
from tests.support.evaluated_models import models as models


@pytest.mark.parametrize("name", ["original", "int8.aibit", "q4.gguf"])
def test_each_kind_is_loaded_with_its_tokenizer(name, models):
    with operand(models[name]) as (model, tokenizer):
        ids = tokenizer("The list", return_tensors="pt").input_ids
        assert model(ids).logits.shape == (1, ids.shape[1], model.config.vocab_size)
        assert not model.training


def test_temporary_files_are_gone_afterwards(models, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other tests have files in the usual one meanwhile
    with operand(models["q4.gguf"]):
        assert [name for name in os.listdir(tmp_path) if name.startswith(".aibit-")]
    with temporary_folder() as folder:
        assert os.path.dirname(folder.name) == str(tmp_path) and os.path.isdir(folder.name)
    assert not os.listdir(tmp_path)


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(LoadError, match="transformers cannot load it"), operand(str(tmp_path)):
        pass


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    architectures.save("bert", tmp_path / "bert")
    aibit.convert(tmp_path / "bert", tmp_path / "bert.aibit", scheme="int8")
    with pytest.raises(LoadError, match="holds no tokenizer"), operand(str(tmp_path / "bert.aibit")):
        pass
def test_sizes_are_those_of_weights(models):
    assert stored_bytes(models["int8.aibit"]) == Path(models["int8.aibit"]).stat().st_size
    assert stored_bytes(models["q4.gguf"]) == Path(models["q4.gguf"]).stat().st_size
    assert stored_bytes(models["hf"]) == sum(path.stat().st_size for path in Path(models["hf"]).glob("*.safetensors"))
    assert is_gguf(models["q4.gguf"]) and not is_gguf(models["int8.aibit"]) and not is_gguf("nowhere")
