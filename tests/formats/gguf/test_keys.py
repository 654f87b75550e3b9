"""Metadata of one architecture, looked up by type."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.gguf.keys import Keys

METADATA = {
    "llama.block_count": 3, "llama.eps": 1e-5, "llama.flag": True, "llama.each": np.array([1, 2, 3]), "qwen2.x": 1,
    "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0, "llama.text": "word", "llama.none": 0,
}  # fmt: skip


@pytest.fixture
def keys():
    return Keys(METADATA, "llama")


def test_values_come_in_their_type_and_are_remembered_as_asked_for(keys):
    assert keys.integer("block_count") == 3 and keys.flag("flag") is True and keys.each("block_count", 2) == [3, 3]
    assert keys.number("eps") == 1e-5 and keys.each("each", 3) == [1, 2, 3] and keys.get("x") is None
    assert keys.integer("missing", 7) == 7
    assert keys.asked == {"block_count", "flag", "eps", "each", "x", "missing"} and "x" not in keys.values


def test_a_float32_is_its_shortest_decimal():
    assert Keys({"a.b": float(np.float32(0.1))}, "a").number("b") == 0.1


def test_rotary_keys_are_those_that_are_known(keys):
    assert keys.rope() == {"scaling.type": "yarn", "scaling.factor": 4.0}


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda keys: keys.integer("eps"), r"llama\.eps is 1e-05, one positive number is needed"),
        (lambda keys: keys.integer("none"), r"llama\.none is 0, one positive"),
        (lambda keys: keys.integer("flag"), r"llama\.flag is True, one positive"),
        (lambda keys: keys.integer("nowhere"), r"llama\.nowhere is missing"),
        (lambda keys: keys.number("flag"), r"llama\.flag is True, a number"),
        (lambda keys: keys.number("text"), r"llama\.text is 'word', a number"),
        (lambda keys: keys.flag("block_count"), r"llama\.block_count is 3, true or false"),
        (lambda keys: keys.scalar("each"), r"llama\.each is a list of 3, one value"),
        (lambda keys: keys.each("each", 2), r"llama\.each is a list of 3, one value, or 2 of them"),
        (lambda keys: keys.each("text", 2), r"llama\.text is 'word', one value, or 2"),
    ],
)
def test_what_is_of_another_type_is_named(ask, message, keys):
    with pytest.raises(SourceError, match=message):
        ask(keys)


def test_a_rotary_key_of_another_type_is_named():
    with pytest.raises(SourceError, match=r"a\.rope\.scaling\.type is 3, a word is needed"):
        Keys({"a.rope.scaling.type": 3}, "a").rope()
