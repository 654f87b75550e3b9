"""Runs several nodes of a program in one step where compiled code does: products of the same inputs, and attention.

A program stays as it is: what is joined here depends on the machine and the schemes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ...graph.program import INPUTS, Node, Program, Tensor
from ..kernels import functional, operators
from ..kernels.packed import PackedProduct, PackedWeight
from .cache import attend
from .steps import Binding

Run = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Step:
    """Computes values from values, by their numbers; ``run`` returns a tensor, or several for several results."""

    run: Run
    operands: tuple[int, ...]
    results: tuple[int, ...]


def plan(binding: Binding) -> list[Step]:
    """Return the steps of a program, in the order in which they run."""
    program = binding.program
    made: dict[int, Step] = {}  # by the number of the node at whose place it runs
    absorbed: set[int] = set()
    uses = Counter(each for node in program.nodes for each in node.operands if isinstance(each, int))
    for numbers in _products(binding):
        made[numbers[0]] = _joined_products(binding, numbers)
        absorbed.update(numbers)
    if operators.COMPILED:
        for number, node in _numbered(program):
            found = _turned(program, node, uses) if node.operator == "attention" else None
            if found is not None:
                inside, taken = found
                made[number] = Step(_turned_attention(binding, node), taken, (number,))
                absorbed.update(inside, [number])
    steps = []
    for number, node in _numbered(program):
        if number in made:
            steps.append(made[number])
        elif number not in absorbed:
            run, operands = binding.step(node)
            steps.append(Step(run, operands, (number,)))
    return steps


def _numbered(program: Program) -> Iterable[tuple[int, Node]]:
    return enumerate(program.nodes, INPUTS)


def _products(binding: Binding) -> list[list[int]]:
    """Return the numbers of nodes that multiply the same inputs with weights in one compiled format."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for number, node in _numbered(binding.program):
        if node.operator == "linear":
            weight = node.operands[1]
            info = binding.file.info(weight.name)  # type: ignore[union-attr]
            product = functional.row_product(info.scheme)
            if isinstance(product, PackedProduct) and info.scheme.unordered == info.scheme:
                groups[node.operands[0], info.shape[1]].append(number)
    return [numbers for numbers in groups.values() if len(numbers) > 1]


def _joined_products(binding: Binding, numbers: list[int]) -> Step:
    nodes = [binding.program.nodes[number - INPUTS] for number in numbers]
    weights: list[PackedWeight] = []
    biases: list[torch.Tensor | None] = []
    product: Any = None
    for node in nodes:
        weight = node.operands[1]
        info, planes = binding.planes(weight.name)  # type: ignore[union-attr]
        product = functional.row_product(info.scheme)
        weights.append(product.format.weight(planes, tuple(info.shape)))
        bias = node.operands[2:]
        biases.append(binding.tensor(bias[0].name) if bias and isinstance(bias[0], Tensor) else None)
    alone = [binding.step(node)[0] for node in nodes]

    def run(x: torch.Tensor) -> list[torch.Tensor]:
        if product.accepts(x):
            return product.products(x, weights, biases)
        return [step(x) for step in alone]

    (x,) = (each for each in nodes[0].operands if isinstance(each, int))
    return Step(run, (x,), tuple(numbers))


def _turned(program: Program, node: Node, uses: Counter[int]) -> tuple[list[int], tuple[int, ...]] | None:
    """Return the nodes between projections and an attention, and what they take, if queries and keys are turned.

    Those are transposes of [1, tokens, heads, elements], and rotary embeddings by the same angles.
    """

    def producer(number: Any, operator: str) -> Node | None:
        if not isinstance(number, int) or number < INPUTS or uses[number] != 1:
            return None
        found = program.nodes[number - INPUTS]
        return found if found.operator == operator else None

    def turned_back(number: Any) -> int | None:
        found = producer(number, "transpose")
        if found is None or (found.attributes["first"], found.attributes["second"]) != (1, 2):
            return None
        return found.operands[0]  # type: ignore[return-value]

    query, key, value = node.operands
    queries, keys = producer(query, "rotary"), producer(key, "rotary")
    if queries is None or keys is None or queries.operands[1:] != keys.operands[1:]:
        return None
    sources = [turned_back(each) for each in (queries.operands[0], keys.operands[0], value)]
    sizes = [queries.spec.shape[3], program.nodes[value - INPUTS].spec.shape[3]]  # type: ignore[operator]
    if any(each is None for each in sources) or any(not isinstance(size, int) or size % 16 for size in sizes):
        return None
    inside = [query, key, value, queries.operands[0], keys.operands[0]]
    return inside, (*sources, *queries.operands[1:])  # type: ignore[return-value]


def _turned_attention(binding: Binding, node: Node) -> Run:
    layer, scale, window, cap = (node.attributes[key] for key in ("layer", "scale", "window", "cap"))
    cache, call = binding.caches[layer], binding.call

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cosines: Any, sines: Any) -> torch.Tensor:
        first = call.first
        keys, values = cache.room(first, key, value)
        cosines, sines = cosines[:, 0], sines[:, 0]
        turned = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        operators.rotary(query, cosines, sines, turned, 0)
        operators.rotary(key, cosines, sines, keys, first)
        operators.rotary(value, None, None, values, first)
        return attend(turned, keys, values, first, scale, window, cap)

    return run
