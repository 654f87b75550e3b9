"""Knows which rows and columns belong to a channel of an MLP, to a head, and to an expert, in the weights of a layer.

Channels are written by ``up`` and ``gate`` and read by ``down``. A head of keys and values is read by some heads of
queries, whose outputs are columns of the matrix behind attention; all these go together. An expert is a matrix of each
stack, and a row of its router.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import RecipeError
from ...hf.meta_model import MetaModel, ParameterSpec
from ...schemes.select import COLUMNS, MATRICES, ROWS
from ..families import ATTENTION_WRITES, FAMILIES, FUSED_VALUES, GATED, VALUES, Family
from .layers import layer_list, layer_of, text_config

Selected = dict[str, dict[int, np.ndarray]]  # name of a parameter -> axis -> which are kept

_QUERIES, _KEYS = "self_attn.q_proj", "self_attn.k_proj"
_NORMS = {"self_attn.q_norm": _QUERIES, "self_attn.k_norm": _KEYS}  # of all heads together, in some families
_ROUTERS = ("mlp.gate", "block_sparse_moe.router.layer", "block_sparse_moe.router")
# What is cut -> keys of a config that say how many there are, the first of which counts.
CHANNELS, CHANNELS_OF_EXPERTS = ("intermediate_size",), ("moe_intermediate_size", "intermediate_size")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Layer:
    """Describe the widths of a layer. Names of parameters begin with ``prefix``.

    ``reader`` is the weight that reads the channels, ``count`` their number in each of ``experts``; ``experts`` is 0
    without any. ``heads`` are those of queries, in ``groups`` that share keys and values, of ``size`` channels each.
    """

    prefix: str
    tensors: Mapping[str, ParameterSpec]
    up: str
    gate: str | None
    reader: str
    count: int
    experts: int
    heads: int
    groups: int
    size: int
    family: Family = field(default_factory=Family)

    @property
    def down(self) -> str:
        """Return the name of the weight that reads the channels."""
        return self.prefix + str(self._weight(self.reader))

    @property
    def output(self) -> str:
        """Return the name of the weight that reads what attention gives."""
        return self.prefix + str(self._weight(ATTENTION_WRITES))

    def writers(self) -> list[tuple[str, slice]]:
        """Return the weights whose rows write the channels, and which of their rows: up and gate are multiplied."""
        parts = [part for part in (self.up, self.gate) if part]
        rows = [slice(None)] if self.gate is not None else [slice(0, self.count), slice(self.count, None)]
        return [(self.prefix + str(self._weight(part)), each) for part in parts for each in rows]

    def value_rows(self) -> tuple[str, slice]:
        """Return the weight whose rows write the values of heads, and which of its rows."""
        if self._weight(FUSED_VALUES) is None:
            return self.prefix + str(self._weight(VALUES)), slice(None)
        return self.prefix + str(self._weight(FUSED_VALUES)), slice((self.heads + self.groups) * self.size, None)

    def gains(self, norm: str | None) -> str | None:
        """Return the name of the weight of a norm; ``None`` if there is none."""
        return None if norm is None or f"{norm}.weight" not in self.tensors else f"{self.prefix}{norm}.weight"

    def channels(self, kept: np.ndarray) -> Selected:
        """Return what is kept with some channels, i64 [n] or [experts, n]."""
        rows = np.concatenate([kept, kept + self.count], -1) if self.gate is None else kept
        found = {name: {ROWS: rows} for part in (self.up, self.gate) if part for name in self._both(part)}
        return found | {self.down: {COLUMNS: kept}}

    def groups_kept(self, kept: np.ndarray) -> Selected:
        """Return what is kept with some heads of keys and values."""
        each = self.heads // self.groups
        queries, values = _spread(kept, each * self.size), _spread(kept, self.size)
        found: Selected = {self.output: {COLUMNS: queries}}
        if self._weight(FUSED_VALUES) is not None:
            at = self.heads * self.size, (self.heads + self.groups) * self.size
            rows = np.concatenate([queries, values + at[0], values + at[1]])
            return found | {name: {ROWS: rows} for name in self._both(FUSED_VALUES)}
        for module, rows in ((_QUERIES, queries), (_KEYS, values), (VALUES, values)):
            found |= {name: {ROWS: rows} for name in self._both(module)}
        for norm, of in _NORMS.items():
            for name in self._both(norm):
                if self.tensors[name.removeprefix(self.prefix)].shape[0] > self.size:
                    found[name] = {ROWS: queries if of == _QUERIES else values}
        return found

    def experts_kept(self, kept: np.ndarray) -> Selected:
        """Return what is kept with some experts."""
        stacks = {name for part in (self.up, self.gate, self.reader) if part for name in self._both(part)}
        found: Selected = {name: {MATRICES: kept} for name in stacks}
        router = next((each for each in _ROUTERS if self._weight(each) is not None), None)
        if router is None:
            raise RecipeError(f"{self.prefix}*: its router is not known, whose rows belong to experts")
        return found | {name: {ROWS: kept} for name in self._both(router)}

    def _weight(self, name: str) -> str | None:
        return next((each for each in (f"{name}.weight", name) if each in self.tensors), None)

    def _both(self, name: str) -> Iterator[str]:
        """Yield the names of a module's weight and bias."""
        for each in (self._weight(name), f"{name}.bias", f"{name}_bias"):
            if each in self.tensors:
                yield self.prefix + str(each)


def layers_of(model: MetaModel) -> dict[int, Layer]:
    """Return the widths of each layer.

    Raises:
        RecipeError: the model is of a family that is not known.
    """
    if model.model_type not in FAMILIES:
        raise RecipeError(
            f"it is not known which rows and columns of {model.architecture} (model type {model.model_type!r}) belong "
            f"to a channel or a head; layers can be dropped; known are the decoders {', '.join(sorted(FAMILIES))}"
        )
    config, listed = text_config(model), layer_list(model)[0]
    tensors: dict[int, dict[str, ParameterSpec]] = {}
    for name, spec in model.parameters.items():
        if (found := layer_of(name, listed)) is not None:
            tensors.setdefault(found[0], {})[found[1]] = spec
    family = FAMILIES[model.model_type]
    return {number: _layer(f"{listed}.{number}.", found, config, family) for number, found in sorted(tensors.items())}


def _layer(prefix: str, tensors: Mapping[str, ParameterSpec], config: Any, family: Family) -> Layer:
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    known = [
        (up, gate, down)
        for up, gate, down in GATED
        if "shared" not in down and all(_has(tensors, each) for each in (up, down))
    ]
    output = tensors.get(f"{ATTENTION_WRITES}.weight")
    if len(known) != 1 or output is None:
        raise RecipeError(f"{prefix}*: it is not known which weights write and read its channels and heads")
    (up, gate, down), = known  # fmt: skip
    spec = tensors.get(f"{down}.weight") or tensors[down]
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    own = output.columns // size  # heads of this layer, where they differ
    gate = gate if gate is None or f"{gate}.weight" in tensors else ""
    experts = spec.shape[0] if len(spec.shape) == 3 else 0
    return Layer(prefix, tensors, up, gate, down, spec.columns, experts, own, own * groups // heads, size, family)


def _has(tensors: Mapping[str, ParameterSpec], module: str) -> bool:
    return module in tensors or f"{module}.weight" in tensors


def config_key(config: Any, said: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """Return which of the keys a config has, as ``config.json`` writes it."""
    known = next((key for key in keys if getattr(config, key, None) is not None), keys[0])
    mapped = getattr(config, "attribute_map", {}).get(known, known)
    return known if known in said else mapped


def _spread(kept: np.ndarray, size: int) -> np.ndarray:
    """Return the channels of heads of so many channels each."""
    return (kept[:, None] * size + np.arange(size)).reshape(-1)
