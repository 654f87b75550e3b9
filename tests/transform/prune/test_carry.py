"""Statistics of what is left are those of the whole model without what is gone."""

import numpy as np

from aibit_format.schemes.select import COLUMNS, MATRICES
from aibit_format.transform.prune.plan import Plan
from aibit_format.transform.prune.source import Pruned
from aibit_format.transform.prune.widths import layers_of
from tests.support import decoders


def test_columns_and_layers():
    source, _ = decoders.source_of("llama", num_hidden_layers=3)
    statistics = decoders.statistics(source)
    kept = np.array([0, 5, 7])
    made = Pruned(source, Plan(np.array([0, 2]), channels=dict.fromkeys(range(3), kept)))
    carried = made.carried(statistics)
    carried.check({n: s.columns for n, s in made.model.parameters.items() if s.takes_inputs}, "x")
    old = statistics.inputs["model.layers.2.mlp.down_proj.weight"]
    new = carried.inputs["model.layers.1.mlp.down_proj.weight"]
    assert np.array_equal(new.sum2, old.sum2[:, kept]) and np.array_equal(new.largest, old.largest[:, kept])
    assert np.array_equal(new.hessian[0], old.hessian[0][np.ix_(kept, kept)]) and new.counts is old.counts
    query = "self_attn.q_proj.weight"
    assert carried.inputs[f"model.layers.1.{query}"] is statistics.inputs[f"model.layers.2.{query}"]


def test_columns_of_each_expert():
    source, _ = decoders.source_of("mixtral")
    statistics = decoders.statistics(source)
    layers, experts = layers_of(source.model), np.array([1, 3])
    columns = np.array([[0, 2], [5, 6]])
    made = Pruned(source, Plan(channels=dict.fromkeys(layers, columns), experts=dict.fromkeys(layers, experts)))
    name = layers[0].down
    old, new = statistics.inputs[name], made.carried(statistics).inputs[name]
    assert np.array_equal(new.sum2, [old.sum2[1][[0, 2]], old.sum2[3][[5, 6]]])
    assert np.array_equal(new.hessian[1], old.hessian[3][np.ix_([5, 6], [5, 6])])
    assert new.counts.tolist() == old.counts[experts].tolist() and new.percentiles is old.percentiles
    assert {MATRICES, COLUMNS} == {*made._cuts[name].model}
