"""Reads a directory of consolidated weights: a maker's own tensors, with the names and shapes that transformers has.

Weights are in ``consolidated.safetensors``, in shards of an index of that name, or in ``consolidated.00.pth`` and on.
The latter are parts for tensor parallelism: each has some rows or columns of each matrix, and all of each vector. How a
tensor is cut is seen by its shape: embeddings are cut by columns in Llama 1 and 2, by rows in Llama 3.

8-bit floats of Mistral's have a scale for each matrix: ``qscale_weight``, weight = code * scale.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ...container.metadata import Value
from ...errors import SourceError
from ...schemes import parse
from ..fp8.scales import E4M3, scheme_of
from ..huggingface.origin import left_out
from ..huggingface.source import Shard, read_documents, shards_of_index
from ..safetensors.reader import SafetensorsFile
from ..source import SourceFile, SourceTensor
from ..torch_save.pickled import PickledFile
from .params import NAME, Params
from .ranks import document
from .rows import Row, halves, numbered

SINGLE, INDEX = "consolidated.safetensors", "consolidated.safetensors.index.json"
_PART = re.compile(r"consolidated\.(\d{2})\.pth")
FIRST_PART = "consolidated.00.pth"
_SCALE, _ACTIVATIONS = "qscale_weight", "qscale_act"
DTYPE_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}  # in config.json
_DERIVED = frozenset({"rope.freqs"})  # computed from the config


@dataclass(frozen=True, slots=True)
class Place:
    """Say where a tensor comes from: its pieces, the dimension along which they are cut, and heads whose rows move."""

    pieces: tuple[tuple[Shard, SourceTensor], ...]
    axis: int | None
    heads: int | None
    scale: tuple[Shard, SourceTensor] | None = None


class Consolidated(ABC):
    """Provide the tensors of the directory ``path``. A subclass names them, and describes the model.

    Raises:
        SourceError: a file of weights is missing; a tensor is unknown, or of another shape than ``params.json`` says.
    """

    kind: ClassVar[str]
    no_model = None
    architecture = None

    def __init__(self, path: str) -> None:
        self.path = path
        self.params = Params.of(path)
        self._shards = _opened(path)
        self._stored = self._collected()
        self.rows = {row.name: row for row in self.rows_of()}
        self.sizes = self.sizes_of()
        self.metadata: Mapping[str, Value] = {}
        self._places: dict[str, Place] = {}
        self.tensors: dict[str, SourceTensor] = {}
        left = Counter[str]()
        for name in self._stored:
            module, _, part = name.rpartition(".")
            if name in _DERIVED or part == _ACTIVATIONS or self.is_left_out(name):
                left[part] += 1
            elif part != _SCALE:
                self._add(name, module, part)
            elif f"{module}.weight" not in self._stored:
                raise self.error(name, "is the scale of a weight that is not there")
        if left:
            self.metadata = left_out(left)

    @property
    def files(self) -> list[SourceFile]:
        return [SourceFile(os.path.basename(shard.path), shard.path, shard.size) for shard in self._shards]

    @cached_property
    def documents(self) -> dict[str, bytes]:
        found = {name: text for name, text in read_documents(self.path).items() if name not in self.unwanted}
        return dict(sorted((found | self.described()).items()))

    def planes(self, name: str) -> dict[str, np.ndarray]:
        place, tensor = self._places[name], self.tensors[name]
        arrays = [shard.read(stored.name) for shard, stored in place.pieces]
        if place.axis is None:
            if any(not np.array_equal(_bits(array), _bits(arrays[0])) for array in arrays[1:]):
                raise self.error(place.pieces[0][1].name, "is not the same in all parts")
            values = arrays[0]
        else:
            values = np.concatenate(arrays, place.axis)
        values = values if place.heads is None else halves(values, place.heads)
        if place.scale is None:
            return {"values": values}
        shard, stored = place.scale
        planes = {"codes": values, "scale": shard.read(stored.name).reshape(1, 1)}
        for role, problem in (*tensor.stored.bad_values(planes), *tensor.stored.bad_codes(planes, tensor.shape)):
            raise self.error((stored if role == "scale" else place.pieces[0][1]).name, problem)
        return planes

    @abstractmethod
    def rows_of(self) -> Iterable[Row]:
        """Return what tensors the model has."""

    @abstractmethod
    def sizes_of(self) -> dict[str, int]:
        """Return the sizes that shapes are made of."""

    @abstractmethod
    def described(self) -> dict[str, bytes]:
        """Make the documents that say in transformers' terms what the maker's say."""

    def with_config(
        self, documents: Mapping[str, bytes], config: dict[str, Any], ends: dict[str, Any]
    ) -> dict[str, bytes]:
        """Return a tokenizer's documents with those of a config and of the ids at which texts begin and end."""
        if self.dtype in DTYPE_NAMES:
            config["dtype"] = DTYPE_NAMES[self.dtype]
        made = {"config.json": document(config)}
        if ends:
            made["generation_config.json"] = document({"_from_model_config": True} | ends)
        return {**documents, **made}

    @property
    def unwanted(self) -> frozenset[str]:
        """Return the names of documents that others take the place of."""
        return frozenset()

    def is_left_out(self, name: str) -> bool:
        """Tell whether a tensor is one that the model does not need."""
        return False

    @property
    def dtype(self) -> str:
        """Return the dtype of the embeddings, which is the model's."""
        return self._pieces("tok_embeddings.weight")[0][1].dtype

    def has(self, name: str) -> bool:
        """Tell whether the checkpoint has a tensor of this name."""
        return name in self._stored

    def vocabulary(self) -> int:
        """Return the rows of the embeddings in all parts."""
        pieces = self._pieces("tok_embeddings.weight")
        hidden, shapes = self.params.count("dim"), [stored.shape for _, stored in pieces]
        if any(len(shape) != 2 for shape in shapes):
            raise self.error("tok_embeddings.weight", f"has shapes {self._shown(pieces)}, expected rows and columns")
        return sum(shape[0] for shape in shapes) if shapes[0][1] == hidden else shapes[0][0]

    def same_place(self, name: str, other: str) -> bool:
        """Tell whether two tensors are the same bytes of one file, as torch stores what is tied."""
        both = [self._stored.get(each, ()) for each in (name, other)]
        places = [[(shard.path, tensor.offset, tensor.shape) for shard, tensor in pieces] for pieces in both]
        return bool(places[0]) and places[0] == places[1] and all(at is not None for _, at, _ in places[0])

    def error(self, name: str, what: str) -> SourceError:
        """Make an error about a stored tensor."""
        pieces = self._stored.get(name)
        where = pieces[0][0].path if pieces else self.path
        return SourceError(f"{where}: tensor {name!r} {what}")

    def _pieces(self, name: str) -> Sequence[tuple[Shard, SourceTensor]]:
        if name not in self._stored:
            raise SourceError(f"{self.path}: tensor {name!r} is missing")
        return self._stored[name]

    def _collected(self) -> dict[str, list[tuple[Shard, SourceTensor]]]:
        """Return the pieces of each tensor in the order of parts."""
        found: dict[str, list[tuple[Shard, SourceTensor]]] = {}
        parallel = _PART.fullmatch(os.path.basename(self._shards[0].path)) is not None
        for shard in self._shards:
            for name, tensor in shard.tensors.items():
                if name in found and not parallel:
                    raise SourceError(f"{self.path}: tensor {name!r} is in {found[name][0][1].file} and {tensor.file}")
                found.setdefault(name, []).append((shard, tensor))
        for name, pieces in found.items() if parallel else ():
            if len(pieces) != len(self._shards):
                raise SourceError(
                    f"{pieces[0][0].path}: tensor {name!r} is in {len(pieces)} of {len(self._shards)} parts"
                )
        return found

    def _add(self, name: str, module: str, part: str) -> None:
        pattern, numbers = numbered(module)
        row, pieces = self.rows.get(pattern), self._stored[name]
        if row is None or part not in ("weight", "bias"):
            raise self.error(name, f"is not one of a {self.kind} model as params.json describes it")
        whole = tuple(size if isinstance(size, int) else self.sizes[size] for size in row.shape)
        whole = whole if part == "weight" else whole[:1]
        axis = self._axis(name, whole, pieces)
        heads = None if row.heads is None else self.sizes[row.heads]
        target, first = f"{row.target.format(*numbers)}.{part}", pieces[0][1]
        scale = self._scale(name, module, pieces) if part == "weight" else None
        self._places[target] = Place(tuple(pieces), axis, heads, scale)
        if scale is not None:
            scheme = parse(scheme_of((0, 0), scale[1].dtype))
            self.tensors[target] = SourceTensor(target, whole, self.dtype, first.file, scheme)
            return
        offset = first.offset if axis is None and heads is None else None
        self.tensors[target] = replace(first, name=target, shape=whole, offset=offset)

    def _axis(self, name: str, whole: tuple[int, ...], pieces: Sequence[tuple[Shard, SourceTensor]]) -> int | None:
        """Return the dimension along which pieces make the whole; ``None`` if each is the whole."""
        shapes, dtypes = [stored.shape for _, stored in pieces], {stored.dtype for _, stored in pieces}
        if len(dtypes) > 1:
            raise self.error(name, f"is {' and '.join(sorted(dtypes))} in parts")
        if all(shape == whole for shape in shapes):
            return None
        for axis, size in enumerate(whole):
            others = {(*shape[:axis], size, *shape[axis + 1 :]) for shape in shapes if len(shape) == len(whole)}
            if others == {whole} and sum(shape[axis] for shape in shapes) == size:
                return axis
        raise self.error(name, f"has shapes {self._shown(pieces)}, which do not make the {list(whole)} of params.json")

    @staticmethod
    def _shown(pieces: Sequence[tuple[Shard, SourceTensor]]) -> str:
        return f"{', '.join(str(list(stored.shape)) for _, stored in pieces[:3])} in {len(pieces)} files"

    def _scale(
        self, name: str, module: str, pieces: Sequence[tuple[Shard, SourceTensor]]
    ) -> tuple[Shard, SourceTensor] | None:
        found = self._stored.get(f"{module}.{_SCALE}")
        codes = pieces[0][1]
        if codes.dtype != E4M3:
            if found:
                raise self.error(found[0][1].name, f"scales {name!r}, which is {codes.dtype} and not {E4M3}")
            return None
        if not found:
            raise self.error(name, f"is {E4M3}, codes of a quantized weight, without its {_SCALE}")
        scale = found[0][1]
        if len(found) > 1 or scale.shape not in ((), (1,)) or scale.dtype not in ("f32", "bf16", "f16"):
            raise self.error(scale.name, f"is {scale.dtype}{list(scale.shape)}, expected one number")
        return found[0]


def is_directory_of(path: str) -> bool:
    """Tell whether ``path`` is a directory of a maker's own files, and not one of transformers'."""
    names = (SINGLE, INDEX, FIRST_PART)
    return (
        not os.path.isfile(os.path.join(path, "config.json"))
        and os.path.isfile(os.path.join(path, NAME))
        and any(os.path.lexists(os.path.join(path, name)) for name in names)
    )


def _opened(path: str) -> list[Shard]:
    """Open the files of weights: the whole one goes before an index, and both before parts."""
    if os.path.isfile(os.path.join(path, SINGLE)):
        return [SafetensorsFile(os.path.join(path, SINGLE))]
    if os.path.isfile(os.path.join(path, INDEX)):
        names = shards_of_index(path, INDEX)
        if not names:
            raise SourceError(f"{path}/{INDEX}: lists no tensors")
        return [SafetensorsFile(os.path.join(path, name)) for name in names]
    found = sorted(name for name in os.listdir(path) if _PART.fullmatch(name))
    for number, name in enumerate(found):
        if name != f"consolidated.{number:02d}.pth":
            raise SourceError(f"{path}: has {name}, and consolidated.{number:02d}.pth is missing")
    return [PickledFile(os.path.join(path, name)) for name in found or [FIRST_PART]]


def _bits(array: np.ndarray) -> Any:
    return np.ascontiguousarray(array).view(np.uint8)
