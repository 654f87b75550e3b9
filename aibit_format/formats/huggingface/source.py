"""Reads a Hugging Face directory: files of weights with or without an index, config, tokenizer, template, licence."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, Protocol

import numpy as np

from ...container.documents import WANTED, parse_json
from ...container.layout import MAX_DOCUMENT
from ...container.metadata import Value
from ...errors import FormatError, SourceError
from ...io.mistaken import what_is_wrong
from ..files import MAX_ALL_DOCUMENTS, read_file
from ..foreign import recognize
from ..source import SourceFile, SourceTensor

# Files of weights and their readers, in transformers' order: of each name the single file, or else the shards of its
# index, which is named after the file, plus _INDEX. An index beside a single file is left over from an earlier save.
_WEIGHTS = {
    "model.safetensors": "aibit_format.formats.safetensors.reader:SafetensorsFile",
    "pytorch_model.bin": "aibit_format.formats.torch_save.pickled:PickledFile",
    "pytorch_model.pt": "aibit_format.formats.torch_save.pickled:PickledFile",
    "model.pt": "aibit_format.formats.torch_save.pickled:PickledFile",
}
_INDEX = ".index.json"


class Shard(Protocol):
    """Provide the tensors of an open file of weights."""

    path: str
    size: int
    tensors: dict[str, SourceTensor]

    def read(self, name: str) -> np.ndarray:
        """Return a tensor's values."""
        ...


class HuggingFace:
    """Provide the tensors of the directory ``path`` as they are stored, quantized or not; a base for other sources.

    A tensor that an index lists, and no shard has, is not there: whoever needs it says so.

    Raises:
        SourceError: there is no config or no weights, a shard in the index is missing, or a tensor is in two shards.
    """

    kind: ClassVar[str] = "huggingface"
    no_model = None
    architecture = None
    metadata: Mapping[str, Value] = {}

    def __init__(self, path: str) -> None:
        self.path = path
        self.config = read_config(path)
        self._single = next((name for name in _WEIGHTS if self._has(name) or self._has(name + _INDEX)), None)
        self._shards: dict[str, Shard] = {name: self._open(name) for name in self._shard_names()}
        self.tensors: dict[str, SourceTensor] = {}
        for shard in self._shards.values():
            for name, tensor in shard.tensors.items():
                if name in self.tensors:
                    raise SourceError(f"{path}: tensor {name!r} is in {self.tensors[name].file} and in {tensor.file}")
                self.tensors[name] = tensor

    @staticmethod
    def matches(path: str) -> bool:
        """Tell whether ``path`` is such a directory."""
        return os.path.isfile(os.path.join(path, "config.json"))

    @property
    def files(self) -> list[SourceFile]:
        return [SourceFile(name, shard.path, shard.size) for name, shard in sorted(self._shards.items())]

    @cached_property
    def documents(self) -> dict[str, bytes]:
        return read_documents(self.path)

    def planes(self, name: str) -> dict[str, np.ndarray]:
        return {"values": self._shards[self.tensors[name].file].read(name)}

    def _has(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.path, name))

    def _open(self, name: str) -> Shard:
        module, attribute = _WEIGHTS[self._single or ""].split(":")
        return vars(import_module(module))[attribute](os.path.join(self.path, name))

    def _shard_names(self) -> list[str]:
        if self._single is None:
            for name in _WEIGHTS:
                for found in (name, name + _INDEX):
                    _check_link(self.path, found)
            others = sorted(name for name in os.listdir(self.path) if name.endswith((".bin", ".pt", ".safetensors")))
            if known := recognize(self.path):
                raise SourceError(f"{self.path}: {known}")
            raise SourceError(
                f"{self.path}: no {' or '.join(_WEIGHTS)}, nor an index of one"
                + (f"; found {', '.join(others[:3])}" if others else "")
            )
        if self._has(self._single):
            return [self._single]
        return shards_of_index(self.path, self._single + _INDEX)


def shards_of_index(folder: str, index: str) -> list[str]:
    """Return the names of the shards that an index of tensors lists, sorted; all are there.

    Raises:
        SourceError: it is no index, a shard is missing, or its name is a path.
    """
    path = os.path.join(folder, index)
    try:
        names = sorted({str(name) for name in json.loads(read_file(path, MAX_DOCUMENT))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{path}: not an index of shards: {error}") from error
    for name in names:
        if os.path.basename(name) != name:
            raise SourceError(f"{path}: shard name {name!r} is a path")
        _check_link(folder, name)
        if not os.path.isfile(os.path.join(folder, name)):
            raise SourceError(f"{folder}: shard {name!r} of {index} is missing")
    return names


def _check_link(folder: str, name: str) -> None:
    full = os.path.join(folder, name)
    if os.path.islink(full) and (wrong := what_is_wrong(full)):
        raise SourceError(f"{full}: {wrong}")


def read_config(folder: str) -> dict[str, Any]:
    """Read and parse the ``config.json`` of a directory.

    Raises:
        SourceError: it is not a JSON object, or too large for a document.
    """
    path = os.path.join(folder, "config.json")
    try:
        config = parse_json("config.json", read_file(path, MAX_DOCUMENT), constants=True)
    except FormatError as error:
        raise SourceError(f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise SourceError(f"{path}: a JSON {type(config).__name__}, not an object")
    return config


def sub_configs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a config and those of the models inside it."""
    yield config
    yield from (inner for inner in config.values() if isinstance(inner, Mapping))


def read_documents(folder: str) -> dict[str, bytes]:
    """Read the documents of a directory, by name relative to it, sorted.

    Raises:
        SourceError: one is larger than a document may be, or all together are; or one is not a regular file.
    """
    found: dict[str, bytes] = {}
    left = MAX_ALL_DOCUMENTS
    for here, _, names in os.walk(folder):
        for name in names:
            full = os.path.join(here, name)
            relative = os.path.relpath(full, folder).replace(os.sep, "/")
            if WANTED.fullmatch(relative):
                found[relative] = read_file(full, min(MAX_DOCUMENT, left))
                left -= len(found[relative])
    return dict(sorted(found.items()))
