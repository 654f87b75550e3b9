"""Values of generation_config.json."""

from __future__ import annotations

import pytest
from transformers import GenerationConfig

import aibit_format as aibit
from aibit_format.errors import LoadError
from aibit_format.hf.generation import checked
from tests.support.hostile_documents import good as good
from tests.support.hostile_documents import with_document

BAD = [
    {"temperature": "hot"}, {"max_length": 1.5}, {"max_length": 10**4000}, {"max_new_tokens": -1}, {"num_beams": 10**9},
    {"num_return_sequences": 10**6}, {"do_sample": "yes"}, {"top_k": True}, {"suppress_tokens": 5},
    {"bad_words_ids": [1]}, {"cache_implementation": 5}, {"stop_strings": [1]}, {"early_stopping": 3},
    {"watermarking_config": "x"}, {"temperature": 10**400},
]  # fmt: skip


@pytest.mark.parametrize("values", BAD, ids=lambda values: str(values)[:40])
def test_a_value_of_another_kind_is_refused_by_its_key(values):
    with pytest.raises(LoadError, match=f"generation_config.json: {next(iter(values))} is"):
        checked(values)


def test_what_transformers_writes_passes_and_unknown_keys_do_not_reach_it():
    config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, top_k=20, eos_token_id=[1, 2], pad_token_id=0, max_length=4096,
        repetition_penalty=1, bad_words_ids=[[1, 2]], suppress_tokens=[3], stop_strings="end",
    )  # fmt: skip
    values = config.to_dict()
    assert GenerationConfig.from_dict(checked(values)).to_diff_dict() == config.to_diff_dict()
    assert checked({"made_up": 1, "compile_config": {}, "custom_generate": "x", "top_k": None}) == {"top_k": None}


def test_loading_says_it(good, tmp_path):
    with pytest.raises(LoadError, match="temperature is 'hot', expected a number"):
        aibit.load_model(with_document(good, tmp_path, "generation_config.json", {"temperature": "hot"}))
