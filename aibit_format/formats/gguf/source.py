"""Reads a GGUF file as a source: blocks unchanged, with the names and the config that transformers expects.

For the architectures in ``architectures`` the result is a model: names are mapped back, what llama.cpp's conversion did
to tensors is undone (whole rows of blocks move, columns get an order, and nothing is decoded that need not be), and
config, tokenizer and chat template are made from the metadata. For any other architecture, tensors keep GGUF's names.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ...container.metadata import Value
from ...dtypes import DTYPES, from_float32, to_float32
from ...errors import SchemeError, SourceError
from ...hf.tokenizer_files import REASON, REASON_DOCUMENT
from ...schemes import make
from ...schemes.ggml import LAYOUTS
from ..files import begins_with
from ..source import SourceFile, SourceTensor
from . import tokenizer_in
from .architecture import Architecture, Place, Row
from .architectures import KNOWN, of_file
from .file import GGUFFile, GGUFTensor
from .operations import SAME, ValueOf
from .parts import GGUFParts
from .rope import FACTORS

__all__ = ["GGUF", "GGUFFile"]

DOCUMENT = REASON_DOCUMENT  # "gguf.json": the metadata that no other document holds
_IN_TOKENIZER = frozenset(
    f"tokenizer.ggml.{key}" for key in ("tokens", "scores", "merges", "token_type", "precompiled_charsmap")
)
_BESIDE = (".scale", ".input_scale")  # factors of tensors in nvfp4, beside the scales in their blocks
_PIECE_ELEMENTS = 1 << 20  # elements checked at a time


class GGUF:
    """Provide the tensors of the file ``path``, or of the parts of which it is the first.

    Raises:
        SourceError: it is damaged, not the first part of several, or has tensors of a type without a scheme here.
    """

    kind: ClassVar[str] = "gguf"
    architecture = None
    metadata: Mapping[str, Value] = {}

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = GGUFParts(path)
        for tensor in self._file.tensors:
            if f"gguf:{tensor.type}" not in LAYOUTS and tensor.type not in DTYPES:
                raise SourceError(f"{path}: tensor {tensor.name!r} is {tensor.type}, which has no scheme here")
        self._stored = {tensor.name: tensor for tensor in self._file.tensors}
        self._model: Architecture | None = None
        self._config: dict[str, Any] = {}
        self._places = {name: Place(Row(name, (name,)), (name,)) for name in self._stored}
        self.no_model: str | None = None
        try:
            self._model, self._config, self._places = self._found()
        except SourceError as error:
            self.no_model = f"GGUF: {error}"

    @staticmethod
    def matches(path: str) -> bool:
        """Tell whether ``path`` is such a file."""
        return begins_with(path, b"GGUF")

    @cached_property
    def tensors(self) -> dict[str, SourceTensor]:
        return {name: self._tensor(name, place) for name, place in self._places.items()}

    @property
    def files(self) -> list[SourceFile]:
        return [SourceFile(os.path.basename(file.path), file.path, file.size) for file in self._file.files]

    @cached_property
    def documents(self) -> dict[str, bytes]:
        kept = dict(self._file.metadata)
        if self._model is None:
            return {DOCUMENT: _json(kept)}
        found = {"config.json": _json(self._config | {"dtype": DTYPE_NAMES[self._dtype]} | self._ends())}
        found["generation_config.json"] = _json({"_from_model_config": True} | self._ends())
        try:
            context = next((self._config[key] for key in _CONTEXT if self._config.get(key)), None)
            found |= tokenizer_in.documents_of(self._file.metadata, self._config["vocab_size"], context)
            kept = {key: value for key, value in kept.items() if key not in _IN_TOKENIZER}
        except SourceError as error:
            kept[REASON] = str(error)
        return dict(sorted((found | {DOCUMENT: _json(kept)}).items()))

    def planes(self, name: str) -> dict[str, np.ndarray]:
        tensor, place = self.tensors[name], self._places[name]
        parts = [self._stored[part] for part in place.parts]
        arrays = [self._plane(part) for part in parts]
        if tensor.scheme is not None and tensor.scheme.unordered != tensor.scheme:
            order = place.row.operation.column_order(tensor.shape[-1], self._config)
            return {"blocks": arrays[0], "column_order": np.asarray(order, "<i4")}
        if tensor.scheme is None and any(part.type not in DTYPES for part in parts):
            arrays = [self._values(part, array) for part, array in zip(parts, arrays, strict=True)]
        elif tensor.scheme is None and len({part.type for part in parts} | {tensor.dtype}) > 1:
            arrays = [to_float32(array, part.type) for part, array in zip(parts, arrays, strict=True)]
        (plane,) = tensor.stored.planes(tensor.shape, tensor.dtype)
        made = arrays[0] if place.row.operation is SAME else place.row.operation.to_hugging_face(arrays, self._config)
        return {plane.role: made}

    def _plane(self, part: GGUFTensor) -> np.ndarray:
        """Return a stored tensor as an array: of blocks, or of values in the storage of its dtype."""
        if part.type in DTYPES:
            return self._file.read(part).view(DTYPES[part.type].numpy).reshape(part.shape)
        (plane,) = make(f"gguf:{part.type}").planes(part.shape, "f32")
        return self._file.read(part).reshape(plane.shape)

    @staticmethod
    def _values(part: GGUFTensor, array: np.ndarray) -> np.ndarray:
        if part.type in DTYPES:
            return to_float32(array, part.type)
        return make(f"gguf:{part.type}").decode({"blocks": array}, part.shape, "f32")

    def _found(self) -> tuple[Architecture, dict[str, Any], dict[str, Place]]:
        model = of_file(self._file.metadata, self._stored.keys())
        if model is None:
            name = self._file.metadata.get("general.architecture")
            raise SourceError(f"architecture {str(name)[:60]!r} is unknown here; known: {', '.join(KNOWN)}")
        for name in self._stored:
            if name.endswith(_BESIDE) and not model.has(name):
                raise SourceError(f"tensor {name!r} scales the values of another, which no model here does")
        factors = {}
        for name in FACTORS:
            if name in self._stored:
                if self._stored[name].type != "f32":
                    raise SourceError(f"{name} is {self._stored[name].type}, f32 is needed")
                factors[name] = self._file.read(self._stored[name]).view("<f4")
        shapes = {name: tensor.shape for name, tensor in self._stored.items()}
        return model, model.config(self._file.metadata, shapes, factors), model.places(shapes)

    def _tensor(self, name: str, place: Place) -> SourceTensor:
        parts, operation = [self._stored[part] for part in place.parts], place.row.operation
        shape = parts[0].shape
        if self._model is not None:
            shape = self._model.check(place, [part.shape for part in parts], self._config)
        first = parts[0]
        file = os.path.basename(self._file.owner(first).path)
        layout = LAYOUTS.get(f"gguf:{first.type}")
        if layout and len({part.type for part in parts}) == 1:
            moves = self._moves(place, first, layout.block)
            if moves or operation.column_order(shape[-1], self._config) is not None:
                scheme = make(f"gguf:{first.type}", None if moves else 2)
                return SourceTensor(name, shape, self._dtype, file, scheme, operation.turned)
        kept = {part.type for part in parts} <= DTYPES.keys() and operation.moves_blocks(1, self._config)
        dtype = first.type if kept and len({part.type for part in parts}) == 1 else "f32"
        at_hand = kept and operation.keeps_order
        offset = self._file.owner(first).data_start + first.offset if at_hand else None
        return SourceTensor(name, shape, dtype, file, None, operation.turned, offset=offset)

    def _moves(self, place: Place, part: GGUFTensor, block: int) -> bool:
        """Tell whether blocks of so many elements go through an operation whole: those of a vector are no rows."""
        operation = place.row.operation
        return operation is SAME or (len(part.shape) > 1 and operation.moves_blocks(block, self._config))

    @cached_property
    def _dtype(self) -> str:
        """Find the smallest dtype that exactly holds every unquantized tensor.

        bf16 is tried before f16: the norms of a model trained in bf16 nearly always fit f16 too, but its activations
        may not. The norms of one trained in f16 do not fit bf16.
        """
        left = ["bf16", "f16"]
        for place in self._places.values():
            for part in (self._stored[name] for name in place.parts):
                if part.type in ("f16", "bf16", "f32", "f64") and part.nbytes:
                    left = _holding(left, self._file.read(part), part.type, place.row.operation.value)
        return left[0] if left else "f32"

    def _ends(self) -> dict[str, Any]:
        """Return the ids of the first token and of those that end a text."""
        names = ("bos", "eos", "eot", "padding")
        ids = {name: self._file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names}
        count = self._config["vocab_size"]
        valid = {name: i for name, i in ids.items() if type(i) is int and 0 <= i < count}
        ends = list(dict.fromkeys(valid[name] for name in ("eos", "eot") if name in valid))
        start = self._config.get("decoder_start_token_id")
        return ({} if start is None else {"decoder_start_token_id": start}) | {
            "bos_token_id": valid.get("bos"),
            "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
            "pad_token_id": valid.get("padding"),
        }


# Keys of a config for the length of the longest input, of which a model has one or none.
_CONTEXT = ("max_position_embeddings", "n_positions", "seq_length")
DTYPE_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}  # in config.json


def _holding(dtypes: Iterable[str], data: np.ndarray, dtype: str, value: ValueOf | None = None) -> list[str]:
    """Select those of ``dtypes`` that exactly hold every value in ``data``, u8 [bytes] of ``dtype`` elements.

    ``value`` computes transformers' values from GGUF's, and back: these are held if they come back to the same.
    """
    left = list(dtypes)
    values = data.view(DTYPES[dtype].numpy)
    for start in range(0, len(values), _PIECE_ELEMENTS):
        if value is None and all(wanted == dtype for wanted in left):
            return left
        exact = values[start : start + _PIECE_ELEMENTS]
        floats = to_float32(exact, dtype)
        if dtype == "f64" and not np.array_equal(floats.astype(np.float64), exact):
            return []
        if value is not None:
            there, back, rounding = value
            again = ((wanted, back(_rounded(there(floats), wanted))) for wanted in left)
            left = [wanted for wanted, found in again if np.allclose(found, floats, rounding, atol=0)]
        else:
            left = [wanted for wanted in left if wanted == dtype or _HOLDS[wanted](floats)]
    return left


def _rounded(floats: np.ndarray, dtype: str) -> np.ndarray:
    """Round to ``dtype``; what is too large for it becomes NaN."""
    try:
        return to_float32(from_float32(floats, dtype), dtype)
    except SchemeError:
        return np.full_like(floats, np.nan)


def _fits_f16(floats: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return np.array_equal(floats.astype(np.float16).astype(np.float32), floats)


_HOLDS = {"bf16": lambda floats: not (floats.view(np.uint32) & 0xFFFF).any(), "f16": _fits_f16}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps({key: _plain(inner) for key, inner in value.items()}, indent=1) + "\n").encode()


def _plain(value: Any) -> Any:
    """Convert a value to one that JSON has; numbers that it lacks become text."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
