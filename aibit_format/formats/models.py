"""Builds the empty model that a source describes."""

from __future__ import annotations

import math
from typing import Any

from ..container import documents
from ..errors import SourceError
from ..hf.config import CONFIG_DTYPES, stated_dtype
from ..hf.limits import Limits
from ..hf.meta_model import MetaModel, build_meta_model
from .source import Source


def config_of(source: Source) -> dict[str, Any]:
    """Return the parsed ``config.json`` of a source.

    Raises:
        SourceError: there is none.
        FormatError: it is no JSON.
    """
    if "config.json" not in source.documents:
        raise SourceError(f"{source.path}: no config.json")
    return documents.parse_json("config.json", source.documents["config.json"], constants=True)


def meta_model_of(source: Source, architecture: str | None = None, dtype: str | None = None) -> MetaModel:
    """Build the model of a source on the meta device; only headers and ``config.json`` are read.

    Args:
        source: that holds a model.
        architecture: transformers class, if the config names none or another is wanted.
        dtype: in which it computes, as ``config.json`` names it; by default that of the config, or of the weights.

    Raises:
        SourceError, LoadError: as for ``build_meta_model``.
    """
    dtype, config = dtype or missing_dtype(source), config_of(source)
    limits = Limits.of(math.prod(tensor.shape) for tensor in source.tensors.values())
    stated = config if dtype is None else {**config, "dtype": dtype}
    return build_meta_model(stated, limits, architecture or source.architecture, source.tensors)


def missing_dtype(source: Source) -> str | None:
    """Return the dtype that ``config.json`` leaves to the weights, ``None`` if it states one.

    transformers takes that of the first floating-point tensor for a model's by default.
    """
    if stated_dtype(config_of(source)):
        return None
    names = {name: key for key, name in CONFIG_DTYPES.items()}
    found = (names.get(tensor.dtype) for tensor in source.tensors.values() if tensor.scheme is None)
    return next(filter(None, found), None)
