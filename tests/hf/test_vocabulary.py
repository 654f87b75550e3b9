"""Token ids are those of the vocabulary."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

import aibit_format as aibit
from aibit_format.errors import LoadError
from aibit_format.hf.vocabulary import check_special_ids
from tests.support.hostile_documents import MODEL, with_document
from tests.support.hostile_documents import good as good


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("change", [{"eos_token_id": 1024}, {"eos_token_id": [1, 1 << 62]}, {"bos_token_id": -2}])
def test_special_ids_beyond_the_vocabulary_are_refused(change, name, good, tmp_path):
    key = next(iter(change))
    with pytest.raises(LoadError, match=rf"{name}: {key} is .*, and the vocabulary has 1024 tokens"):
        aibit.load_model(with_document(good, tmp_path, name, change))
    (tmp_path / "none").mkdir()
    none = with_document(good, tmp_path / "none", name, {key: None} if name == "config.json" else {key: -1})
    assert aibit.load_model(none) is not None


def test_special_ids_that_are_the_defaults_of_a_family_pass():
    # architectures.MODELS has a GPT-2 of 160 tokens, which keeps 50256; tests of outputs load it.
    check_special_ids("config.json", {"bos_token_id": 50256}, 160, transformers.GPT2Config)
    with pytest.raises(LoadError):
        check_special_ids("config.json", {"bos_token_id": 50255}, 160, transformers.GPT2Config)


@pytest.mark.parametrize("where", ["vocab", "added_tokens"])
def test_a_tokenizer_with_ids_beyond_the_vocabulary_is_refused(where, good, tmp_path):
    value = json.loads((MODEL / "tokenizer.json").read_text())
    if where == "vocab":
        value["model"]["vocab"]["evil"] = 5000
    else:
        value["added_tokens"].append({**value["added_tokens"][0], "content": "evil", "id": 5000})
    path = with_document(good, tmp_path, "tokenizer.json", json.dumps(value).encode())
    with pytest.raises(LoadError, match=r"token 'evil' has the id 5000, and the vocabulary has 1024 tokens"):
        aibit.load_tokenizer(path)
    # The control: what transformers makes of it gives an id that the embedding has no row for.
    shutil.copytree(MODEL, tmp_path / "naive")
    (tmp_path / "naive" / "tokenizer.json").write_text(json.dumps(value))
    naive = transformers.AutoTokenizer.from_pretrained(tmp_path / "naive")
    beyond = max(naive.get_vocab().values())  # transformers gives an added token the next id that is free
    assert beyond >= 1024
    with pytest.raises(IndexError):
        aibit.load_model(good)(torch.tensor([[beyond]]))
