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
@pytest.mark.parametrize("change", [{"bos_token_id": 1024}, {"bos_token_id": 1 << 30}, {"eos_token_id": [1, -2]}])
def test_special_ids_beyond_the_vocabulary_are_refused(change, name, good, tmp_path):
    key = next(iter(change))
    with pytest.raises(LoadError, match=rf"{name}: {key} is .*, and the vocabulary has 1024 tokens"):
        aibit.load_model(with_document(good, tmp_path, name, change))
    (tmp_path / "none").mkdir()
    none = with_document(good, tmp_path / "none", name, {key: None} if name == "config.json" else {key: -1})
    assert aibit.load_model(none) is not None


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("change", [{"eos_token_id": 1024}, {"eos_token_id": [1, 1 << 30]}])
def test_of_ids_that_only_end_a_text_is_warned(change, name, good, tmp_path):
    with pytest.warns(UserWarning, match=rf"{name}: eos_token_id is .*, and the vocabulary has 1024 tokens"):
        model = aibit.load_model(with_document(good, tmp_path, name, change))
    model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False, pad_token_id=0)


def test_of_an_added_token_one_past_the_vocabulary_is_warned(good, tmp_path):
    value = json.loads((MODEL / "tokenizer.json").read_text())
    value["added_tokens"].append({**value["added_tokens"][0], "content": "<image_soft_token>", "id": 1024})
    path = with_document(good, tmp_path, "tokenizer.json", json.dumps(value).encode())
    with pytest.warns(UserWarning, match="the tokenizer has 1025 tokens and the model's vocabulary 1024"):
        assert aibit.load_tokenizer(path).convert_tokens_to_ids("<image_soft_token>") == 1024


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


TEMPLATE = {
    "type": "TemplateProcessing", "pair": [], "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                         {"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [5000], "tokens": ["<s>"]}},
}  # fmt: skip
BERT = {"type": "BertProcessing", "sep": ["</s>", 5000], "cls": ["<s>", 1]}


@pytest.mark.parametrize("processor", [TEMPLATE, BERT, {"type": "Sequence", "processors": [BERT]}], ids=str)
def test_a_post_processor_with_ids_beyond_the_vocabulary_is_refused(processor, good, tmp_path):
    value = json.loads((MODEL / "tokenizer.json").read_text()) | {"post_processor": processor}
    path = with_document(good, tmp_path, "tokenizer.json", json.dumps(value).encode())
    with pytest.raises(LoadError, match="has the id 5000, and the vocabulary has 1024 tokens"):
        aibit.load_tokenizer(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"5000": {"content": "evil"}}}, "'evil' has the id 5000"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}, "is not an id with a"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": {"content": "x"}}}, "is not an id with a"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": 5}}, "is not an id with a token"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "not an object"),
        ("added_tokens.json", b'{"evil": 5000}', "'evil' has the id 5000"),
        ("special_tokens_map.json", b'{"bos_token": "<evil>"}', "has the id 10"),
        ("special_tokens_map.json", b"[]", "no JSON object"),
    ],
)
def test_other_documents_with_ids_beyond_the_vocabulary_are_refused(name, change, message, good, tmp_path):
    with pytest.raises(LoadError, match=message):
        aibit.load_tokenizer(with_document(good, tmp_path, name, change))


@pytest.mark.parametrize("value", ["2", True, 2.0, {}, [[1]], [None, "2"]], ids=str)
def test_ids_that_are_none_are_refused(value, good, tmp_path):
    with pytest.raises(LoadError):
        aibit.load_model(with_document(good, tmp_path, "generation_config.json", {"eos_token_id": value}))
