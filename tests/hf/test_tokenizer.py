"""Tokenizers built from documents are those that transformers builds from the directory."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from aibit_format.container import documents
from aibit_format.errors import LoadError
from aibit_format.hf.tokenizer import build_tokenizer


@pytest.fixture
def texts(fixtures):
    folder = fixtures / "models" / "tiny-llama"
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def built(texts):
    return build_tokenizer(texts, lambda name: documents.check(name, texts[name]), "here")


def test_ids_and_template_are_those_of_the_directory(texts, fixtures):
    theirs = AutoTokenizer.from_pretrained(fixtures / "models" / "tiny-llama")
    found = built(texts)
    for text in ("If the list is empty, é…", "", " a\n\tb"):
        assert found(text).input_ids == theirs(text).input_ids
    assert found.chat_template == theirs.chat_template


def test_what_is_wrong_is_said_with_where_it_is(texts):
    with pytest.raises(LoadError, match="here: "):
        built({"config.json": texts["config.json"]})
    said = json.dumps({"tokenizer_class": "LlamaModel"}).encode()
    with pytest.raises(LoadError, match=r"here: .*'LlamaModel' is not one of transformers' tokenizers"):
        built(texts | {"tokenizer_config.json": said})
    said = json.dumps({"vocab": "/etc/passwd"}).encode()
    with pytest.raises(LoadError, match=r"here: .*vocab would name a file"):
        built(texts | {"tokenizer_config.json": said})
