"""A Hugging Face directory: safetensors files with or without an index, config, tokenizer, template, licence."""

from __future__ import annotations

import json
import os
from functools import cached_property
from typing import ClassVar

import numpy as np

from ..documents import WANTED
from ..errors import SourceError
from ..layout import MAX_DOCUMENT
from .base import SourceFile, SourceTensor
from .safetensors import SafetensorsFile

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class HuggingFace:
    """The directory ``path``.

    Raises:
        SourceError: no config, no weights, a shard or a tensor of the index missing, a tensor in two shards.
    """

    kind: ClassVar[str] = "huggingface"
    no_model = None

    def __init__(self, path: str) -> None:
        self.path = path
        self._shards = {name: SafetensorsFile(os.path.join(path, name)) for name in self._shard_names()}
        self.tensors: dict[str, SourceTensor] = {}
        for shard in self._shards.values():
            for name, tensor in shard.tensors.items():
                if name in self.tensors:
                    raise SourceError(f"{path}: tensor {name!r} is in {self.tensors[name].file} and in {tensor.file}")
                self.tensors[name] = tensor
        self._check_index()

    @staticmethod
    def matches(path: str) -> bool:
        """Whether ``path`` is such a directory."""
        return os.path.isfile(os.path.join(path, "config.json"))

    @property
    def files(self) -> list[SourceFile]:
        return [SourceFile(name, shard.path, shard.size) for name, shard in sorted(self._shards.items())]

    @cached_property
    def documents(self) -> dict[str, bytes]:
        found = {}
        for folder, _, names in os.walk(self.path):
            for name in names:
                full = os.path.join(folder, name)
                relative = os.path.relpath(full, self.path).replace(os.sep, "/")
                if not WANTED.fullmatch(relative):
                    continue
                if os.path.getsize(full) > MAX_DOCUMENT:
                    raise SourceError(f"{full}: {os.path.getsize(full)} bytes, a document holds {MAX_DOCUMENT}")
                with open(full, "rb") as file:
                    found[relative] = file.read()
        return dict(sorted(found.items()))

    def planes(self, name: str) -> dict[str, np.ndarray]:
        return {"values": self._shards[self.tensors[name].file].read(name)}

    def _shard_names(self) -> list[str]:
        if _INDEX in os.listdir(self.path):
            names = sorted(set(self._index.values()))
            for name in names:
                if os.path.basename(name) != name:
                    raise SourceError(f"{self.path}/{_INDEX}: shard name {name!r} is a path")
                if not os.path.isfile(os.path.join(self.path, name)):
                    raise SourceError(f"{self.path}: shard {name!r} of {_INDEX} is missing")
            return names
        if os.path.isfile(os.path.join(self.path, _SINGLE)):
            return [_SINGLE]
        others = sorted(name for name in os.listdir(self.path) if name.endswith((".bin", ".pt", ".safetensors")))
        raise SourceError(
            f"{self.path}: neither {_SINGLE} nor {_INDEX}" + (f"; found {', '.join(others[:3])}" if others else "")
        )

    @cached_property
    def _index(self) -> dict[str, str]:
        path = os.path.join(self.path, _INDEX)
        try:
            with open(path, encoding="utf-8") as file:
                weight_map = json.load(file)["weight_map"]
            return {str(name): str(shard) for name, shard in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SourceError(f"{path}: not an index of shards: {error}") from error

    def _check_index(self) -> None:
        if _INDEX not in os.listdir(self.path):
            return
        for name, shard in self._index.items():
            if name not in self.tensors or self.tensors[name].file != shard:
                raise SourceError(f"{self.path}: tensor {name!r} of {_INDEX} is not in {shard}")
