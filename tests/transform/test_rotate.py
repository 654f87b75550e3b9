"""A rotated model says the same, its norms are flat, and statistics are rotated with it."""

from dataclasses import replace

import numpy as np
import pytest

from aibit_format.calibrate.statistics import Inputs
from aibit_format.errors import RecipeError
from aibit_format.formats.sources import values
from aibit_format.transform.changes import Scale
from aibit_format.transform.hadamard import Rotation
from aibit_format.transform.method import Context
from aibit_format.transform.rotate import rotate
from aibit_format.transform.structure import decoder_of
from tests.support import decoders

CONTEXT = Context(lambda *_: None)
OUTPUT, QUERY = "model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.q_proj.weight"
NORMS_OF_SUMS = {"gemma2", "gemma3_text", "glm4", "olmo2", "olmo3", "exaone4"}
CENTRED = {"olmo", "stablelm"}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", [name for name in decoders.NAMES if name not in NORMS_OF_SUMS | CENTRED])
def test_logits_stay(name, tied):
    source, expected = decoders.source_of(name, tie_word_embeddings=tied)
    made, _ = rotate(source, None, CONTEXT, "rotate,seed=3", 3)
    assert decoders.apart(made, expected) < 2e-5
    assert not made.model.ties and bool(made.notes) == tied
    assert made.metadata["transform.applied"] == ["rotate,seed=3"]
    assert np.abs(values(made, OUTPUT)[0] - values(source, OUTPUT)[0]).max() > 0.1
    for channels in decoder_of(source.model).stream.norms:
        assert np.unique(values(made, channels.writers[0].name)[0]) == [1 - channels.gain]


def test_a_note_tells_what_the_head_costs():
    source, _ = decoders.source_of("llama", tie_word_embeddings=True)
    (note,) = rotate(source, None, CONTEXT, "rotate,seed=0", 0)[0].notes
    assert "no longer tied" in note and "0.1 MB more in f64" in note and "lm_head" in note


@pytest.mark.parametrize("name", sorted(NORMS_OF_SUMS | CENTRED))
def test_what_cannot_be_rotated_is_refused_with_the_reason(name):
    source, _ = decoders.source_of(name)
    why = "subtract the mean" if name in CENTRED else "is multiplied by post_"
    with pytest.raises(RecipeError, match=rf"rotate,seed=0: \w+ForCausalLM cannot be rotated: .*{why}"):
        rotate(source, None, CONTEXT, "rotate,seed=0", 0)


def test_weights_that_stand_out_are_spread():
    source, _ = decoders.source_of("llama")
    name = "model.layers.0.mlp.gate_proj.weight"
    spike = np.ones(64)
    spike[7] = 100
    source = source.transformed("spike", {name: [Scale(-1, spike)]})
    before, after = (values(each, name)[0] for each in (source, rotate(source, None, CONTEXT, "rotate", 0)[0]))
    peak = [np.abs(each).max() / each.std() for each in (before, after)]
    assert peak[0] > 15 and peak[1] < 6


def test_statistics_with_hessians_are_those_of_rotated_inputs():
    source, _ = decoders.source_of("llama")
    random = np.random.default_rng(0)
    x = random.normal(size=(50, 64)) * np.exp(random.normal(size=64))
    inputs = Inputs(np.array([50]), (x**2).sum(0)[None], hessian=(x.T @ x).astype(np.float32)[None])
    found = decoders.statistics(source)
    found.inputs[QUERY] = inputs
    gain = values(source, "model.layers.0.input_layernorm.weight")[0]
    _, after = rotate(source, found, CONTEXT, "rotate", 0)
    turned = Rotation.seeded(64, 0).apply(x / gain)
    assert np.allclose(after.inputs[QUERY].sum2[0], (turned**2).sum(0), rtol=1e-4)
    assert np.allclose(after.inputs[QUERY].hessian[0], turned.T @ turned, rtol=1e-3, atol=1e-3)
    down = "model.layers.0.mlp.down_proj.weight"
    assert after.inputs[down] is found.inputs[down]  # what goes into it is not rotated


def test_without_hessians_columns_share_what_they_had():
    source, _ = decoders.source_of("llama")
    found = decoders.statistics(source)
    for name, inputs in list(found.inputs.items()):
        found.inputs[name] = replace(inputs, hessian=None)
    _, after = rotate(source, found, CONTEXT, "rotate", 0)
    gain = values(source, "model.layers.0.input_layernorm.weight")[0]
    query, output = after.inputs[QUERY], after.inputs[OUTPUT]
    assert np.allclose(query.sum2, (found.inputs[QUERY].sum2 / gain**2).mean())
    assert np.allclose(output.sum2[0], np.repeat(found.inputs[OUTPUT].sum2.reshape(4, 16).mean(1), 16))
    assert query.largest is query.sum is query.magnitude is query.hessian is None
