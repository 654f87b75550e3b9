"""Defines the entries of configs that are about attention: heads, how positions rotate, windows, kinds of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import SourceError
from . import rope
from .config_keys import About, Config, Entry
from .keys import Keys

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class HeadSize(Entry):
    """Say how many dimensions a head has; without ``config``, as many as the model's width has for each head."""

    config: str | None = "head_dim"
    written: bool = True

    def read(self, keys: Keys, config: Config, about: About) -> None:
        heads, width = config["num_attention_heads"], config["hidden_size"]
        size = keys.integer("attention.key_length", width // heads or None)
        if keys.integer("attention.value_length", size) != size:
            raise keys.wrong("attention.value_length", keys.get("attention.value_length"), f"the keys have {size}")
        if self.config is not None:
            config[self.config] = size
        elif size * heads != width:
            raise SourceError(f"{heads} heads of {size} dimensions in a model {width} wide")

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        size = rope.head_dim_of(config)
        if self.config is None and size * config["num_attention_heads"] != config["hidden_size"]:
            raise SourceError(f"config.json: heads of {size}: llama.cpp takes width by heads")
        if self.written:
            values |= {"attention.key_length": size, "attention.value_length": size}


@dataclass(frozen=True)
class Rope(Entry):
    """Say how positions rotate: ``rope_parameters``, and ``rope.`` keys and tensors of factors.

    ``partial`` allows that only the first dimensions of a head rotate. ``extra`` is how llama.cpp always scales, which
    ``rope_parameters`` have to say.
    """

    partial: bool = False
    extra: tuple[tuple[str, Any], ...] = ()

    def size(self, config: Mapping[str, Any]) -> int:
        """Return how many dimensions of a head there are to rotate."""
        return rope.head_dim_of(config)

    def read(self, keys: Keys, config: Config, about: About) -> None:
        values = keys.rope()
        size = self.size(config)
        rotated = keys.integer("rope.dimension_count", size)
        if rotated != size and not (self.partial and rotated < size):
            raise keys.wrong("rope.dimension_count", rotated, f"the heads have {size} dimensions")
        for name, factors in about.factors.items():
            if len(factors) != rotated // 2:
                raise SourceError(f"tensor {name!r} has {len(factors)} factors, for {rotated} dimensions")
        found = rope.from_gguf(values, about.factors, config["max_position_embeddings"])
        if self.partial:
            found["partial_rotary_factor"] = rotated / size
        if found["rope_type"] == "yarn":
            found |= dict(self.extra)
        config["rope_parameters"] = found
        if "original_max_position_embeddings" in found and found["rope_type"] == "longrope":
            config["original_max_position_embeddings"] = found["original_max_position_embeddings"]

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        size, parameters = self.size(config), rope.parameters_of(config)
        factor = parameters.pop("partial_rotary_factor", None)
        rotated = size if factor is None else int(size * factor)
        if rotated != size and not (self.partial and 0 < rotated < size):
            raise SourceError(f"config.json: partial_rotary_factor {factor}: llama.cpp's model has no such thing")
        for name, value in self.extra if parameters["rope_type"] == "yarn" else ():
            if parameters.pop(name, not value) != value:
                raise SourceError(f"config.json: rope_parameters: {name} is to be {value}, as llama.cpp computes")
        written = rope.to_gguf(parameters, config)
        values |= {"rope.dimension_count": rotated} | {f"rope.{key}": value for key, value in written.items()}


@dataclass(frozen=True)
class Window(Entry):
    """Refuse a sliding window that would matter: llama.cpp's model attends to everything."""

    config: str = "sliding_window"

    def read(self, keys: Keys, config: Config, about: About) -> None:
        if keys.scalar("attention.sliding_window") not in (None, 0):
            raise keys.wrong("attention.sliding_window", keys.get("attention.sliding_window"), "none is expected here")
        config[self.config] = None

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        window = config.get(self.config)
        if window and window < config["max_position_embeddings"]:
            raise SourceError(f"config.json: {self.config} {window}: llama.cpp's model has no sliding window")


@dataclass(frozen=True)
class LayerTypes(Entry):
    """Say which layers attend to everything: every ``period``-th; the others have a sliding window."""

    period: int

    def read(self, keys: Keys, config: Config, about: About) -> None:
        config["layer_types"] = self._types(config["num_hidden_layers"])
        found = keys.get("attention.sliding_window_pattern", self.period)
        wanted = [kind != FULL for kind in config["layer_types"]]
        found = found.tolist() if isinstance(found, np.ndarray) else found
        if found not in (self.period, wanted):
            raise keys.wrong("attention.sliding_window_pattern", found, f"one layer of {self.period} attends to all")

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        if config.get("layer_types") not in (None, self._types(config["num_hidden_layers"])):
            raise SourceError("config.json: layer_types: llama.cpp's model has others")

    def _types(self, layers: int) -> list[str]:
        return [FULL if (i + 1) % self.period == 0 else SLIDING for i in range(layers)]
