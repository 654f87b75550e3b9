"""Knows which rows and columns of all weights are channels of the residual stream, and scores these.

Which axes they are is found by building the model with a smaller hidden size: what has become shorter is one. Layers
read the stream through norms, which divide by the root of its mean square. Where channels go, that is the mean
of the others, so that what is read becomes larger or smaller; a factor for norms' weights makes up for it in the mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...calibrate.statistics import Statistics
from ...errors import AibitError, RecipeError
from ...formats.models import config_of, meta_model_of
from ...hf.meta_model import MetaModel
from ...schemes.select import COLUMNS, MATRICES, ROWS
from ..families import ATTENTION_READS, MLP_READS
from ..source import Transformed
from .layers import text_config
from .scores import Values
from .widths import Layer, config_key, layers_of

_AXES = {1: (ROWS,), 2: (ROWS, COLUMNS), 3: (MATRICES, ROWS, COLUMNS)}  # by dimensions of a parameter
_SCALES = ("embed_scale", "embedding_multiplier", "scale_emb")  # attributes of embeddings, some of which follow it


def hidden_keys(model: MetaModel, said: Mapping[str, Any], count: int) -> dict[str, int]:
    """Return the keys of a config that say so many channels, with heads of the size that they have.

    Args:
        model: that is pruned.
        said: what its ``config.json`` says of the decoder.
        count: channels that stay.
    """
    config = text_config(model)
    key = config_key(config, said, ("hidden_size",))
    return {key: count, "head_dim": next(iter(layers_of(model).values())).size}


def hidden_axes(source: Transformed, count: int) -> dict[str, int]:
    """Return the axis of each parameter that has a channel of the residual stream in each place.

    Raises:
        RecipeError: no model with so many differs in that alone.
    """
    model, config = source.model, config_of(source)
    inner = None if text_config(model) is model.module.config else "text_config"
    said = config.get(inner, {}) if inner else config
    changed = {**said, **hidden_keys(model, said, count)}
    whole = {**config, inner: changed} if inner else changed
    described = SimpleNamespace(
        path=source.path, architecture=model.architecture, tensors=source.tensors,
        documents={**source.documents, "config.json": json.dumps(whole).encode()},
    )  # fmt: skip
    try:
        smaller = meta_model_of(described, model.architecture)  # type: ignore[arg-type]
    except AibitError as error:
        raise RecipeError(f"a hidden size of {count}: {error}") from error
    before = text_config(model).hidden_size
    found: dict[str, int] = {}
    for name, spec in model.parameters.items():
        other = smaller.parameters.get(name)
        shape = spec.shape if other is None else other.shape
        differ = [i for i, (a, b) in enumerate(zip(spec.shape, shape, strict=True)) if a != b]
        if (
            other is None
            or len(differ) > 1
            or (differ and (spec.shape[differ[0]], other.shape[differ[0]]) != (before, count))
        ):
            raise RecipeError(
                f"the hidden size of {model.architecture} cannot be cut alone: {name!r} of shape {list(spec.shape)} "
                f"would have shape {None if other is None else list(other.shape)}"
            )
        if differ:
            found[name] = _AXES[len(spec.shape)][differ[0]]
    for scale in _SCALES:
        was, now = (float(getattr(each.module.get_input_embeddings(), scale, 1.0)) for each in (model, smaller))
        if was != now:
            raise RecipeError(
                f"the hidden size of {model.architecture} cannot be cut: its embeddings are multiplied by a number "
                f"that follows from it ({scale}: {was:.6g}, then {now:.6g}); cut channels, heads or layers"
            )
    return found


@dataclass(frozen=True)
class _Reader:
    """Describe a weight that reads the stream: its name, the norm before it, and what that adds to its weight."""

    name: str
    norm: str | None
    gain: float


def _readers(model: MetaModel, axes: Mapping[str, int], layers: Mapping[int, Layer]) -> Iterator[_Reader]:
    inside = {layer.prefix: layer for layer in layers.values()}
    last = [name for name, axis in axes.items() if axis == ROWS and len(model.parameters[name].shape) == 1
            and not name.startswith(tuple(inside)) and name.endswith(".weight")]  # fmt: skip
    for name, axis in axes.items():
        spec = model.parameters[name]
        if axis != COLUMNS or not spec.takes_inputs:
            continue
        layer = next((each for prefix, each in inside.items() if name.startswith(prefix)), None)
        if layer is None:
            yield _Reader(name, last[0] if len(last) == 1 else None, next(iter(layers.values())).family.gain)
            continue
        module = name.removeprefix(layer.prefix).removesuffix(".weight")
        norm = layer.family.attention_norm if module in ATTENTION_READS else None
        norm = layer.family.mlp_norm if module in MLP_READS else norm
        yield _Reader(name, layer.gains(norm), layer.family.gain)


def scored(
    model: MetaModel, axes: Mapping[str, int], statistics: Statistics | None, values: Values
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the score of each channel, f64 [hidden], and the squares that norms see of each, by norm.

    The score is the channel's share of the squares that each weight makes of what it reads, added over weights. Without
    statistics, channels of the stream are taken for as large as the embedding and all that writes to them.
    """
    size = text_config(model).hidden_size
    total, seen = np.zeros(size), {}
    stream = None if statistics is not None else _stream(model, axes, values)
    for reader in _readers(model, axes, layers_of(model)):
        gains = np.ones(size) if reader.norm is None else values(reader.norm).astype(np.float64) + reader.gain
        inputs = statistics.inputs.get(reader.name) if statistics is not None else None
        if inputs is not None:
            squares = inputs.sum2.sum(0) / max(float(inputs.counts.sum()), 1.0)
            if reader.norm is not None:
                seen[reader.norm] = squares / np.where(gains == 0, 1.0, gains) ** 2
        elif stream is not None:
            squares = stream * gains**2
        else:
            continue
        weight = np.square(values(model.ties.get(reader.name, reader.name)).astype(np.float64)).reshape(-1, size).sum(0)
        total += squares * weight / max(float(squares @ weight), np.finfo(np.float64).tiny)
    if not total.any():
        raise RecipeError(
            "these statistics have none of what reads the residual stream: take them again (aibit calibrate)"
        )
    return total, seen


def _stream(model: MetaModel, axes: Mapping[str, int], values: Values) -> np.ndarray:
    size = text_config(model).hidden_size
    found = np.zeros(size)
    for name, axis in axes.items():
        shape = model.parameters[name].shape
        if len(shape) > 1 and axis == ROWS:  # it writes to the stream
            found += np.square(np.moveaxis(values(name).astype(np.float64), -2, 0).reshape(size, -1)).sum(1)
    embedding = model.module.get_input_embeddings()
    first = next(name for name, module in model.module.named_modules() if module is embedding)
    return found + np.square(values(f"{first}.weight").astype(np.float64)).mean(0)


def factors(seen: Mapping[str, np.ndarray], kept: np.ndarray) -> dict[str, float]:
    """Return by what the weights of norms are multiplied, so that in the mean they give what they gave."""
    found = {}
    for norm, squares in seen.items():
        share = float(squares[kept].sum() / max(float(squares.sum()), np.finfo(np.float64).tiny))
        found[norm] = float(np.sqrt(share * len(squares) / len(kept)))
    return found
