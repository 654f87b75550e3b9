"""Defines how values of ``config.json`` and keys of GGUF stand for each other, in both directions.

An architecture lists some of these; each reads what it knows of a file into a config, and writes it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import SourceError
from . import rope
from .keys import Keys, brief

Config = dict[str, Any]
Factors = Mapping[str, Any]  # frequency factors of rotary embeddings, f32, by the names of their tensors


@dataclass(frozen=True)
class About:
    """Hold what a file says besides its keys: the shapes of its tensors, and frequency factors."""

    shapes: Mapping[str, tuple[int, ...]]
    factors: Factors


class Entry:
    """The base of what an architecture's list holds."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        """Set keys of ``config`` from a file.

        Raises:
            SourceError: the file says something that transformers' model cannot represent.
        """

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        """Set GGUF's keys, without the architecture's name, from a ``config.json``.

        Raises:
            SourceError: the config asks for something that llama.cpp's model lacks.
        """


_NEEDED = ("a number that is not negative", "a positive number")


@dataclass(frozen=True)
class Number(Entry):
    """Say that a number, or a bool, has one key on each side.

    ``otherwise`` is its value where one side lacks it: a number, or the config's key for another one, whose value is
    taken ``times`` as often. Without it, the number is needed. An integer is ``least`` at least.
    """

    key: str
    config: str
    kind: type = int
    otherwise: Any = None
    times: int = 1
    also: str | None = None  # another name of the config's key
    least: int = 1

    def read(self, keys: Keys, config: Config, about: About) -> None:
        otherwise = self._otherwise(config)
        if self.kind is bool:
            config[self.config] = keys.flag(self.key, otherwise)
        elif self.kind is float:
            config[self.config] = keys.number(self.key, otherwise)
        else:
            config[self.config] = keys.integer(self.key, otherwise, self.least)

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        value = config.get(self.config)
        if value is None and self.also:
            value = config.get(self.also)
        value = self._otherwise(config) if value is None else value
        value = float(value) if self.kind is float and type(value) is int else value
        if type(value) is not self.kind or (self.kind is int and value < self.least):
            needed = {bool: "true or false", float: "a number", int: _NEEDED[self.least]}[self.kind]
            raise SourceError(f"config.json: {self.config} is {brief(value)}, {needed} is needed")
        values[self.key] = value

    def _otherwise(self, config: Mapping[str, Any]) -> Any:
        if not isinstance(self.otherwise, str):
            return self.otherwise
        value = config.get(self.otherwise)
        return value * self.times if type(value) is int else value


@dataclass(frozen=True)
class Derived(Entry):
    """Say that a file has a number that the config has no key for, as it is always ``times`` that of another key."""

    key: str
    config: str
    times: int = 1

    def read(self, keys: Keys, config: Config, about: About) -> None:
        if (found := keys.scalar(self.key)) not in (None, self.times * config[self.config]):
            raise keys.wrong(self.key, found, f"{self.times} x {self.config} is needed")

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        values[self.key] = self.times * config[self.config]


@dataclass(frozen=True)
class EachHead(Entry):
    """Say that a file has the size of all heads together where a config has that of each."""

    key: str
    config: str
    heads: str

    def read(self, keys: Keys, config: Config, about: About) -> None:
        whole, heads = keys.integer(self.key), config[self.heads]
        if whole % heads:
            raise keys.wrong(self.key, whole, f"a multiple of {heads} heads is needed")
        config[self.config] = whole // heads

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        values[self.key] = config[self.config] * config[self.heads]


@dataclass(frozen=True)
class Written(Entry):
    """Say what files have under a key that has no meaning for the architecture, but which llama.cpp looks for."""

    key: str
    value: Any

    def read(self, keys: Keys, config: Config, about: About) -> None:
        keys.get(self.key)

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        values[self.key] = self.value


@dataclass(frozen=True)
class Optional(Entry):
    """Say that a number has one key on each side and may be missing: ``None`` in a config, ``absent`` in a file."""

    key: str
    config: str
    kind: type = int
    absent: float | None = None  # a number that files have for a missing one

    def read(self, keys: Keys, config: Config, about: About) -> None:
        config[self.config] = None
        if keys.scalar(self.key) not in (None, self.absent):
            config[self.config] = keys.number(self.key) if self.kind is float else keys.integer(self.key)

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        value = config.get(self.config)
        value = self.absent if value is None else value
        if value is not None:
            values[self.key] = self.kind(value)


class Fixed(Entry):
    """Say what a config has, as llama.cpp always computes it.

    ``values`` are those that a config may have; the first is set on the way in, unless it is ``None``, which stands for
    a missing key.
    """

    def __init__(self, config: str, *values: Any) -> None:
        self.config, self.values = config, values

    def read(self, keys: Keys, config: Config, about: About) -> None:
        if self.values[0] is not None:
            config[self.config] = self.values[0]

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        if config.get(self.config) not in self.values:
            found = brief(config.get(self.config))
            raise SourceError(f"config.json: {self.config} {found}: llama.cpp's model has no such thing")


class Constant(Entry):
    """Say what a file has, as transformers' model always computes it.

    ``values`` are those that a file may have; the first is written on the way out, unless it is ``None``, which stands
    for a missing key. Without any, the key says nothing that matters here.
    """

    def __init__(self, key: str, *values: Any) -> None:
        self.key, self.values = key, values

    def read(self, keys: Keys, config: Config, about: About) -> None:
        value = keys.get(self.key)
        value = keys.number(self.key) if self.values and isinstance(value, float) else value
        if self.values and (not isinstance(value, (int, float, str, type(None))) or value not in self.values):
            raise keys.wrong(self.key, value, f"{config['architectures'][0]} has no such thing")

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        if self.values and self.values[0] is not None:
            values[self.key] = self.values[0]


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
        if rotated != size and not self.partial:
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
        wanted = [kind != _FULL for kind in config["layer_types"]]
        found = found.tolist() if isinstance(found, np.ndarray) else found
        if found not in (self.period, wanted):
            raise keys.wrong("attention.sliding_window_pattern", found, f"every {self.period}th is expected")

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        if config.get("layer_types") not in (None, self._types(config["num_hidden_layers"])):
            raise SourceError("config.json: layer_types: llama.cpp's model has others")

    def _types(self, layers: int) -> list[str]:
        return [_FULL if (i + 1) % self.period == 0 else "sliding_attention" for i in range(layers)]


_FULL = "full_attention"


@dataclass(frozen=True)
class QueryScale(Entry):
    """Say by what Gemma scales queries: the size of a head, or in a model of ``wide`` layers the width by heads."""

    wide: int

    def read(self, keys: Keys, config: Config, about: About) -> None:
        config["query_pre_attn_scalar"] = self._scale(config)

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        if config.get("query_pre_attn_scalar") not in (None, self._scale(config)):
            raise SourceError(
                f"config.json: query_pre_attn_scalar {brief(config['query_pre_attn_scalar'])}, llama.cpp computes with "
                f"{self._scale(config)}"
            )

    def _scale(self, config: Mapping[str, Any]) -> int:
        if config["num_hidden_layers"] == self.wide:
            return config["hidden_size"] // config["num_attention_heads"]
        return rope.head_dim_of(config)


class TwoRopes(Entry):
    """Say how positions rotate in Gemma 3: in full layers, which may be scaled, and in those with a sliding window."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        values, size = keys.rope(), rope.head_dim_of(config)
        local = keys.number("rope.freq_base_swa", rope.DEFAULT_THETA)
        if keys.integer("rope.dimension_count", size) != size:
            raise keys.wrong("rope.dimension_count", values["dimension_count"], f"the heads have {size} dimensions")
        values.setdefault("freq_base", 1e6)
        config["rope_parameters"] = {
            _FULL: rope.from_gguf(values, about.factors, config["max_position_embeddings"]),
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        both = config.get("rope_parameters") or {}
        full = both.get(_FULL) or {
            "rope_theta": config.get("rope_theta") or 1e6, **(config.get("rope_scaling") or {}),
        }  # fmt: skip
        local = both.get("sliding_attention") or {"rope_theta": config.get("rope_local_base_freq") or 1e4}
        if rope.parameters_of({"rope_parameters": local})["rope_type"] != "default":
            raise SourceError("config.json: rope_parameters: llama.cpp scales no layers with a sliding window")
        written = rope.to_gguf(rope.parameters_of({"rope_parameters": full}), config)
        values |= {f"rope.{key}": value for key, value in written.items()}
        values["rope.freq_base_swa"] = float(local["rope_theta"])


@dataclass(frozen=True)
class WithoutTensor(Entry):
    """Say that a flag of a config is set where a tensor is missing; ``key`` is GGUF's for the same."""

    config: str
    tensor: str
    key: str

    def read(self, keys: Keys, config: Config, about: About) -> None:
        keys.get(self.key)  # converters have written it the wrong way round; llama.cpp looks for the tensor
        config[self.config] = self.tensor not in about.shapes

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        values[self.key] = bool(config.get(self.config))


class ConvolutionLayers(Entry):
    """Say which layers of LFM2 are convolutions: those for which a file has no heads of keys and values."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        counts = keys.each("attention.head_count_kv", config["num_hidden_layers"])
        if {*counts} - {0} != {max(counts)} or type(counts[0]) is not int:
            raise keys.wrong(
                "attention.head_count_kv", keys.get("attention.head_count_kv"), "0 or one number is needed"
            )
        config["num_key_value_heads"] = max(counts)
        config["layer_types"] = [_FULL if count else "conv" for count in counts]

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        heads, types = config["num_key_value_heads"], config.get("layer_types")
        if not types or len(types) != config["num_hidden_layers"] or {*types} - {"conv", _FULL}:
            raise SourceError(f"config.json: layer_types is {brief(types)}, conv or {_FULL} is needed for each layer")
        values["attention.head_count_kv"] = [heads if kind == _FULL else 0 for kind in types]


class AdjustedWidth(Entry):
    """Say how wide the layers of LFM2 are inside, which a config may leave to be computed from another width."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        config["intermediate_size"] = keys.integer("feed_forward_length")
        config["block_auto_adjust_ff_dim"] = False

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        width = config.get("block_ff_dim") or config["intermediate_size"]
        if config.get("block_auto_adjust_ff_dim", True):
            width = int(config.get("block_ffn_dim_multiplier", 1.0) * int(2 * width / 3))
            multiple = config.get("block_multiple_of", 256)
            width = -(-width // multiple) * multiple
        values["feed_forward_length"] = width


class LinearLayers(Entry):
    """Say which layers of Qwen3.5 attend to everything: every so many-th. A file lists the others as well."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        layers = config["num_hidden_layers"]
        interval = keys.integer("full_attention_interval", 4)
        linear = [(i + 1) % interval != 0 for i in range(layers)]
        if keys.get("attention.recurrent_layers") is not None:
            linear = keys.each("attention.recurrent_layers", layers)
        config["layer_types"] = ["linear_attention" if each else _FULL for each in linear]

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        types, layers = config.get("layer_types"), config["num_hidden_layers"]
        interval = config.get("full_attention_interval") or 4
        types = types or [_FULL if (i + 1) % interval == 0 else "linear_attention" for i in range(layers)]
        values["attention.recurrent_layers"] = [kind != _FULL for kind in types]
        values["full_attention_interval"] = types.index(_FULL) + 1 if _FULL in types else interval


class SectionedRope(Rope):
    """Say how positions of three axes rotate, each its section of the dimensions, which take turns."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        sections = keys.each("rope.dimension_sections", 4)
        super().read(keys, config, about)
        config["rope_parameters"] |= {"mrope_section": sections[:3], "mrope_interleaved": True}

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        parameters = dict(rope.parameters_of(config))
        sections = parameters.pop("mrope_section", None) or [11, 11, 10]
        if not parameters.pop("mrope_interleaved", True):
            raise SourceError("config.json: rope_parameters: mrope_interleaved is to be true, as llama.cpp computes")
        super().write({**config, "rope_parameters": parameters}, values)
        values["rope.dimension_sections"] = [*sections, 0]
