"""Reads a GGUF file as a source: blocks unchanged, with the names and the config that transformers expects.

For the architectures in ``architectures`` the result is a model: names are mapped back, rows that llama.cpp reorders
for its rotary embeddings are put back in order (whole rows of blocks move, nothing is decoded), and config, tokenizer
and chat template are made from the metadata. For any other architecture, tensors keep GGUF's names.
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
from ...dtypes import DTYPES, to_float32
from ...errors import SourceError
from ...hf.tokenizer_files import REASON, REASON_DOCUMENT
from ...schemes import make
from ...schemes.ggml import LAYOUTS
from ..files import begins_with
from ..source import SourceFile, SourceTensor
from . import tokenizer_in
from .architectures import FAMILIES, ROPE_FACTORS, Family, config_of, hugging_face_rows
from .file import GGUFFile, GGUFTensor

__all__ = ["GGUF", "GGUFFile"]

DOCUMENT = REASON_DOCUMENT  # "gguf.json": the metadata that no other document holds
_IN_TOKENIZER = frozenset(f"tokenizer.ggml.{key}" for key in ("tokens", "scores", "merges", "token_type"))
_FACTORS = (".scale", ".input_scale")  # of tensors in nvfp4, beside the scales in their blocks
_PIECE_ELEMENTS = 1 << 20  # elements checked at a time


class GGUF:
    """Provide the tensors of the file ``path``.

    Raises:
        SourceError: it is damaged, one part of several, or has tensors of a type without a scheme here.
    """

    kind: ClassVar[str] = "gguf"
    architecture = None
    metadata: Mapping[str, Value] = {}

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = GGUFFile(path)
        metadata = self._file.metadata
        parts = metadata.get("split.count", 1)
        if type(parts) is not int or parts > 1:
            raise SourceError(
                f"{path}: part {metadata.get('split.no')} of {parts}: join the parts first (llama-gguf-split --merge)"
            )
        for tensor in self._file.tensors:
            if f"gguf:{tensor.type}" not in LAYOUTS and tensor.type not in DTYPES:
                raise SourceError(f"{path}: tensor {tensor.name!r} is {tensor.type}, which has no scheme here")
        self._family: Family | None = None
        self._config: dict[str, Any] = {}
        self.no_model: str | None = None
        try:
            self._family, self._config = self._model()
        except SourceError as error:
            self.no_model = f"GGUF: {error}"
        self._heads = {t.name: self._heads_of(t) for t in self._file.tensors}
        self._places = {self._name(t): t for t in self._file.tensors if not (self._family and t.name == ROPE_FACTORS)}

    @staticmethod
    def matches(path: str) -> bool:
        """Tell whether ``path`` is such a file."""
        return begins_with(path, b"GGUF")

    @cached_property
    def tensors(self) -> dict[str, SourceTensor]:
        return {name: self._tensor(name, tensor) for name, tensor in self._places.items()}

    @property
    def files(self) -> list[SourceFile]:
        return [SourceFile(os.path.basename(self.path), self.path, self._file.size)]

    @cached_property
    def documents(self) -> dict[str, bytes]:
        kept = dict(self._file.metadata)
        if self._family is None:
            return {DOCUMENT: _json(kept)}
        found = {"config.json": _json(self._config | {"dtype": DTYPE_NAMES[self._dtype]} | self._ends())}
        found["generation_config.json"] = _json({"_from_model_config": True} | self._ends())
        try:
            context = self._config.get("max_position_embeddings") or self._config["n_positions"]
            found |= tokenizer_in.documents_of(self._file.metadata, self._config["vocab_size"], context)
            kept = {key: value for key, value in kept.items() if key not in _IN_TOKENIZER}
        except SourceError as error:
            kept[REASON] = str(error)
        return dict(sorted((found | {DOCUMENT: _json(kept)}).items()))

    def planes(self, name: str) -> dict[str, np.ndarray]:
        tensor, place = self.tensors[name], self._places[name]
        (plane,) = tensor.stored.planes(tensor.shape, tensor.dtype)
        values = self._file.read(place).view(DTYPES[plane.dtype].numpy).reshape(plane.shape)
        heads = self._heads[place.name]
        return {plane.role: values[hugging_face_rows(len(values), heads)] if heads else values}

    def _model(self) -> tuple[Family, dict[str, Any]]:
        architecture = self._file.metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in FAMILIES:
            raise SourceError(f"architecture {architecture!r} is unknown here; known: {', '.join(FAMILIES)}")
        family = FAMILIES[architecture]
        places = {tensor.name: tensor for tensor in self._file.tensors}
        for name in places:
            if name.endswith(_FACTORS):
                raise SourceError(f"tensor {name!r} scales the values of another, which no model here does")
        factors = None
        if ROPE_FACTORS in places:
            if places[ROPE_FACTORS].type != "f32":
                raise SourceError(f"{ROPE_FACTORS} is {places[ROPE_FACTORS].type}, f32 is needed")
            factors = self._file.read(places[ROPE_FACTORS]).view("<f4")
        shapes = {tensor.name: tensor.shape for tensor in self._file.tensors}
        return family, config_of(family, self._file.metadata, shapes, factors)

    def _name(self, tensor: GGUFTensor) -> str:
        return (self._family and self._family.hugging_face(tensor.name)) or tensor.name

    def _heads_of(self, tensor: GGUFTensor) -> int:
        """Return the number of heads whose rows are in llama.cpp's order; 0 if there are none."""
        key = self._family.heads_key(tensor.name) if self._family else None
        config_key = self._family.integers[key] if self._family and key else None
        return self._config[config_key] if config_key else 0

    def _tensor(self, name: str, place: GGUFTensor) -> SourceTensor:
        scheme = f"gguf:{place.type}"
        known = scheme in LAYOUTS
        dtype = self._dtype if known else place.type
        transposed = self._family is not None and self._family.is_conv1d(place.name)
        file = os.path.basename(self.path)
        as_it_is = not known and not self._heads[place.name]
        offset = self._file.data_start + place.offset if as_it_is else None
        return SourceTensor(name, place.shape, dtype, file, make(scheme) if known else None, transposed, offset=offset)

    @cached_property
    def _dtype(self) -> str:
        """Find the smallest dtype that exactly holds every unquantized tensor.

        bf16 is tried before f16: the norms of a model trained in bf16 nearly always fit f16 too, but its activations
        may not. The norms of one trained in f16 do not fit bf16.
        """
        left = ["bf16", "f16"]
        for tensor in self._file.tensors:
            if tensor.name != ROPE_FACTORS and tensor.type in ("f16", "bf16", "f32", "f64") and tensor.nbytes:
                left = _holding(left, self._file.read(tensor), tensor.type)
        return left[0] if left else "f32"

    def _ends(self) -> dict[str, Any]:
        """Return the ids of the first token and of those that end a text."""
        names = ("bos", "eos", "eot", "padding")
        ids = {name: self._file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names}
        count = self._config["vocab_size"]
        valid = {name: i for name, i in ids.items() if type(i) is int and 0 <= i < count}
        ends = list(dict.fromkeys(valid[name] for name in ("eos", "eot") if name in valid))
        return {
            "bos_token_id": valid.get("bos"),
            "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
            "pad_token_id": valid.get("padding"),
        }


DTYPE_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}  # in config.json


def _holding(dtypes: Iterable[str], data: np.ndarray, dtype: str) -> list[str]:
    """Select those of ``dtypes`` that exactly hold every value in ``data``, u8 [bytes] of ``dtype`` elements."""
    left = list(dtypes)
    values = data.view(DTYPES[dtype].numpy)
    for start in range(0, len(values), _PIECE_ELEMENTS):
        if all(wanted == dtype for wanted in left):
            return left
        exact = values[start : start + _PIECE_ELEMENTS]
        floats = to_float32(exact, dtype)
        if dtype == "f64" and not np.array_equal(floats.astype(np.float64), exact):
            return []
        left = [wanted for wanted in left if wanted == dtype or _HOLDS[wanted](floats)]
    return left


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
