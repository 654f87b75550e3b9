"""What is around the model in a tokenizer.json: added tokens, post-processors, bytes."""

import json

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from aibit_format.container.vocabulary import Kept
from aibit_format.errors import SourceError
from aibit_format.transform.vocabulary.tokenizer_json import TokenizerJson, byte_alphabet
from tests.support import vocabularies


def made(**parts):
    vocab = {"a": 0, "b": 1, "##c": 2, "[UNK]": 3, "\u00e9": 4, "\u00e9b": 5}
    model = {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    return TokenizerJson(json.dumps({"model": model, **parts}).encode())


def test_the_alphabet_of_bytes_is_that_of_the_library():
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet()) and len(byte_alphabet()) == 256


def test_post_processors_name_tokens_by_their_new_ids():
    processor = {"type": "Sequence", "processors": [
        {"type": "RobertaProcessing", "sep": ["b", 1], "cls": ["a", 0]},
        {"type": "TemplateProcessing", "special_tokens": {"x": {"id": "x", "ids": [5], "tokens": ["\u00e9b"]}}},
    ]}  # fmt: skip
    tokenizer = made(post_processor=processor, padding={"pad_id": 3}, added_tokens=[{"id": 4, "content": "\u00e9"}])
    assert tokenizer.always == {0, 1, 3, 4, 5}
    found = json.loads(tokenizer.cut(Kept(np.array([0, 1, 3, 4, 5], np.uint32), 6)))
    inner = found["post_processor"]["processors"]
    assert inner[0]["sep"] == ["b", 1] and inner[1]["special_tokens"]["x"]["ids"] == [4]
    assert found["padding"] == {"pad_id": 2} and found["added_tokens"] == [{"id": 3, "content": "\u00e9"}]
    assert found["model"]["vocab"] == {"a": 0, "b": 1, "[UNK]": 2, "\u00e9": 3, "\u00e9b": 4}


def test_added_tokens_beyond_the_rows_follow_them():
    tokenizer = made(added_tokens=[{"id": 6, "content": "<image>"}])
    found = json.loads(tokenizer.cut(Kept(np.array([0, 3], np.uint32), 6)))
    assert found["added_tokens"] == [{"id": 2, "content": "<image>"}]


def test_words_are_spelled_by_characters_where_there_are_no_bytes():
    assert set(made().spelling(frozenset({"\u00e9b"}))) == {"a", "b", "##c", "\u00e9"}
    assert set(made().spelling(frozenset())) == {"a", "b", "##c"}
    assert not list(TokenizerJson(vocabularies.document("byte-level").encode()).spelling(frozenset({"a"})))


def test_what_tokens_stand_for():
    tokenizer = TokenizerJson(vocabularies.document("byte-level").encode())
    assert (
        tokenizer.text("\u0120the") == " the"
        and tokenizer.text("\u00c3") is None
        and tokenizer.text("<extra>") == "<extra>"
    )
    assert made().text("##c") == "c"


def test_added_tokens_that_are_none():
    with pytest.raises(SourceError, match="added_tokens is no list of tokens with ids"):
        made(added_tokens=[{"id": "1", "content": "a"}])
