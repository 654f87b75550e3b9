"""Entries about heads, rotations, windows and kinds of layers, in both directions."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.gguf.config_attention import FULL, SLIDING, HeadSize, LayerTypes, Rope, Window
from aibit_format.formats.gguf.config_keys import About
from aibit_format.formats.gguf.keys import Keys
from aibit_format.formats.gguf.rope import FREQUENCIES

MODEL = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128, "num_hidden_layers": 3}


def read(entry, factors=None, **values):
    config = dict(MODEL)
    entry.read(Keys({f"a.{key}": value for key, value in values.items()}, "a"), config, About({}, factors or {}))
    return {key: value for key, value in config.items() if key not in MODEL}


def written(entry, **config):
    values = {}
    entry.write(MODEL | config, values)
    return values


def test_heads_are_shares_of_the_width_unless_a_key_says_their_size():
    assert read(HeadSize()) == {"head_dim": 16}
    assert read(HeadSize(), **{"attention.key_length": 32, "attention.value_length": 32}) == {"head_dim": 32}
    assert written(HeadSize(), head_dim=32) == {"attention.key_length": 32, "attention.value_length": 32}
    assert written(HeadSize(written=False), head_dim=32) == {}
    with pytest.raises(SourceError, match=r"a\.attention\.value_length is 8, the keys have 32"):
        read(HeadSize(), **{"attention.key_length": 32, "attention.value_length": 8})


def test_a_model_without_a_size_of_heads_has_shares_alone():
    assert read(HeadSize(None)) == {} and written(HeadSize(None, False)) == {}
    with pytest.raises(SourceError, match="4 heads of 32 dimensions in a model 64 wide"):
        read(HeadSize(None), **{"attention.key_length": 32})
    with pytest.raises(SourceError, match=r"config\.json: heads of 32: llama\.cpp takes width by heads"):
        written(HeadSize(None), head_dim=32)


def test_a_part_of_a_head_rotates_where_the_model_allows_it():
    half = {"rope.dimension_count": 8, "rope.freq_base": 5e5}
    parameters = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}
    assert read(Rope(partial=True), **half) == {"rope_parameters": parameters}
    assert written(Rope(partial=True), rope_parameters=parameters) == half
    with pytest.raises(SourceError, match=r"dimension_count is 8, the heads have 16 dimensions"):
        read(Rope(), **half)
    with pytest.raises(SourceError, match=r"dimension_count is 32"):
        read(Rope(partial=True), **{"rope.dimension_count": 32})
    with pytest.raises(SourceError, match=r"partial_rotary_factor 0\.5: llama\.cpp's model has no such thing"):
        written(Rope(), rope_parameters=parameters)


@pytest.mark.parametrize("factor", [-1, 0.01, 1.5])
def test_the_part_that_rotates_is_of_a_head(factor):
    parameters = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": factor}
    with pytest.raises(SourceError, match=f"partial_rotary_factor {factor}: "):
        written(Rope(partial=True), rope_parameters=parameters)


@pytest.mark.parametrize("size", ["x", -5, 16.0, 1 << 40, True])
def test_a_head_is_of_no_strange_size(size):
    with pytest.raises(SourceError, match=r"heads of .* dimensions, expected 1 to 65536"):
        written(HeadSize(), head_dim=size)


def test_factors_are_one_for_each_pair_that_rotates():
    assert read(Rope(), {FREQUENCIES: np.ones(8, np.float32)})["rope_parameters"]["rope_type"] == "default"
    with pytest.raises(SourceError, match=r"'rope_freqs\.weight' has 4 factors, for 16 dimensions"):
        read(Rope(), {FREQUENCIES: np.ones(4, np.float32)})


def test_what_llama_cpp_always_does_to_a_yarn_is_said_and_has_to_be():
    entry = Rope(extra=(("truncate", False),))
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    parameters = read(entry, **keys)["rope_parameters"]
    assert parameters["truncate"] is False
    assert written(entry, rope_parameters=parameters)["rope.scaling.factor"] == 4.0
    for other in ({**parameters, "truncate": True}, {key: parameters[key] for key in parameters if key != "truncate"}):
        with pytest.raises(SourceError, match="truncate is to be False"):
            written(entry, rope_parameters=other)
    assert "truncate" not in read(entry)["rope_parameters"]


def test_a_window_that_no_text_reaches_is_none():
    assert read(Window()) == read(Window(), **{"attention.sliding_window": 0}) == {"sliding_window": None}
    assert written(Window(), sliding_window=128) == written(Window()) == {}
    with pytest.raises(SourceError, match=r"sliding_window is 64, none is expected"):
        read(Window(), **{"attention.sliding_window": 64})
    with pytest.raises(SourceError, match=r"sliding_window 127: llama\.cpp's model has no sliding window"):
        written(Window(), sliding_window=127)


def test_every_so_many_layers_one_attends_to_everything():
    types, key = [SLIDING, FULL, SLIDING], "attention.sliding_window_pattern"
    for found in ({}, {key: 2}, {key: np.array([True, False, True])}):
        assert read(LayerTypes(2), **found) == {"layer_types": types}
    assert written(LayerTypes(2), layer_types=types) == written(LayerTypes(2)) == {}
    for wrong in (3, np.array([True, True, True]), np.array([True, False])):
        with pytest.raises(SourceError, match=r"sliding_window_pattern is .*one layer of 2 attends"):
            read(LayerTypes(2), **{key: wrong})
    with pytest.raises(SourceError, match=r"config\.json: layer_types: llama\.cpp's model has others"):
        written(LayerTypes(2), layer_types=types[::-1][:2])
