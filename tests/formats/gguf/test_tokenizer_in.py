"""Tokenizers come in from GGUF."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.tokenization_utils_base import generate_merges

import aibit_format as aibit
from aibit_format.errors import SourceError
from aibit_format.formats.gguf import tokenizer_in
from aibit_format.formats.sources import open_source
from tests.support.gguf_models import all_types, merged, sentencepiece, written
from tests.support.gguf_models import spm as spm

transformers.utils.logging.disable_progress_bar()


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from("abcdefgh \u00e9\U0001f999"), max_size=12))
def test_sentencepiece_tokenizes_as_the_algorithm_does(spm, text):
    _, scores, tokenizer = spm
    wanted = merged("\u2581" + text.replace(" ", "\u2581"), scores) if text else []
    assert tokenizer(text)["input_ids"] == [1, *wanted]
    assert tokenizer.decode(tokenizer(text)["input_ids"][1:]) == text


def test_merges_of_equal_scores_come_in_the_order_of_transformers():
    tokens = ["".join(letters) for length in range(1, 6) for letters in product("ab", repeat=length)]
    scores = [-float(i % 3) for i in range(len(tokens))]
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
    }  # fmt: skip
    document = json.loads(tokenizer_in.documents_of(metadata, len(tokens), 64)["tokenizer.json"])
    wanted = generate_merges({token: i for i, token in enumerate(tokens)}, dict(zip(tokens, scores, strict=True)))
    assert [tuple(merge) for merge in document["model"]["merges"]] == wanted and len(wanted) == 196


def test_no_space_before_the_text_where_the_file_says_so(tmp_path):
    scores = sentencepiece(tmp_path / "m.gguf", add_space_prefix=False, add_bos_token=False, add_eos_token=True)
    aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit")
    tokenizer = aibit.load_tokenizer(tmp_path / "m.aibit")
    assert tokenizer("abc de")["input_ids"] == [*merged("abc\u2581de", scores), 2]
    assert tokenizer.decode(tokenizer(" abc")["input_ids"], skip_special_tokens=True) == " abc"
    metadata = written(tmp_path / "m.aibit", tmp_path / "b.gguf").metadata
    assert not metadata["tokenizer.ggml.add_space_prefix"] and not metadata["tokenizer.ggml.add_bos_token"]
    assert metadata["tokenizer.ggml.add_eos_token"]


def test_the_expressions_that_cut_text_are_those_of_transformers():
    known = {name: pre.cuts for pre in tokenizer_in.PRE for name in pre.names}
    both = known.keys() & GGUF_PRE_TOKENIZER_SPLITS.keys()
    assert {"llama-bpe", "qwen2", "tekken", "gpt-4o"} <= both
    for name in both:
        assert known[name] == (GGUF_PRE_TOKENIZER_SPLITS[name],)


def byte_level(merges=(), pre="gpt-2", kinds=None, **keys) -> dict[str, object]:
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": ["a", "b", "ab", "<|e|>"],
        "tokenizer.ggml.token_type": np.array(kinds or [1, 1, 1, 3], np.int32), "tokenizer.ggml.merges": list(merges),
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "0 tokens"),
        (byte_level(model="rwkv"), "'rwkv' is unknown here"),
        (byte_level(pre="of mine"), "'of mine' is unknown here"),
        (byte_level(merges=["a c"]), "entry 0, 'a c'"),
        (byte_level(merges=["ab"]), "entry 0, 'ab'"),
        (byte_level(kinds=[1, 1]), "2 entries for 4 tokens"),
        (byte_level(eos_token_id=4), "is 4, there are 4 tokens"),
        (byte_level(bos_token_id="x"), "is 'x', an integer is needed"),  # noqa: S106
        (byte_level(tokens=["a"] * 9), "9 tokens, the embeddings 8 rows"),
    ],
)
def test_a_damaged_tokenizer_is_refused(metadata, message):
    with pytest.raises(SourceError, match=message):
        tokenizer_in.documents_of(metadata, 8, 64)


def test_a_model_without_a_tokenizer_that_is_known_is_still_a_model(tmp_path):
    all_types(tmp_path / "m.gguf")
    source = open_source(tmp_path / "m.gguf")
    assert source.no_model is None and "tokenizer.json" not in source.documents
    assert "0 tokens" in json.loads(source.documents["gguf.json"])["aibit.no_tokenizer"]
