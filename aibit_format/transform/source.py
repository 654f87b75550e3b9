"""Provides the tensors of a source with changes, by the names of the model; each is changed when it is read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

import numpy as np

from ..container import documents
from ..container.metadata import Value
from ..errors import SchemeError, SourceError
from ..formats.aibit import TRANSFORMED
from ..formats.bind import Binding, bind, binding_of
from ..formats.models import meta_model_of
from ..formats.sources import Source, SourceFile, SourceTensor, values
from ..hf.meta_model import MetaModel
from .changes import Change, changed


class Transformed:
    """Provide the tensors of a model whose weights are changed.

    Tensors that are not changed are those of the source, quantized ones as they are. Changed ones have the dtype that
    the model computes in, and quantized ones are decoded.

    Args:
        source: the model.
        model: what it describes.
        dtype: that ``config.json`` leaves to the weights, as it would name it.
    """

    no_model: str | None = None

    def __init__(self, source: Source, model: MetaModel, dtype: str | None = None) -> None:
        self.kind, self.path = source.kind, source.path
        self.architecture: str | None = model.architecture
        self.model, self._dtype = model, dtype
        self.metadata: Mapping[str, Value] = dict(source.metadata)
        self.documents = dict(source.documents)
        self.notes: tuple[str, ...] = ()
        self._source = source
        self._bindings, unused = bind(model, source)
        self._changes: dict[str, tuple[Change, ...]] = {}
        self._tensors: dict[str, SourceTensor] = {}
        for name in model.parameters:
            binding = binding_of(model, self._bindings, name)
            if name not in model.ties and binding is not None and binding.sources:
                self._add(name, binding)
        self._unused = {name: source.tensors[name] for name in unused if name not in self._tensors}

    def _add(self, name: str, binding: Binding) -> None:
        self._bindings[name] = binding
        first = self._source.tensors[binding.sources[0]]
        if binding.read is None:
            self._tensors[name] = replace(first, name=name, alias_of=None)
        elif binding.joined is not None:
            self._tensors[name] = replace(binding.joined[0], name=name)
        else:
            self._tensors[name] = self._computed(name, first.file)

    def _computed(self, name: str, file: str) -> SourceTensor:
        spec = self.model.parameters[name]
        return SourceTensor(name, spec.shape, spec.dtype, file, computed=True)

    @property
    def tensors(self) -> Mapping[str, SourceTensor]:
        return {**self._tensors, **self._unused}

    @property
    def files(self) -> list[SourceFile]:
        return self._source.files

    def transformed(
        self, how: str, changes: Mapping[str, Sequence[Change]], metadata: Mapping[str, Value] | None = None,
        notes: Sequence[str] = (),
    ) -> Self:  # fmt: skip
        """Return a source with more changes, which come after those of this one.

        Args:
            how: what they are, as users write it.
            changes: by the names of parameters.
            metadata: what the file is to say of them besides.
            notes: what users should know of them.
        """
        made = self._copy()
        for name, more in changes.items():
            made._changes[name] = (*made._changes.get(name, ()), *more)
            made._tensors[name] = self._computed(name, made._tensors[name].file)
        before: list[str] = list(self.metadata.get(TRANSFORMED, []))  # type: ignore[arg-type]
        made.metadata = {**self.metadata, TRANSFORMED: [*before, how], **(metadata or {})}
        made.notes = (*self.notes, *notes)
        return made

    def untied(self) -> Self:
        """Return a source in which tied tensors have values of their own, the same for all of them."""
        made = self._copy()
        text = made.documents["config.json"]
        made.documents["config.json"] = documents.with_key("config.json", text, "tie_word_embeddings", False)
        for name, owner in self.model.ties.items():
            made._bindings[name], made._tensors[name] = made._bindings[owner], replace(made._tensors[owner], name=name)
            if owner in made._changes:
                made._changes[name] = made._changes[owner]
        made.model = meta_model_of(made, self.architecture, self._dtype)
        return made

    def _copy(self) -> Self:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.documents = dict(self.documents)
        made._changes, made._tensors = dict(self._changes), dict(self._tensors)
        made._bindings = dict(self._bindings)
        return made

    def planes(self, name: str) -> Mapping[str, np.ndarray]:
        if name not in self._tensors:
            return self._source.planes(name)
        changes = self._changes.get(name, ())
        binding = self._bindings[name]
        if not changes and binding.read is None:
            return self._source.planes(binding.sources[0])
        if not changes and binding.joined is not None:
            return binding.joined[1]()
        return {"values": self._values(name, binding, changes)}

    def _values(self, name: str, binding: Binding, changes: Sequence[Change]) -> np.ndarray:
        spec = self.model.parameters[name]
        array, dtype = self._read(binding)
        if array.shape != spec.shape:
            raise SourceError(f"{self.path}: tensor {name!r} has shape {list(array.shape)}, not {list(spec.shape)}")
        try:
            return changed(array, dtype, changes, spec.dtype)
        except SchemeError as error:
            raise SourceError(f"{os.fspath(self.path)}: tensor {name!r}: {error}") from error

    def _read(self, binding: Binding) -> tuple[np.ndarray, str]:
        if binding.read is not None:
            return binding.read()
        found = self._source.tensors[binding.sources[0]]
        array, dtype = values(self._source, found.name)
        return (np.swapaxes(array, -1, -2), dtype) if found.transposed else (array, dtype)
