"""Factors are folded so that norms lose nothing, and statistics follow."""

import numpy as np
import pytest

from aibit_format.dtypes import from_float32, to_float32
from aibit_format.transform.changes import Replace
from aibit_format.transform.fold import fold, gains, inputs_of, rescaled
from aibit_format.transform.structure import decoder_of
from tests.support import decoders


@pytest.mark.parametrize(("name", "gain"), [("llama", 0.0), ("gemma", 1.0)])
def test_the_factors_are_those_by_which_a_rounded_norm_was_divided(name, gain):
    source, _ = decoders.source_of(name, dtype=decoders.torch.bfloat16)
    channels = decoder_of(source.model).channels[0]
    weight = to_float32(source.planes(channels.writers[0].name)["values"], "bf16").astype(np.float64)
    wanted = np.exp(np.random.default_rng(0).normal(size=64))
    changes, used = fold(source, channels, wanted)
    (change,) = changes[channels.writers[0].name]
    assert isinstance(change, Replace)
    stored = change.values
    assert np.array_equal(stored, to_float32(from_float32(stored.astype(np.float32), "bf16"), "bf16"))
    assert np.abs((stored + gain) * used / (weight + gain) - 1).max() < 1e-15
    assert 0 < np.abs(used / wanted - 1).max() < 0.1 and np.array_equal(gains(source, channels), weight + gain)


def test_dead_channels_keep_their_factor():
    source, _ = decoders.source_of("llama")
    channels = decoder_of(source.model).channels[0]
    source = source.transformed("dead", {channels.writers[0].name: [Replace(np.arange(64) % 2.0)]})
    changes, used = fold(source, channels, np.full(64, 4.0))
    assert used.tolist() == [1.0, 4.0] * 32
    assert changes[channels.writers[0].name][0].values.tolist() == [0.0, 0.25] * 32


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_statistics_are_those_of_divided_inputs(name):
    source, _ = decoders.source_of(name)
    found = decoders.statistics(source)
    for channels in decoder_of(source.model).channels:
        size = (channels.count,) if channels.matrices == 1 else (channels.matrices, channels.count)
        factors = np.exp(np.random.default_rng(0).normal(size=size))
        after = rescaled(found, channels, factors)
        for port in channels.readers:
            if port.name not in found.inputs:
                continue
            one, other, by = found.inputs[port.name], after.inputs[port.name], port.spread(factors)
            assert np.allclose(other.sum2, one.sum2 / by**2) and np.allclose(other.sum, one.sum / by)
            assert np.allclose(other.magnitude, one.magnitude / by) and np.allclose(other.largest, one.largest / by)
            outer = np.broadcast_to(by, one.sum2.shape)
            assert np.allclose(other.hessian, one.hessian / (outer[:, :, None] * outer[:, None]), rtol=1e-5)
            assert np.array_equal(other.high, other.largest.max(1)) and np.array_equal(other.low, -other.high)
            assert other.percentiles is None and other.experts == one.experts
        others = set(found.inputs) - {port.name for port in channels.readers}
        assert all(after.inputs[key] is found.inputs[key] for key in others)


def test_statistics_of_tied_and_unreached_weights():
    source, _ = decoders.source_of("llama", tie_word_embeddings=True)
    found = decoders.statistics(source)
    name = "model.layers.0.self_attn.q_proj.weight"
    found.inputs[name].counts[:] = 0
    assert inputs_of(found, name) is None and inputs_of(found, "lm_head.weight") is None
    found.inputs["model.embed_tokens.weight"] = found.inputs[name.replace("0", "1")]
    assert inputs_of(found, "lm_head.weight") is found.inputs["model.embed_tokens.weight"]
