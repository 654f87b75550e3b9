"""Vocabularies of ranks: tokens in base64, merges, and the ``tokenizer.json`` that is made of them."""

from __future__ import annotations

import base64
import json

import pytest
import tokenizers

from aibit_format.errors import SourceError
from aibit_format.formats.meta.ranks import LARGEST_TOKEN, decoded, document, tokenizer_json

BYTES = [bytes([byte]) for byte in range(256)]
SPECIAL = {"<s>": 0, "<e>": 1}


def made(*tokens, special=SPECIAL):
    return tokenizer_json([*BYTES, *tokens], len(special), special, r"\w+|\W+", "<s>", "t")


def test_a_token_is_strict_base64():
    assert decoded("YWI=", "t") == decoded(b"YWI=", "t") == b"ab"
    assert len(decoded(base64.b64encode(bytes(LARGEST_TOKEN)), "t")) == LARGEST_TOKEN
    wrong = ("YWI", "YW I=", "Y!I=", "\u00e9", "", base64.b64encode(bytes(LARGEST_TOKEN + 1)), b"A" * (1 << 20))
    for text in wrong:
        with pytest.raises(SourceError, match=r"t: .* is (no token in|a token of no bytes)") as error:
            decoded(text, "t")
        assert len(str(error.value)) < 300


def test_merges_are_all_ways_to_cut_a_token_in_two_in_the_order_of_ranks():
    merges = made(b"bc", b"ab", b"abc", b"xyz")["model"]["merges"]
    # "abc" is "a" and "bc", or "ab" and "c"; nothing makes "xyz".
    assert [*map(tuple, merges)] == [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]


def test_the_pair_of_lowest_rank_is_joined_first():
    tokenizer = tokenizers.Tokenizer.from_str(document(made(b"bc", b"ab", b"bcd")).decode())
    tokens = {name: tokenizer.token_to_id(name) for name in ("a", "bc", "ab", "bcd", "\u0120")}
    assert tokens["bc"] == 2 + 256 and tokens["\u0120"] == 2 + ord(" ")
    assert tokenizer.encode("abcd").ids == [0, tokens["a"], tokens["bcd"]]
    assert tokenizer.encode("bcd<e> ", add_special_tokens=False).ids == [tokens["bcd"], 1, tokens["\u0120"]]
    text = "caf\u00e9 \U0001f999\x00\xa0\xad\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_two_texts_begin_with_a_token_each():
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(made()))
    assert tokenizer.encode("a", "b").ids == [0, 2 + ord("a"), 0, 2 + ord("b")]


def test_a_token_that_is_there_twice_is_named():
    with pytest.raises(SourceError, match=r"t: b'ab' is there twice"):
        made(b"ab", b"cd", b"ab")
    with pytest.raises(SourceError, match=r"t: '<s>' is a special token, and one of the others"):
        made(b"<s>")
