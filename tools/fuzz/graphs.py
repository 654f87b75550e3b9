"""Documents of stored graphs: what is accepted comes out the same, is accepted again, and has bounds."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

from . import Mutate, json_text
from .mutation import OneOf

_SHAPES = {"embed": (160, 64), "norm": (64,), "up": (128, 64), "down": (64, 128), "gate": (128, 64)}


class Graphs:
    """A document, checked against the tensors of a small model."""

    def __init__(self) -> None:
        from aibit_format.graph import check, program
        from aibit_format.schemes import make

        self._check, self._program = check.check, program
        self._tensors: Any = {
            name: SimpleNamespace(name=name, shape=shape, dtype="bf16", scheme=make("bf16"), transposed=False)
            for name, shape in _SHAPES.items()
        }

    def run(self, data: bytes) -> str:
        """Parse and check a document; nothing of it is run."""
        from aibit_format.errors import GraphError

        try:
            program = self._program.parse(data)
            self._check(program, self._tensors)
        except GraphError as error:
            return error.code
        if self._program.parse(program.to_json()) != program:
            raise ValueError("another program when it is read again")
        self._check(program, self._tensors)
        return f"{len(program.nodes)} nodes"

    def seeds(self) -> dict[str, bytes]:
        """Return programs of a small model, with operators of each kind."""

        def node(operator: str, operands: list[Any], sizes: list[Any], dtype: str = "bf16", /, **given: Any) -> Any:
            return {"operator": operator, "operands": operands, "attributes": given, "dtype": dtype, "shape": sizes}

        token, wide, heads = [1, "s", 64], [1, "s", 128], [1, 4, "s", 16]
        split = [1, "s", 4, 16]
        logits = [1, "k", 160]
        nodes = [
            node("embedding", [0, {"tensor": "embed"}], token),
            node("rms_norm", [2, {"tensor": "norm"}], token, epsilon=1e-5, offset=0.0, rounds=True),
            node("reshape", [3], split, shape=split),
            node("transpose", [4], heads, first=1, second=2),
            node("attention", [5, 5, 5], split, layer=0, scale=0.25, window=0, cap=0.0),
            node("reshape", [6], token, shape=token),
            node("add", [2, 7], token),
            node("linear", [8, {"tensor": "gate"}], wide),
            node("linear", [8, {"tensor": "up"}], wide),
            node("gated", [9, 10], wide, activation="silu"),
            node("linear", [11, {"tensor": "down"}], token),
            node("mul", [12], token, other=0.5),
            node("last", [13], [1, "k", 64]),
            node("linear", [14, {"tensor": "embed"}], logits),
        ]
        places = [
            node("unsqueeze", [1], [1, "s", 1], "i64", dimension=2),
            node("cast", [2], [1, "s", 1], "f32", dtype="f32"),
            node("mul", [3, {"constant": 0}], [1, "s", 4], "f32"),
            node("cat", [4, 4], [1, "s", 8], "f32", dimension=2),
            node("cos", [5], [1, "s", 8], "f32"),
            node("slice", [6], [1, "s", 4], "f32", dimension=2, start=0, stop=4),
            node("expand", [7], [1, "s", 4], "f32", shape=[1, "s", 4]),
            node("mean", [8], [1, "s", 1], "f32"),
            node("last", [9], [1, "k", 1], "f32"),
        ]
        encoder = list(nodes)
        encoder[4] = node("full_attention", [5, 5, 5], split, scale=0.25, cap=0.0)
        constants = [{"shape": [4], "values": [1.0, 0.5, 0.25, 0.125]}]
        head = {"version": 1, "made_with": {"torch": "2"}, "positions": 64, "constants": constants}
        return {
            name: json.dumps(head | {"nodes": each}, separators=(",", ":")).encode()
            for name, each in (("model", nodes), ("encoder", encoder), ("places", places))
        }

    def mutator(self, mutate: Mutate) -> OneOf:
        """Return changes of a document's values, names and text."""

        def content(data: bytes, rng: random.Random) -> bytes:
            return json_text.changed(data, rng, mutate)

        return OneOf(mutate, [content])
