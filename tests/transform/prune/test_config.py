"""The config of a smaller model is a plain one, and what it cannot say is refused."""

import json

import numpy as np
import pytest

from aibit_format.errors import RecipeError
from aibit_format.transform.prune.config import pruned_config
from aibit_format.transform.prune.plan import Plan
from tests.support import decoders


def config_of(name, plan, kept=(0, 1), **more):
    source, _ = decoders.source_of(name, **more)
    said = json.loads(source.documents["config.json"])
    return said, json.loads(pruned_config(source.model, said, plan, list(kept)))


def both(kept):
    return {0: np.array(kept), 1: np.array(kept)}


@pytest.mark.parametrize(("name", "plan", "keys"), [
    ("llama", Plan(channels=both([1, 2, 5])), {"intermediate_size": 3}),
    ("llama", Plan(heads=both([1])), {"num_attention_heads": 2, "num_key_value_heads": 1}),
    ("mixtral", Plan(experts=both([0, 3])), {"num_local_experts": 2}),
    ("mixtral", Plan(channels=both([[0, 1]] * 4)), {"intermediate_size": 2}),
    ("qwen2_moe", Plan(channels=both([[0, 1]] * 4)), {"moe_intermediate_size": 2}),
    ("olmoe", Plan(experts=both([0, 2, 3])), {"num_experts": 3}),
])  # fmt: skip
def test_only_what_is_less_changes(name, plan, keys):
    before, after = config_of(name, plan)
    assert {key: value for key, value in after.items() if before.get(key) != value} == keys


def test_widths_that_differ_by_layer():
    _, after = config_of("llama", Plan(channels={0: np.array([1, 2]), 1: np.array([1, 2, 3])}))
    assert after["intermediate_size"] == 3 and after["aibit_widths"] == {"channels": [2, 3]}
    message = r"heads: \[1, 2\] in different layers, which no transformers config"
    with pytest.raises(RecipeError, match=message):
        config_of("llama", Plan(heads={0: np.array([1]), 1: np.array([0, 1])}))


def test_fewer_experts_than_a_token_goes_to():
    with pytest.raises(RecipeError, match="1 experts to keep, and each token goes to 2"):
        config_of("mixtral", Plan(experts=both([2])))


def test_a_number_of_heads_that_the_class_refuses():
    more = {"num_attention_heads": 4, "num_key_value_heads": 4}
    with pytest.raises(RecipeError, match=r"3 heads: LlamaConfig takes a hidden size of 64 with 1, 2 heads alone"):
        config_of("llama", Plan(heads=both([0, 1, 2])), **more)
