"""Provides the tensors and documents of a model with some rows of its vocabulary, cut out of the planes as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ...container import documents
from ...container.metadata import Value
from ...container.vocabulary import DOCUMENT, SIZE, Kept
from ...errors import SchemeError, SourceError
from ...formats.bind import bind
from ...formats.models import config_of, meta_model_of
from ...formats.sources import Source, SourceFile, SourceTensor
from ...hf import special_ids
from ...hf.config import CONFIG_DTYPES
from ...hf.meta_model import MetaModel
from ...hf.tokenizer_files import REASON_DOCUMENT
from ...schemes import capabilities
from .tokenizer import Tokenizer, replaced

# Sizes of things that have nothing to do with tokens of texts.
_OTHER_SIZES = frozenset({"type_vocab_size", "type_vocab_sizes", "task_type_vocab_size", "unpadded_vocab_size"})
_ADDED, _TEXT = "added_tokens_decoder", "text_config"
_DTYPES = {name: key for key, name in CONFIG_DTYPES.items()}


class Trimmed:
    """Provide a model with a smaller vocabulary.

    Args:
        source: the model.
        model: what it describes.
        tokenizer: the one among its documents.
        kept: which rows stay.
        before: which rows of an original the source itself has kept, if it is cut already.

    Raises:
        SourceError: a tensor of the vocabulary cannot be cut.
    """

    no_model: str | None = None

    def __init__(
        self, source: Source, model: MetaModel, tokenizer: Tokenizer, kept: Kept, before: Kept | None = None
    ) -> None:
        self.kind, self.path, self.architecture = source.kind, source.path, source.architecture
        self.kept = kept if before is None else kept.after(before)
        self.metadata: Mapping[str, Value] = {**source.metadata, SIZE: self.kept.size}
        self._source, self._rows = source, kept.ids.astype(np.int64)
        self.documents = _documents(source, model, tokenizer, kept) | {DOCUMENT: self.kept.document}
        self.tensors = dict(source.tensors)
        self._axes = dict(_cut(source, model, kept, meta_model_of(self, model.architecture, _DTYPES[model.dtype])))
        self.tensors |= {name: self._described(source.tensors[name]) for name in self._axes}

    @property
    def files(self) -> list[SourceFile]:
        return self._source.files

    @property
    def cut(self) -> list[str]:
        """Return the names of the tensors that are cut."""
        return list(self._axes)

    @property
    def before(self) -> int:
        """Return how many bytes these have in the source."""
        tensors = [self._source.tensors[name] for name in self._axes]
        return sum(tensor.nbytes for tensor in tensors if tensor.alias_of is None)

    @property
    def after(self) -> int:
        """Return how many bytes they have here."""
        return sum(self.tensors[name].nbytes for name in self._axes if self.tensors[name].alias_of is None)

    def _described(self, tensor: SourceTensor) -> SourceTensor:
        axis = self._axes[tensor.name]
        shape = (*tensor.shape[:axis], len(self._rows_of(tensor)), *tensor.shape[axis + 1 :])
        if tensor.transposed:
            raise SourceError(f"{self.path}: tensor {tensor.name!r} is stored transposed, and cannot be cut by rows")
        scheme = tensor.scheme
        if scheme is not None:
            # What the scheme becomes follows from its planes in one case: how many rows are kept apart.
            scheme = self._taken(tensor)[0]
        return replace(tensor, shape=shape, scheme=scheme, offset=None, computed=True)

    def planes(self, name: str) -> Mapping[str, np.ndarray]:
        if name not in self._axes:
            return self._source.planes(name)
        tensor = self._source.tensors[name]
        if tensor.scheme is None:
            return {"values": np.take(self._source.planes(name)["values"], self._rows_of(tensor), self._axes[name])}
        return self._taken(tensor)[1]

    def _rows_of(self, tensor: SourceTensor) -> np.ndarray:
        """Return the rows of a tensor that stay, i64: all that are kept, or of fewer than all tokens the first."""
        return self._rows[self._rows < tensor.shape[self._axes[tensor.name]]]

    def _taken(self, tensor: SourceTensor) -> tuple[Any, dict[str, np.ndarray]]:
        take = capabilities.find(tensor.stored, "take_rows")
        if take is None or self._axes[tensor.name]:
            raise SourceError(
                f"{self.path}: tensor {tensor.name!r} in {tensor.stored.text} cannot be cut; {_WHAT_TO_DO}"
            )
        rows = self._rows_of(tensor)
        try:
            return take(tensor.stored, self._source.planes(tensor.name), tensor.shape, tensor.dtype, rows)
        except SchemeError as error:
            raise SourceError(f"{self.path}: tensor {tensor.name!r}: {error}; {_WHAT_TO_DO}") from error


_WHAT_TO_DO = "convert it to another scheme first: aibit convert --tensor 'NAME=bf16'"


def _cut(source: Source, model: MetaModel, kept: Kept, smaller: MetaModel) -> Iterator[tuple[str, int]]:
    """Yield the names of the source's tensors that are cut, and along which dimension each is.

    Parameters of the vocabulary are those whose shape is another one in the model with a smaller vocabulary.
    """
    axes: dict[str, int] = {}
    for name, parameter in model.parameters.items():
        other = smaller.parameters.get(name)
        if other is None or len(other.shape) != len(parameter.shape):
            raise SourceError(f"{source.path}: with a smaller vocabulary, the model has another {name!r}")
        changed = [i for i, (a, b) in enumerate(zip(parameter.shape, other.shape, strict=True)) if a != b]
        if not changed:
            continue
        axis = axes[name] = changed[0]
        if len(changed) > 1 or other.shape[axis] != np.searchsorted(kept.ids, parameter.shape[axis]):
            raise SourceError(
                f"{source.path}: tensor {name!r} of shape {list(parameter.shape)} would become {list(other.shape)}: "
                "its rows are not those of tokens, and it cannot be cut"
            )
    if not axes and len(kept.ids) < kept.size:
        raise SourceError(f"{source.path}: no tensor has a row for each of {kept.size} tokens")
    bindings, _ = bind(model, source)
    for name, binding in bindings.items():
        axis = axes.get(name, axes.get(model.ties.get(name, name)))
        if axis is None or not binding.sources:
            continue
        if binding.read is not None:
            raise SourceError(f"{source.path}: {', '.join(binding.sources)} become {name!r}, and are not cut")
        found = binding.sources[0]
        yield found, axis
        yield from ((other, axis) for other, tensor in source.tensors.items() if tensor.alias_of == found)


def size_of(model: MetaModel) -> int:
    """Return how many tokens the embeddings of a model have.

    Raises:
        SourceError: its config does not say.
    """
    found = getattr(model.module.config.get_text_config(), "vocab_size", None)
    if type(found) is not int or found < 1:
        raise SourceError(f"{model.architecture} has no vocabulary that could be cut: no vocab_size in its config")
    return found


def needed(source: Source, model: MetaModel) -> set[int]:
    """Return the ids that a model's configs name, and those that its class takes where they name none."""
    found = {i for _, ids in _usual(model, config_of(source)) for i in ids.values()}
    for name, data in source.documents.items():
        if special_ids.DOCUMENTS.fullmatch(name):
            found |= set(special_ids.named(documents.parse_json(name, data, constants=True)))
    return found


def _usual(model: MetaModel, config: Mapping[str, Any]) -> Iterator[tuple[str | None, dict[str, int]]]:
    """Yield the ids that a config's class has for keys which the document leaves out: at the top, and of its text."""
    top, size = model.module.config, size_of(model)
    text = top.get_text_config()
    levels = {None: (top, config)}
    if text is not top:
        inner = config.get(_TEXT)
        levels[_TEXT] = (text, inner if isinstance(inner, dict) else {})  # type: ignore[index]
    for key, (built, stated) in levels.items():
        ids = {name: value for name, value in vars(built).items() if special_ids.is_key(name) and name not in stated}
        yield key, {name: value for name, value in ids.items() if type(value) is int and 0 <= value < size}


def _documents(source: Source, model: MetaModel, tokenizer: Tokenizer, kept: Kept) -> dict[str, bytes]:
    """Return the documents of a source with a smaller vocabulary: sizes, ids, and the tokenizer."""
    found = dict(source.documents)
    for name in replaced(found, tokenizer.name):
        del found[name]
    found[tokenizer.name] = tokenizer.cut(kept)
    changes = {
        **{name: _ids for name in found if special_ids.DOCUMENTS.fullmatch(name)},
        "config.json": partial(_config, model, source.path), "tokenizer_config.json": _settings,
        REASON_DOCUMENT: _of_gguf,
    }  # fmt: skip
    for name, change in changes.items():
        value = documents.parse_json(name, found[name], constants=True) if name in found else None
        if isinstance(value, dict) and (changed := change(value, kept)) != value:
            found[name] = (json.dumps(changed, indent=2) + "\n").encode()
    return found


def _ids(value: dict[str, Any], kept: Kept) -> dict[str, Any]:
    """Return a parsed config with new ids."""
    return special_ids.remapped(value, lambda i: _new(kept, i))


def _config(model: MetaModel, where: str, value: dict[str, Any], kept: Kept) -> dict[str, Any]:
    """Return a parsed ``config.json`` with the new size and new ids, and those that its class would take stated."""
    found = _sized(_ids(value, kept), kept, where)
    text = model.module.config.get_text_config() is not model.module.config
    for key, ids in _usual(model, value):
        stated = {name: _new(kept, i) for name, i in ids.items()}
        size = {special_ids.SIZES[0]: len(kept.ids)} if (key == _TEXT) == text else {}
        if key is None:
            found = {**size, **found, **stated}
        elif isinstance(found.get(key, {}), dict):
            found[key] = {**size, **found.get(key, {}), **stated}
    return found


def _settings(value: dict[str, Any], kept: Kept) -> dict[str, Any]:
    """Return a parsed ``tokenizer_config.json`` with new ids of added tokens."""
    if not isinstance(added := value.get(_ADDED), dict):
        return value
    new = {key: _new(kept, int(key)) for key in added if key.isascii() and key.isdigit()}
    return {**value, _ADDED: {str(new[key]): added[key] for key in new if new[key] >= 0}}


def _of_gguf(value: dict[str, Any], kept: Kept) -> dict[str, Any]:
    """Return what a GGUF file said of the tokens with new ids and sizes."""
    ids = {key: _new(kept, i) for key, i in value.items() if key.endswith("_token_id") and type(i) is int}
    return value | ids | {key: len(kept.ids) for key in value if key.endswith(".vocab_size")}


def _new(kept: Kept, i: int) -> int:
    return int(kept.new([i])[0])


def _sized(config: Mapping[str, Any], kept: Kept, where: str) -> dict[str, Any]:
    """Return a parsed ``config.json`` with the new size of the vocabulary wherever it states it.

    Raises:
        SourceError: it has several vocabularies.
    """
    found = dict(config)
    for key, value in found.items():
        if key in special_ids.SIZES and type(value) is int:
            if key == special_ids.SIZES[0] and value != kept.size:
                raise SourceError(f"{where}: config.json: {key} is {value}, and the embeddings have {kept.size} rows")
            found[key] = int(np.searchsorted(kept.ids, min(value, kept.size)))
        elif "vocab" in key and key not in _OTHER_SIZES and type(value) in (int, list):
            raise SourceError(f"{where}: config.json: {key}: a model of several vocabularies is not cut")
        elif isinstance(value, dict):
            found[key] = _sized(value, kept, where)
    return found
