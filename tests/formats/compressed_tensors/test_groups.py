"""Which config group a module is in."""

from __future__ import annotations

import pytest

from aibit_format.formats.compressed_tensors.groups import ConfigError, group_of, names_module, read_groups

SAID = {
    "format": "int-quantized",
    "config_groups": {
        "linear": {"targets": ["Linear"], "weights": {}},
        "expression": {"targets": [r"re:.*\.mlp\..*"], "weights": {"group_size": -1}, "format": "pack-quantized"},
        "exact": {"targets": ["a.mlp.up"], "weights": {"group_size": 32}},
        "embedding": {"targets": ["Embedding"], "weights": {"strategy": "block", "block_structure": "8x16"}},
        "activations": {"targets": ["Linear"], "input_activations": {}},
    },
}


@pytest.mark.parametrize(
    ("module", "group"),
    [("a.attn.q", "linear"), ("a.mlp.down", "expression"), ("a.mlp.up", "exact"), ("model.embed_tokens", "embedding"),
     ("wte", "embedding"), ("lm_head", "linear")],
)  # fmt: skip
def test_an_exact_name_goes_before_an_expression_and_that_before_a_class(module, group):
    found = group_of(read_groups(SAID), module)
    assert found is not None and found.name == group


def test_strategies_are_inferred_as_the_library_does():
    found = {group.name: group for group in read_groups(SAID)}
    assert {name: group.weights.strategy for name, group in found.items()} == {
        "linear": "tensor", "expression": "channel", "exact": "group", "embedding": "block",
    }  # fmt: skip
    assert found["exact"].weights.group == 32 and found["embedding"].weights.block == (8, 16)
    assert found["expression"].format == "pack-quantized" and found["exact"].format == "int-quantized"


def test_expressions_match_from_the_start():
    assert names_module("re:a", "abc") and not names_module("re:b", "abc") and not names_module("a", "abc")


@pytest.mark.parametrize("said", [{}, {"config_groups": []}, {"config_groups": {"a": {"targets": ["re:("]}}}])
def test_what_means_nothing_is_an_error(said):
    with pytest.raises(ConfigError):
        read_groups(said)
