"""Entries that stand for a key of GGUF and one of config.json, in both directions."""

from __future__ import annotations

import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.gguf.config_keys import About, Constant, Derived, Number
from aibit_format.formats.gguf.keys import Keys

NOTHING = About({}, {})


def read(entry, config=None, **values):
    config = {"architectures": ["M"]} | (config or {})
    entry.read(Keys({f"a.{key}": value for key, value in values.items()}, "a"), config, NOTHING)
    return {key: value for key, value in config.items() if key != "architectures"}


def written(entry, **config):
    values = {}
    entry.write(config, values)
    return values


def test_a_number_has_one_key_on_each_side():
    layers, eps = Number("block_count", "num_hidden_layers"), Number("eps", "rms_norm_eps", float)
    assert read(layers, block_count=3) == {"num_hidden_layers": 3}
    assert written(layers, num_hidden_layers=3) == {"block_count": 3}
    assert read(eps, eps=1e-6) == {"rms_norm_eps": 1e-6} and written(eps, rms_norm_eps=1) == {"eps": 1.0}
    for wrong in ("3", 3.0, True, 0):
        with pytest.raises(SourceError, match=r"block_count is .*positive number"):
            read(layers, block_count=wrong)
        with pytest.raises(SourceError, match=r"num_hidden_layers is .*positive number"):
            written(layers, num_hidden_layers=wrong)


def test_what_is_missing_follows_from_another_key():
    inner = Number("feed_forward_length", "n_inner", otherwise="n_embd", times=4)
    assert read(inner, {"n_embd": 8}) == {"n_embd": 8, "n_inner": 32}
    assert written(inner, n_embd=8) == {"feed_forward_length": 32}
    assert written(inner, n_embd=8, n_inner=24) == {"feed_forward_length": 24}
    with pytest.raises(SourceError, match="feed_forward_length is missing"):
        read(inner)


def test_a_derived_number_must_be_what_it_follows_from():
    wide = Derived("inner", "width", 2)
    assert read(wide, {"width": 4}, inner=8) == read(wide, {"width": 4}) == {"width": 4}
    with pytest.raises(SourceError, match="inner is 9"):
        read(wide, {"width": 4}, inner=9)


def test_a_constant_is_what_the_model_always_computes():
    causal = Constant("causal", True, None)
    assert read(causal) == read(causal, causal=True) == {} and written(causal) == {"causal": True}
    with pytest.raises(SourceError, match="causal is False, M has no such thing"):
        read(causal, causal=False)
    assert read(Constant("anything"), anything=[1]) == {} and written(Constant("anything")) == {}
    assert written(Constant("unless", None, 0)) == {}
