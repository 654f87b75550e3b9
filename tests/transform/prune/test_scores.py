"""Scores say what is lost: the error of outputs without a channel, if channels were uncorrelated."""

from dataclasses import replace

import numpy as np
import pytest

from aibit_format.calibrate.statistics import About, Inputs, Statistics
from aibit_format.errors import RecipeError
from aibit_format.transform.prune import scores
from aibit_format.transform.prune.widths import layers_of
from tests.support import decoders

ABOUT = About("x", "", "", 1, 1, 1)


def values_of(source):
    return lambda name: np.asarray(source.planes(name)["values"], np.float64)


def test_channels_are_scored_by_what_their_columns_add():
    source, _ = decoders.source_of("llama")
    layer, values = layers_of(source.model)[0], values_of(source)
    x = np.random.default_rng(0).normal(size=(50, layer.count)) * np.arange(layer.count)
    found = Statistics(ABOUT, {layer.down: Inputs(np.array([50]), np.square(x).sum(0)[None])})
    weight = values(layer.down)
    lost = [np.square(np.outer(x[:, k], weight[:, k])).sum() for k in range(layer.count)]
    assert np.allclose(scores.of_channels(layer, found, values), lost)
    gains = values("model.layers.0.post_attention_layernorm.weight")
    up, gate = (np.square(values(f"model.layers.0.mlp.{name}_proj.weight") * gains).sum(1) for name in ("up", "gate"))
    assert np.allclose(scores.of_channels(layer, None, values), up * gate * np.square(weight).sum(0))
    nobody = Statistics(ABOUT, {layer.down: Inputs(np.array([0]), np.zeros((1, layer.count)))})
    assert np.allclose(scores.of_channels(layer, nobody, values), np.square(weight).sum(0))


def test_heads_are_scored_with_all_that_read_their_values():
    source, _ = decoders.source_of("llama")
    layer, values = layers_of(source.model)[0], values_of(source)
    sums = np.arange(1.0, 65)[None]
    found = Statistics(ABOUT, {layer.output: Inputs(np.array([1]), sums)})
    each = sums[0] * np.square(values(layer.output)).sum(0)
    assert np.allclose(scores.of_heads(layer, found, values), [each[:32].sum(), each[32:].sum()])


def test_experts_are_scored_by_outputs_and_what_the_router_gives_them():
    source, _ = decoders.source_of("mixtral")
    layer, values = layers_of(source.model)[0], values_of(source)
    inputs = Inputs(np.array([10, 0, 10, 10]), np.ones((4, layer.count)) * [[1], [0], [1], [4]], experts=True)
    norms = np.sqrt(np.square(values(layer.down)).sum((1, 2)))
    found = Statistics(ABOUT, {layer.down: inputs})
    expected = norms * np.sqrt([1, 0, 1, 4]) / np.sqrt(10)
    assert np.allclose(scores.of_experts(layer, found, values), 10 * expected)
    routed = Statistics(ABOUT, {layer.down: replace(inputs, routed=np.array([5.0, 0, 1, 10]))})
    assert np.allclose(scores.of_experts(layer, routed, values), expected * [5, 0, 1, 10])
    alone = scores.of_experts(layer, None, values)
    assert np.allclose(alone, np.sqrt(scores.of_channels(layer, None, values).sum(1))) and alone.shape == (4,)


@pytest.mark.parametrize("name", ["phi3", "arcee", "gemma2", "olmo2", "qwen2_moe"])
def test_weights_alone_for_other_forms_of_layers(name):
    source, _ = decoders.source_of(name)
    layer, values = layers_of(source.model)[0], values_of(source)
    channels = scores.of_channels(layer, None, values)
    assert channels.shape[-1] == layer.count and channels.ndim == 1 + (layer.experts > 0) and (channels > 0).all()
    heads = scores.of_heads(layer, None, values)
    (value, rows), output = layer.value_rows(), np.square(values(layer.output)).sum(0)
    norm = layer.gains(layer.family.attention_norm)
    gains = 1 if norm is None else values(norm) + layer.family.gain
    squares = np.square(values(value)[rows] * gains).sum(1).reshape(2, 1, 16)
    assert np.allclose(heads, (output.reshape(2, 2, 16) * squares).sum((1, 2)))


def test_layers_are_scored_by_angles_or_by_what_they_write():
    source, _ = decoders.source_of("llama", num_hidden_layers=3)
    values = values_of(source)
    found = Statistics(ABOUT, {}, {}, {f"model.layers.{i}": angle for i, angle in enumerate((0.3, 0.1, 0.2))})
    assert scores.of_layers(source.model, found, values).tolist() == [0.3, 0.1, 0.2]
    alone = scores.of_layers(source.model, None, values)

    def added(layer):
        written = [values(f"model.layers.{layer}.{name}.weight") for name in ("self_attn.o_proj", "mlp.down_proj")]
        return sum(np.square(each).sum() / len(each) for each in written)

    stream = np.square(values("model.embed_tokens.weight")).mean() + added(0) + added(1)
    assert np.isclose(alone[1], np.sqrt(added(1) / stream))
    with pytest.raises(RecipeError, match="no angles"):
        scores.of_layers(source.model, Statistics(ABOUT, {}), values)


def test_the_largest_stay_in_their_order():
    assert scores.largest(np.array([3.0, 1, 2, 3]), 2).tolist() == [0, 3]
    assert scores.largest(np.array([1.0, 1, 1]), 2).tolist() == [0, 1]
    assert scores.largest(np.array([[1.0, 2, 3], [3, 2, 1]]), 2).tolist() == [[1, 2], [0, 1]]


def test_statistics_that_lack_a_weight():
    source, _ = decoders.source_of("llama")
    with pytest.raises(RecipeError, match=r"have none of 'model\.layers\.0\.mlp\.down_proj\.weight'"):
        scores.of_channels(layers_of(source.model)[0], Statistics(ABOUT, {}), values_of(source))
