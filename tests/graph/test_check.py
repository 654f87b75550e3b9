"""Programs against a file: what is refused before anything runs, and nothing but a coded error whatever is changed."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibit_format.errors import GraphError
from aibit_format.graph.check import check
from aibit_format.graph.operators import OPERATORS
from aibit_format.graph.program import parse
from tests.support.graphs import TENSORS, document, encoded, node, tensor
from tests.support.random_models import calm


def checked(made, tensors=TENSORS):
    check(parse(encoded(made)), tensors)


def test_a_good_program_passes():
    checked(document())


@pytest.mark.parametrize(
    ("index", "change", "says"),
    [
        (3, {"operator": "eval"}, "node 3 (eval): unknown operator, expected one of neg"),
        (3, {"operator": "__import__"}, "unknown operator"),
        (3, {"operands": [3]}, "node 3 (linear): operands, expected 2 to 3, found 1"),
        (3, {"operands": [3] * 4}, "operands, expected 2 to 3, found 4"),
        (3, {"operands": [3, {"tensor": "none"}]}, "node 3 (linear): no such tensor in the file, found none"),
        (3, {"operands": [3, {"tensor": "turned"}]}, "tensor 'turned', expected one that is not transposed"),
        (3, {"operands": [3, {"tensor": "q"}]}, "result, expected bf16 [1, 's', 64], found bf16 [1, 's', 32]"),
        (3, {"operands": [3, 4]}, "operand 1, expected a tensor of the file, found 4"),
        (3, {"operands": [{"constant": 0}, {"tensor": "k"}]}, "operand 0, expected the number of a value"),
        (3, {"operands": [3, {"tensor": "k"}, {"constant": 0}]}, "operand 2, expected a tensor of the file"),
        (4, {"operands": [3, {"tensor": "v"}, {"tensor": "wide"}]}, "dtypes, expected bf16, found bf16, bf16, f32"),
        (3, {"operands": [3, {"tensor": "k"}, {"tensor": "norm"}]}, "bias, expected [32], found bf16 [64]"),
        (3, {"dtype": "f32"}, "node 3 (linear): result, expected bf16 [1, 's', 32], found f32 [1, 's', 32]"),
        (3, {"shape": [1, "s", 33]}, "result"),
        (3, {"attributes": {"transposed": True}}, "attributes, expected [], found ['transposed']"),
        (1, {"attributes": {"epsilon": 1e-5, "offset": 0.0}}, "node 1 (rms_norm): attributes, expected"),
        (1, {"attributes": {"epsilon": 1e-5, "offset": 0.0, "rounds": 1}}, "attribute 'rounds', found 1"),
        (1, {"attributes": {"epsilon": True, "offset": 0.0, "rounds": True}}, "attribute 'epsilon', found True"),
        (1, {"operands": [2, {"tensor": "wide"}]}, "weight, expected bf16 [64], found f32 [64]"),
        (1, {"operands": [2, {"tensor": "embed"}]}, "tensor 'embed', expected 1 to 67108864 floats"),
        (1, {"operands": [2, {"tensor": "count"}]}, "tensor 'count', expected 1 to 67108864 floats"),
        (13, {"operands": [{"constant": 1}, 14]}, "node 13 (matmul): constant, expected less than 1, found 1"),
        (5, {"attributes": {"shape": [1, "s", 4, 17]}}, "node 5 (reshape): elements"),
        (32, {"operands": [32, {"tensor": "head"}]}, "node 32 (linear): result"),
    ],
)
def test_another_node_is_refused_and_named(index, change, says):
    made = document()
    made["nodes"][index].update(change)
    with pytest.raises(GraphError) as caught:
        checked(made)
    assert says in str(caught.value)


def test_values_and_weights_meet_in_one_dtype():
    made = document()
    with pytest.raises(GraphError, match=r"node 4 \(linear\): dtypes, expected bf16, found bf16, f32"):
        checked(made, TENSORS | {"v": tensor("v", (32, 64), "f32")})
    checked(made, TENSORS | {"q": tensor("q", (64, 64), "f32", "int8")})  # decoded to the values' dtype


def test_the_last_value_is_logits():
    made = document()
    made["nodes"].append(node("add", [34, 34], "bf16", [1, "k", 160]))
    checked(made)
    made["nodes"].append(node("neg", [2], "bf16", [1, "s", 64]))
    with pytest.raises(GraphError, match="the last value, expected logits"):
        checked(made)


@pytest.mark.parametrize("layer", [0, 2, 1 << 30])
def test_each_layer_attends_once(layer):
    made = document()
    again = copy.deepcopy(made["nodes"][24])
    again["attributes"]["layer"] = layer
    made["nodes"].append(again)
    made["nodes"].append(node("last", [32], "bf16", [1, "k", 64]))
    with pytest.raises(GraphError, match="layer"):
        checked(made)


def test_memory_is_bounded():
    def grown(*added):
        made = document()
        made["nodes"][32:32] = added
        made["nodes"][-1]["operands"][0] = 33
        return made

    large = [1, "s", 1 << 27]
    with pytest.raises(GraphError, match="elements of all values, expected at most 268435456 for each token"):
        checked(grown(*[node("expand", [{"constant": 1}], "f32", large, shape=large)] * 2) | {"constants": [
            *document()["constants"], {"shape": [1, 1, 1], "values": [1]},
        ]})  # fmt: skip
    wide = node("expand", [{"constant": 1}], "f32", [1, 1, "s", 1 << 22], shape=[1, 1, "s", 1 << 22])
    attends = node("attention", [34] * 3, "f32", [1, "s", 1, 1 << 22], layer=1, scale=1.0, window=0, cap=0.0)
    with pytest.raises(GraphError, match="keys and values, expected at most 4194304 for each token"):
        checked(grown(wide, attends) | {"constants": [
            *document()["constants"], {"shape": [1, 1, 1, 1], "values": [1]},
        ]})  # fmt: skip


def _places(value):
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


evil = st.sampled_from(
    [None, True, 0, 1, -1, 2, 16, 64, 2**31, 10**400, 0.5, 1e39, -1e30, "", "s", "k", "q", [], {}, [1, "s", 64], ["s"],
     {"tensor": "k"}, {"constant": 0}, "bf16", "f32", *OPERATORS]
)  # fmt: skip


@calm
@given(st.lists(st.tuples(st.randoms(use_true_random=False), evil, st.booleans()), min_size=1, max_size=3))
def test_a_changed_document_is_refused_or_passes_whole(changes):
    made = document()
    for random, value, drop in changes:
        holder, key = random.choice(list(_places(made)))
        if drop and random.random() < 0.3:
            del holder[key]
        elif drop:
            other, place = random.choice(list(_places(made)))
            holder[key] = copy.deepcopy(other[place])
        else:
            holder[key] = copy.deepcopy(value)
    try:
        program = parse(encoded(made))
        check(program, TENSORS)
    except GraphError as error:
        assert error.what and len(str(error)) < 2000
    else:
        assert parse(program.to_json()) == program
