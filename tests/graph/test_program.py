"""Documents of graphs: what is read, what comes back, and what is refused for its form."""

from __future__ import annotations

import json

import pytest

from aibit_format.errors import GraphError
from aibit_format.graph import program
from aibit_format.graph.program import Constant, Node, Program, Spec, Tensor, parse
from tests.support.graphs import document, encoded


def test_a_program_comes_back_as_it_was_written():
    parsed = parse(encoded(document()))
    assert parse(parsed.to_json()) == parsed
    assert parsed.to_json() == parse(parsed.to_json()).to_json()
    assert parsed.nodes[0] == Node("embedding", (0, Tensor("embed")), {}, Spec("bf16", (1, "s", 64)))
    assert parsed.nodes[13].operands == (Constant(0), 14)
    assert parsed.made_with == {"torch": "2.13"} and parsed.positions == 64


def test_a_document_is_written_a_node_a_line():
    made = Program((Node("last", (2,), {"x": 1}, Spec("f32", (1, "k", 3))),), (((2,), (0.5, 1.0)),), 9, {"torch": "2"})
    assert made.to_json().decode() == (
        '{"version":1,"made_with":{"torch":"2"},"positions":9,"constants":[{"shape":[2],"values":[0.5,1.0]}],"nodes":[\n'
        '{"operator":"last","operands":[2],"attributes":{"x":1},"dtype":"f32","shape":[1,"k",3]}\n]}\n'
    )


def _with(path, value):
    made = document()
    holder = made
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    return made


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("version",), 2, "version, expected 1, found 2"),
        (("version",), True, "'version', expected int, found True"),
        (("positions",), 0, "positions, expected 1 to 16777216, found 0"),
        (("positions",), 1 << 25, "positions"),
        (("positions",), 4.0, "'positions', expected int, found 4.0"),
        (("more",), 1, "the document: keys"),
        (("made_with",), {"torch": 2}, "made_with, expected versions as strings"),
        (("nodes",), [], "number of nodes, expected 1 to 65536, found 0"),
        (("nodes", 3), 7, "node 3: keys"),
        (("nodes", 3, "more"), 1, "node 3: keys"),
        (("nodes", 3, "operator"), 1, "node 3: 'operator', expected str, found 1"),
        (("nodes", 3, "attributes"), [], "node 3: 'attributes', expected dict"),
        (("nodes", 3, "operands"), [5], "node 3: operand, expected a value before 5, found 5"),
        (("nodes", 3, "operands"), [-1], "node 3: operand, expected a value before 5, found -1"),
        (("nodes", 3, "operands"), [True], "node 3: operand, expected the number of a value"),
        (("nodes", 3, "operands"), [1.0], "node 3: operand"),
        (("nodes", 3, "operands"), [{"tensor": 1}], "node 3: operand"),
        (("nodes", 3, "operands"), [{"constant": True}], "node 3: operand"),
        (("nodes", 3, "operands"), [{"constant": -1}], "node 3: operand"),
        (("nodes", 3, "operands"), [{"tensor": "q", "constant": 0}], "node 3: operand"),
        (("nodes", 3, "dtype"), "f64", "node 3: dtype, expected one of i64, f32, bf16, f16, found f64"),
        (("nodes", 3, "shape"), [], "node 3: shape"),
        (("nodes", 3, "shape"), [1] * 7, "node 3: shape"),
        (("nodes", 3, "shape"), ["s", "s"], "node 3: shape"),
        (("nodes", 3, "shape"), ["s", "k"], "node 3: shape"),
        (("nodes", 3, "shape"), [1, "t"], "node 3: shape"),
        (("nodes", 3, "shape"), [1, True], "node 3: shape"),
        (("nodes", 3, "shape"), [1, 0], "node 3: elements"),
        (("nodes", 3, "shape"), [1, -4], "node 3: elements"),
        (("nodes", 3, "shape"), [10**40], "node 3: elements, expected at most 268435456 for each token"),
        (("nodes", 3, "shape"), [1 << 15, 1 << 15], "node 3: elements"),
        (("constants", 0, "shape"), [], "constant 0: shape"),
        (("constants", 0, "shape"), [8, True], "constant 0: shape"),
        (("constants", 0, "shape"), [1 << 20] * 6, "constant 0: numbers"),
        (("constants", 0, "shape"), [1 << 40], "constant 0: shape"),
        (("constants", 0, "shape"), [9], "constant 0: numbers, expected 9, found 8"),
        (("constants", 0, "values"), [1] * 7 + [10**400], "constant 0: not all are finite numbers"),
        (("constants", 0, "values"), [1] * 7 + [1e39], "constant 0: not all are finite numbers"),
        (("constants", 0, "values"), [1] * 7 + [True], "constant 0: not all are finite numbers"),
        (("constants", 0, "values"), [1] * 7 + ["1"], "constant 0: not all are finite numbers"),
    ],
)
def test_another_form_is_refused_and_says_where(path, value, says):
    with pytest.raises(GraphError) as caught:
        parse(encoded(_with(path, value)))
    assert says in str(caught.value) and caught.value.code == "AIB-E907"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
def test_numbers_that_are_none_are_refused(number):
    with pytest.raises(GraphError):
        parse(encoded(document()).replace(b"0.0078125", number.encode()))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b"\xff", b'{"version":1,"version":1}', b"[" * 9999])
def test_what_is_no_document_is_refused(data):
    with pytest.raises(GraphError):
        parse(data)


def test_a_million_nodes_are_refused():
    line = b'{"operator":"x"},'
    head = b'{"version":1,"made_with":{},"positions":1,"constants":[],"nodes":['
    with pytest.raises(GraphError, match="too many bytes"):
        parse(head + line * 1_000_000 + b"{}]}")
    with pytest.raises(GraphError, match="number of nodes, expected 1 to 65536, found 1000000"):
        parse(head + b"0," * 999_999 + b"0]}")


def test_constants_are_bounded_together(monkeypatch):
    monkeypatch.setattr(program, "MAX_CONSTANTS", 12)
    made = document()
    made["constants"] *= 2
    with pytest.raises(GraphError, match="constant 1: shape, expected 1 to 6 sizes, at most 4 numbers"):
        parse(encoded(made))


def test_attributes_may_be_left_out():
    made = document()
    for each in made["nodes"]:
        if not each["attributes"]:
            del each["attributes"]
    assert parse(encoded(made)) == parse(encoded(document()))
    assert "attributes" not in json.loads(parse(encoded(made)).to_json())["nodes"][0]
