"""Ids of tokens in documents: which are named, and how they read with other ids."""

import pytest

from aibit_format.hf.special_ids import DOCUMENTS, is_key, named, remapped

CONFIG = {
    "eos_token_id": [2, 9], "bos_token_id": None, "pad_token_id": -1, "image_token_index": 7, "hidden_size": 3,
    "text_config": {"decoder_start_token_id": 4, "layers": [5, 6]}, "force_words_ids": [[[8]]],
    "suppress_tokens": [3, -1, 10], "bad_words_ids": [[11], [3, 4]], "forced_decoder_ids": [[1, 5], [2, None]],
    "sequence_bias": [[[3], 0.5], [[4, 9], 1.0]], "lang_to_id": {"<|en|>": 6}, "vocab_size": 12,
}  # fmt: skip


def test_named():
    assert sorted(named(CONFIG)) == [2, 4, 5, 6, 7, 8, 9]
    assert list(named([])) == [] and list(named(3)) == []


def test_remapped():
    gone = {3, 10}
    found = remapped(CONFIG, lambda i: -1 if i in gone else 100 + i)
    assert found == CONFIG | {
        "eos_token_id": [102, 109], "image_token_index": 107, "force_words_ids": [[[108]]],
        "text_config": {"decoder_start_token_id": 104, "layers": [5, 6]}, "suppress_tokens": [-1],
        "bad_words_ids": [[111]], "forced_decoder_ids": [[1, 105], [2, None]], "sequence_bias": [[[104, 109], 1.0]],
        "lang_to_id": {"<|en|>": 106},
    }  # fmt: skip


@pytest.mark.parametrize(("key", "wanted"), [
    ("eos_token_id", True), ("boi_token_index", True), ("token_id", True), ("visual_indicator_token_ids", True),
    ("num_tokens", False), ("token_ids_of", False), ("hidden_size", False),
])  # fmt: skip
def test_keys(key, wanted):
    assert is_key(key) is wanted


def test_documents():
    names = ["config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"]
    assert all(DOCUMENTS.fullmatch(name) for name in names)
    assert not any(
        DOCUMENTS.fullmatch(name) for name in ("tokenizer_config.json", "1_Pooling/config.json", "vocab.json")
    )
