"""Describes one architecture that GGUF and transformers both know: names, operations and keys, as data.

``architectures`` holds the table of them; the source and the exporter use it in opposite directions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...errors import SourceError
from .config_keys import About, Constant, Entry
from .keys import Keys
from .operations import SAME, Operation, Permuted
from .rope import FACTORS

_ENDS = (".weight", ".bias")
_LAYER = re.compile(r"(?:(?<=^)|(?<=\.))blk\.(0|[1-9][0-9]{0,5})\.")
EMBEDDINGS = "token_embd.weight"
_TOKENIZER = "tokenizer."  # begins the names of keys that are of no architecture

# Keys that no architecture's list asks for: those that change nothing here (without values), and those that make
# llama.cpp compute something else, with the values that do not.
_COMMON = (
    Constant("vocab_size"), Constant("pooling_type"), Constant("tensor_data_layout"), Constant("rope.freq_base"),
    Constant("rope.scaling.finetuned"), Constant("attention.key_length"), Constant("attention.value_length"),
    Constant("expert_count", None, 0), Constant("expert_used_count", None, 0), Constant("logit_scale", None, 1.0, 0.0),
    Constant("embedding_scale", None, 1.0, 0.0), Constant("residual_scale", None, 1.0, 0.0),
    Constant("attention.scale", None, 1.0, 0.0), Constant("attention.sliding_window", None, 0),
    Constant("attention.causal", None, True), Constant("attention.max_alibi_bias", None, 0.0),
    Constant("attention.clamp_kqv", None, 0.0), Constant("nextn_predict_layers", None, 0),
    Constant("use_parallel_residual", None, False, True),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Say of which tensors of GGUF a tensor of transformers is made, and how. ``{}`` stands for the layer's number.

    ``flag`` is the key of ``config.json`` that gives a model this tensor and all others of the same flag.
    """

    name: str
    parts: tuple[str, ...]
    operation: Operation = SAME
    flag: str | None = None


@dataclass(frozen=True)
class Place:
    """Say where a tensor of transformers comes from: its row of the table, and GGUF's names for it in one layer."""

    row: Row
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """Describe one architecture on both sides.

    ``chosen`` tells by keys and names of tensors whether a file of this GGUF architecture is meant, where several are
    called the same. ``layers`` are the config's keys of how many layers there are, of which the largest counts. Without
    the tensor ``head``, the embeddings are the head. ``left_out`` are tensors of transformers that GGUF has not, as
    llama.cpp does not compute with them.
    """

    gguf: str
    model_type: str
    architecture: str
    rows: tuple[Row, ...]
    entries: tuple[Entry, ...]
    chosen: Callable[[Mapping[str, Any], Collection[str]], bool] = lambda values, names: True
    layers: tuple[str, ...] = ("num_hidden_layers",)
    head: str = "output.weight"
    left_out: tuple[str, ...] = ()

    @cached_property
    def _by_part(self) -> dict[str, Row]:
        return {part: row for row in self.rows for part in row.parts}

    def has(self, name: str) -> bool:
        """Tell whether a tensor of GGUF's has a place in the model."""
        return _LAYER.sub("blk.{}.", name, count=1) in self._by_part

    def places(self, names: Iterable[str]) -> dict[str, Place]:
        """Sort GGUF's tensors by the tensors of transformers' that they make, leaving out factors.

        Raises:
            SourceError: a tensor has no place in the model, two have the same, or one is missing beside another.
        """
        found: dict[str, Place] = {}
        known = set(names)
        for name in names:
            if name in FACTORS:
                continue
            layer = _LAYER.search(name)
            row = self._by_part.get(_LAYER.sub("blk.{}.", name, count=1))
            if row is None:
                raise SourceError(f"tensor {name!r} has no place in {self.architecture}")
            place = Place(row, tuple(part.format(layer[1] if layer else "") for part in row.parts))
            target = row.name.format(layer[1] if layer else "")
            if found.setdefault(target, place).row is not row:
                raise SourceError(f"tensors {name!r} and {found[target].parts[0]!r} are both {target!r}")
            if missing := next((part for part in place.parts if part not in known), None):
                raise SourceError(f"tensor {name!r} is there without {missing!r}")
        return found

    def names(self, layers: int, held: Collection[str]) -> dict[str, Place]:
        """Return the places of the tensors of transformers ``held``, by name, those of each layer written out."""
        found: dict[str, Place] = {}
        for row in self.rows:
            for i in range(layers if "{}" in row.name else 1):
                if (name := row.name.format(i)) in held:
                    found.setdefault(name, Place(row, tuple(part.format(i) for part in row.parts)))
        return found

    def config(
        self, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], factors: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Make ``config.json``, except ``dtype``, from GGUF's metadata and tensors.

        Args:
            metadata: of the file.
            shapes: of the tensors, by GGUF's names.
            factors: f32, the values of those tensors that are factors of rotary embeddings, by name.

        Raises:
            SourceError: transformers' model cannot represent what the file describes; the message says why.
        """
        keys = Keys(metadata, self.gguf)
        places = self.places(shapes)
        embedding = shapes.get(EMBEDDINGS, ())
        layers = keys.integer("block_count")
        if len(embedding) != 2 or layers > len(shapes):
            raise SourceError(f"{layers} layers and embeddings of {list(embedding)} in a file of {len(shapes)} tensors")
        config: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.model_type}
        for entry in self.entries:
            entry.read(keys, config, About(shapes, factors))
        config["vocab_size"] = embedding[0]
        config["tie_word_embeddings"] = self.head not in shapes
        config |= self._flags(shapes, layers)
        for entry in _COMMON:
            if entry.key not in keys.asked:
                entry.read(keys, config, About(shapes, factors))
        if unknown := sorted(keys.values.keys() - keys.asked):
            raise SourceError(f"key {self.gguf}.{unknown[0]} is unknown here, and may change what is computed")
        for place in places.values():
            self.check(place, [shapes[part] for part in place.parts], config)
        return config

    def check(self, place: Place, shapes: list[tuple[int, ...]], config: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the shape of a tensor of transformers; raises SourceError if its parts cannot make it."""
        operation, shape = place.row.operation, shapes[0]
        rank = 1 if place.parts[0].endswith(".bias") else 2
        try:
            if isinstance(operation, Permuted) and len(shape) != rank and place.parts[0].endswith(_ENDS):
                operation.order(0, config)  # the blocks of a vector would pass for rows
            return operation.joined(shapes, config)
        except SourceError as error:
            raise SourceError(f"tensor {place.parts[0]!r} has shape {list(shape)}, for {error}") from error

    def _flags(self, shapes: Mapping[str, tuple[int, ...]], layers: int) -> dict[str, bool]:
        """Return the keys of ``config.json`` that give several tensors: each has all of them, or none.

        Raises:
            SourceError: some are there and others are not.
        """
        found: dict[str, bool] = {}
        for row in self.rows:
            for name in (row.parts[0].format(i) for i in range(layers if row.flag else 0)):
                if name.removesuffix(".bias") + ".weight" not in shapes:
                    continue  # not every layer has every tensor
                there = name in shapes
                if found.setdefault(row.flag or "", there) != there:
                    raise SourceError(
                        f"biases of {self.architecture}: {row.flag} is all of them or none, but {name!r} is "
                        f"{'there' if there else 'missing'}"
                    )
        return found

    def values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Make GGUF's metadata of the architecture, as ``int``, ``float``, ``bool``, ``str`` and lists.

        Raises:
            SourceError: the config asks for something that llama.cpp's model lacks.
        """
        values: dict[str, Any] = {}
        for entry in self.entries:
            entry.write(config, values)
        values["vocab_size"] = config["vocab_size"]
        return {key if key.startswith(_TOKENIZER) else f"{self.gguf}.{key}": value for key, value in values.items()}
