"""Defines how values of ``config.json`` and keys of GGUF stand for each other, in both directions.

An architecture lists some of these; each reads what it knows of a file into a config, and writes it back. What is about
heads and layers is in ``config_attention``, what one family alone has in its file of ``architectures``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import SourceError
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
