"""Selects and decodes the tensors, and collects the documents, that exports to model directories write."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..container.tables import TensorInfo
from ..dtypes import DTYPES, from_float32
from ..errors import SchemeError, WriteError
from ..file.sharded_reader import Opened
from ..hf.limits import Limits
from ..hf.meta_model import MetaModel, build_meta_model
from ..schemes.base import matrix, swapped
from ..schemes.packing import pack_plane, unpack_plane
from ..schemes.plain import Plain
from .safetensors.writer import Entry, Item

DTYPE_OPTIONS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}  # and their names in config.json
_PIECE_ELEMENTS = 1 << 20  # elements decoded at a time


def config_of(file: Opened) -> dict[str, Any] | None:
    """Return the parsed ``config.json``, or ``None`` if there is none.

    Raises:
        FormatError: it is not JSON, or holds keys that fetch or run code.
        WriteError: it is not a JSON object.
    """
    config = file.check_document("config.json") if "config.json" in file.documents else None
    if not isinstance(config, dict | None):
        raise WriteError(f"{file.path}: document 'config.json' is no JSON object")
    return config


def stored(file: Opened) -> Iterator[TensorInfo]:
    """Yield the tensors to write, in file order. Ties are left out: transformers restores them from the config.

    If the config says that nothing is tied, an alias is written like any other tensor.

    Raises:
        FormatError: AIB-E404, AIB-E406: the dtype or scheme of a tensor is not known here, and so neither are values.
    """
    untied = (config_of(file) or {}).get("tie_word_embeddings") is False
    for name in file:
        info = file.info(name)
        if info.alias_of is None or untied:
            file.check_known(info)
            yield info


def values_item(file: Opened, info: TensorInfo, dtype: str | None = None) -> Item:
    """Return an item that writes the tensor's values, laid out as the architecture wants them.

    ``dtype`` is that of floating-point values; without it every tensor keeps its logical dtype, and unquantized values
    are written unchanged.
    """
    wanted = dtype if dtype and DTYPES[info.dtype].is_float else info.dtype
    shape = swapped(info.shape) if info.transposed else info.shape
    return Item(info.name, (Entry(info.name, wanted, shape),), lambda: [_values(file, info, wanted)])


def _values(file: Opened, info: TensorInfo, dtype: str) -> np.ndarray:
    planes = file.planes(info.name)
    file.check_values(info, planes)
    if isinstance(info.scheme, Plain) and info.scheme.name == dtype:
        found = planes["values"]
        if DTYPES[dtype].is_packed:
            return _closely_packed(found, info)
    else:
        rows, columns = matrix(info.shape)
        found = np.empty((rows, columns), DTYPES[dtype].numpy)
        step = max(1, _PIECE_ELEMENTS // max(columns, 1))
        for start in range(0, rows if columns else 0, step):
            part = slice(start, min(start + step, rows))
            try:
                found[part] = from_float32(info.scheme.decode_rows(planes, info.shape, info.dtype, part), dtype)
            except SchemeError as error:
                raise SchemeError(f"{file.path}: tensor {info.name!r}: {error}") from error
        found = found.reshape(info.shape)
    return np.swapaxes(found, -1, -2) if info.transposed else found


def _closely_packed(values: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Return packed values u8 [bytes] without the bits between rows, which safetensors has not."""
    if not info.transposed and values.nbytes * 8 == math.prod(info.shape) * DTYPES[info.dtype].bits:
        return values.reshape(-1)
    codes = unpack_plane(values, info.dtype, info.shape)
    return pack_plane((np.swapaxes(codes, -1, -2) if info.transposed else codes).reshape(-1), info.dtype)


def model_of(file: Opened, config: Mapping[str, Any]) -> MetaModel:
    """Build the model that transformers makes of a directory with this config, without memory for its weights.

    Raises:
        WriteError: the file lacks weights of it, such as a pooler that was left out; transformers would fill them in
            at random, and say so in a warning at most.
        LoadError: transformers does not know the architecture.
    """
    limits = Limits.of(math.prod(file.info(name).shape) for name in file)
    model = build_meta_model(config, limits, file.metadata["model.architecture"])
    held = {model.ties.get(name, name) for name in file}
    missing = [
        name
        for name, parameter in model.parameters.items()
        if parameter.role != "buffer" and model.ties.get(name, name) not in held
    ]
    if missing:
        raise WriteError(
            f"{file.path}: {model.architecture} has {len(missing)} weights that the file lacks, and transformers would "
            f"fill them in at random: {', '.join(missing[:5])}. The file itself loads, without them; a GGUF file that "
            "it came from is written by --to gguf"
        )
    return model


def documents_of(file: Opened, config: dict[str, Any] | None) -> dict[str, bytes]:
    """Return all documents by name, ``config.json`` replaced by ``config``, and a model card if there is none."""
    texts = {}
    for name in file.documents:
        file.check_document(name)
        texts[name] = bytes(file.documents[name])
    if config is not None and config != config_of(file):
        texts["config.json"] = (json.dumps(_sorted(config), indent=2) + "\n").encode()
    texts.setdefault("README.md", _card(file))
    return texts


def _sorted(value: Any, key: str = "") -> Any:
    """Sort the keys of a config as transformers does, but not where their order may mean something."""
    if key == "quantization_config" or not isinstance(value, dict):
        return value
    return {key: _sorted(value[key], key) for key in sorted(value)}


def _card(file: Opened) -> bytes:
    """Write a short model card that says what the weights are and where they came from."""
    known = {
        "Architecture": file.metadata.get("model.architecture"),
        "Parameters": file.metadata.get("model.parameters"),
        "Converted from": file.metadata.get("source.kind"),
        "Files": file.metadata.get("source.files"),
        "Quantized as": file.metadata.get("quantization.recipe"),
        "Root digest of the .aibit file": file.root,
    }
    lines = [f"- {label}: {_code(value)}" for label, value in known.items() if value is not None]
    return "\n".join(["# Model card", "", "Written from an `.aibit` file.", "", *lines, ""]).encode()


def _code(value: Any) -> str:
    """Format a value in Markdown, each part as code, such that nothing in it can end the code or the line."""
    parts = value if isinstance(value, (list, np.ndarray)) else [value]
    return ", ".join(f"`{''.join(c for c in str(part) if c.isprintable() and c != '`')}`" for part in parts)
