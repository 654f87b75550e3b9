"""Which document of a model is cut, and which others go."""

from types import SimpleNamespace

import pytest

from aibit_format.errors import SourceError
from aibit_format.transform.vocabulary.sentencepiece import SentencePiece
from aibit_format.transform.vocabulary.tokenizer import replaced, tokenizer_of
from aibit_format.transform.vocabulary.tokenizer_json import TokenizerJson
from tests.support import pieces, vocabularies


def test_the_complete_one_is_cut():
    text = vocabularies.document("wordpiece").encode()
    documents = {
        "tokenizer.json": text,
        "vocab.txt": b"",
        "tokenizer.model": b"",
        "config.json": b"{}",
        "merges.txt": b"",
    }
    assert isinstance(tokenizer_of(documents), TokenizerJson)
    assert replaced(documents, "tokenizer.json") == ["vocab.txt", "tokenizer.model", "merges.txt"]


def test_a_model_of_sentencepiece_is_cut_where_it_is_all_there_is():
    documents = {"tokenizer.model": pieces.unigram(), "tokenizer_config.json": b"{}"}
    assert isinstance(tokenizer_of(documents), SentencePiece) and replaced(documents, "tokenizer.model") == []


def test_of_others_transformers_makes_one():
    built = SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: vocabularies.document("wordpiece")))
    assert isinstance(tokenizer_of({"vocab.txt": b""}, built), TokenizerJson)
    with pytest.raises(SourceError, match=r"vocab\.txt: cannot be cut: only tokenizer\.json.*save it with a current"):
        tokenizer_of({"vocab.txt": b""})
