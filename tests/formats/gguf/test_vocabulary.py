"""Tokens of GGUF: what is checked of them, and which are special."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.gguf.vocabulary import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

TOKENS = ["<unk>", "<s>", "a", "[PAD3]", "<tool>", ""]
KINDS = np.array([UNKNOWN, CONTROL, NORMAL, UNUSED, USER_DEFINED, CONTROL], np.int32)


def vocabulary(rows=8, tokens=TOKENS, **more):
    values = {"tokens": tokens, "token_type": KINDS} | more
    return Vocabulary({f"tokenizer.ggml.{key}": value for key, value in values.items()}, rows)


def test_names_of_ids_that_no_token_has_are_no_tokens():
    found = vocabulary()
    assert "[PAD3]" not in found.ids and found.ids["<tool>"] == 4
    assert vocabulary(tokens=[*TOKENS[:3], "[PAD4]", *TOKENS[4:]]).ids["[PAD4]"] == 3  # that of another id is one


def test_those_matched_literally_are_listed_once_and_only_some_are_special():
    found = vocabulary(tokens=["<s>", *TOKENS[1:]])
    listed = [(each["id"], each["content"], each["special"]) for each in found.added()]
    assert listed == [(1, "<s>", True), (4, "<tool>", False)]  # of two alike, the last; none of no text


def test_special_ids_are_those_of_tokens_or_none():
    found = vocabulary(bos_token_id=1, eos_token_id=0xFFFF_FFFF, seperator_token_id=5)
    assert found.special == {"bos": 1, "eos": None, "unk": None, "pad": None, "sep": 5, "cls": None, "mask": None}
    found.assume(bos=0, eos=1, unk=0, pad=2, cls=99)
    assert (found.special["bos"], found.special["eos"], found.special["unk"]) == (1, 1, 0)
    assert found.special["pad"] is None and found.special["cls"] is None  # no special token, and none at all


def test_without_kinds_every_token_is_normal_and_without_scores_none_is_better():
    found = Vocabulary({"tokenizer.ggml.tokens": ["a", "b"]}, 2)
    assert found.kinds == [NORMAL, NORMAL] and found.added() == [] and found.scores() == [0, 0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tokens": []}, r"tokens has 0 tokens, the embeddings 8 rows"),
        ({"tokens": TOKENS * 2}, r"tokens has 12 tokens, the embeddings 8 rows"),
        ({"tokens": np.arange(3)}, r"tokenizer\.ggml\.tokens is an array of numbers, an array of texts is needed"),
        ({"token_type": KINDS[1:]}, r"token_type has 5 entries for 6 tokens"),
        ({"token_type": [1] * 6}, r"token_type is \[1, 1, 1, 1, 1, 1\], an array of numbers is needed"),
        ({"bos_token_id": 6}, r"bos_token_id is 6, there are 6 tokens"),
        ({"bos_token_id": -1}, r"bos_token_id is -1"),
        ({"bos_token_id": True}, r"bos_token_id is True, an integer is needed"),
        ({"bos_token_id": 1.0}, r"bos_token_id is 1\.0, an integer is needed"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_by_its_key(more, message):
    with pytest.raises(SourceError, match=message):
        vocabulary(**more)


def test_scores_are_one_for_each_token():
    assert vocabulary(scores=np.arange(6, dtype=np.float32)).scores() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(SourceError, match=r"scores has 2 entries, there are 6 tokens"):
        vocabulary(scores=np.ones(2)).scores()
    with pytest.raises(SourceError, match=r"scores is \[0"):
        vocabulary(scores=[0.0] * 6).scores()
