"""Reads the ``config_groups`` of a compressed-tensors config, and finds the group of a module.

    config_groups.NAME.targets   names of modules, "re:" and a regular expression, or classes of modules ("Linear")
    config_groups.NAME.weights   num_bits, type (int, float), symmetric, strategy, group_size, block_structure, actorder
    config_groups.NAME.input_activations   the same of the inputs of its modules, and whether they are dynamic
    config_groups.NAME.format    of these modules, if ``format`` is "mixed-precision"
    ignore                       names, expressions and classes that are not quantized

As in ``match_targets`` of the library, an exact name goes before an expression, and that before a class. A checkpoint
does not say of which classes its modules are: here a group of Embedding has those that are named so, and one of another
class all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_EXPRESSION = "re:"
# Classes of modules that are no embeddings, and of embeddings.
_CLASSES = {
    False: re.compile(r"\w*Linear(Base)?|\w*Experts|FusedMoE"),
    True: re.compile(r"\w*Embedding|ParallelLMHead"),
}
_EMBEDDING = re.compile(r"(^|[._])(embed|wte|wpe|word_embeddings)[^.]*$|embeddings?$|(^|\.)wte$")
_STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")
_SHARED = ("group", "tensor_group")  # strategies with a group_size


class ConfigError(ValueError):
    """Raised for settings that mean nothing, or are not followed here; the message names them."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """Hold how the weights of a group are quantized. ``group`` and ``block`` are None unless the strategy has them."""

    bits: int
    is_float: bool
    symmetric: bool
    strategy: str
    group: int | None
    block: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class InputArguments:
    """Hold how inputs are quantized to 8-bit integers: each row as it comes, if ``dynamic``, or with a stored scale."""

    dynamic: bool
    symmetric: bool


@dataclass(frozen=True)
class Group:
    """Hold a group: its name, its targets, how its weights are quantized, and the format that they are stored in.

    ``inputs`` is None for inputs that are not quantized, or in a way that no scheme says.
    """

    name: str
    targets: tuple[str, ...]
    weights: Arguments
    format: str
    inputs: InputArguments | None = None
    used: list[str] = field(default_factory=list)  # modules that were found to be in it


def read_groups(said: Mapping[str, Any]) -> list[Group]:
    """Read the groups of a config whose weights are quantized.

    Raises:
        ConfigError: a value is missing, or has no meaning.
    """
    groups = said.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise ConfigError(f"config_groups {str(groups)[:80]}, expected an object of groups")
    found = [_group(str(name), group, said.get("format")) for name, group in groups.items()]
    return [group for group in found if group is not None]


def _group(name: str, said: Any, default: Any) -> Group | None:
    if isinstance(said, list):
        raise ConfigError(f"config group {name!r}, the name of a preset; write it out (the library does when it saves)")
    if not isinstance(said, Mapping):
        raise ConfigError(f"config group {name!r} {str(said)[:80]}, expected an object")
    targets = said.get("targets")
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        raise ConfigError(f"config group {name!r}, targets {str(targets)[:80]}, expected a list of names")
    for target in targets:
        check_expression(target)
    if said.get("weights") is None:  # only activations
        return None
    format = said.get("format") or default
    return Group(
        name, tuple(targets), _arguments(name, said["weights"]), str(format), _inputs(said.get("input_activations"))
    )


def _arguments(name: str, said: Any) -> Arguments:
    if not isinstance(said, Mapping):
        raise ConfigError(f"config group {name!r}, weights {str(said)[:80]}, expected an object")
    bits, kind = said.get("num_bits", 8), said.get("type", "int")
    group, block, strategy = said.get("group_size"), said.get("block_structure"), said.get("strategy")
    if strategy is None:  # as the library infers it
        strategy = "tensor" if group is None else "channel" if group == -1 else "group"
    wrong = {
        "num_bits": type(bits) is not int or not 1 <= bits <= 8,
        "type": kind not in ("int", "float"),
        "strategy": strategy not in _STRATEGIES,
        "group_size": strategy in _SHARED and (type(group) is not int or group < 1),
        "symmetric": type(said.get("symmetric", True)) is not bool,
    }
    for key in filter(wrong.get, wrong):
        raise ConfigError(f"config group {name!r}, {key} {str(said.get(key))[:80]!r} of weights, which has no meaning")
    return Arguments(
        bits, kind == "float", said.get("symmetric", True), strategy, group if strategy in _SHARED else None,
        _block(name, block) if strategy == "block" else None,
    )  # fmt: skip


def _inputs(said: Any) -> InputArguments | None:
    if not isinstance(said, Mapping) or said.get("num_bits", 8) != 8 or said.get("type", "int") != "int":
        return None
    dynamic, symmetric = said.get("dynamic", False), said.get("symmetric", True)
    if said.get("group_size") is not None or symmetric not in (True, False):
        return None
    how = said.get("strategy") or "tensor", dynamic, symmetric
    known = (("token", True, True), ("tensor", False, True), ("tensor", False, False))
    return InputArguments(dynamic, symmetric) if how in known else None


def _block(name: str, said: Any) -> tuple[int, int]:
    if isinstance(said, str) and re.fullmatch(r"\d{1,9}x\d{1,9}", said):  # as older versions wrote it
        said = [int(size) for size in said.split("x")]
    if not isinstance(said, list) or len(said) != 2 or not all(type(n) is int and n > 0 for n in said):
        raise ConfigError(f"config group {name!r}, block_structure {str(said)[:80]!r}, expected two sizes")
    return said[0], said[1]


def rounds_inputs(group: Group) -> bool:
    """Tell whether weights of a group and their inputs are 8-bit integers as int8-dynamic or int8-static has them."""
    said = group.weights
    whole = said.symmetric and said.strategy in ("channel", "tensor") and said.bits == 8 and not said.is_float
    return group.inputs is not None and whole and group.format in ("int-quantized", "naive-quantized")


def check_expression(target: str) -> None:
    """Raise ConfigError if a target is no regular expression, and says that it is."""
    if target.startswith(_EXPRESSION):
        try:
            re.compile(target.removeprefix(_EXPRESSION))
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(f"target {target!r}, no regular expression: {error}") from error


def names_module(target: str, module: str) -> bool:
    """Tell whether a target names a module, itself or by an expression."""
    if target.startswith(_EXPRESSION):
        return re.match(target.removeprefix(_EXPRESSION), module) is not None
    return target == module


def group_of(groups: Sequence[Group], module: str) -> Group | None:
    """Return the group that a quantized module is in."""
    pairs = [(target, group) for group in groups for target in group.targets]
    exact = next((group for target, group in pairs if target == module), None)
    by_expression = next((group for target, group in pairs if names_module(target, module)), None)
    if found := exact or by_expression:
        return found
    embedding = _EMBEDDING.search(module) is not None
    by_class = next((group for target, group in pairs if _CLASSES[embedding].fullmatch(target)), None)
    return by_class or next((group for target, group in pairs if _CLASSES[False].fullmatch(target)), None)
