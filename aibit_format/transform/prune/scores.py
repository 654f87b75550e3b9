"""Scores what a model has several of: how much layers, channels, heads and experts contribute. Least goes first.

layers      the angle between what goes into a layer and what comes out, as a share of pi, mean over tokens (Gromov et
            al., The Unreasonable Ineffectiveness of the Deeper Layers, 2024; Men et al., ShortGPT, 2024)
channels    the sum of squares of a channel over tokens, times the squares of the column that reads it: what would be
            missing in the sum of squares of the output, if channels were uncorrelated (Wanda's, of whole columns)
heads       the same of all channels of the heads that share keys and values
experts     the root of the mean square of an expert's outputs, times the sum of the weights that its router gives it
            (as in Lasby et al., REAP, 2025, but with the mean of one factor instead of that of the product, and over
            all tokens instead of those that are routed there, which measured better)

Without statistics, weights alone are looked at: what comes out of norms is taken for as large as their weights, what is
multiplied with it for as large as the rows of the matrix make it, and up for independent of gate. A layer is scored by
what it would add to the residual stream if all inputs were of size 1, as a share of what is in that behind it:
embeddings, and what the layers before add. That is little to go by.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...calibrate.statistics import Inputs, Statistics
from ...errors import RecipeError
from ...hf.meta_model import MetaModel
from .layers import layer_list, layer_of, text_config
from .widths import Layer

Values = Callable[[str], np.ndarray]  # returns a parameter, as floats, for its name


def of_layers(model: MetaModel, statistics: Statistics | None, values: Values) -> np.ndarray:
    """Return the score of each layer, f64.

    Raises:
        RecipeError: the statistics have no angles.
    """
    listed, count = layer_list(model)
    if statistics is not None:
        found = [statistics.angles.get(f"{listed}.{number}") for number in range(count)]
        if None in found:
            raise RecipeError(
                "these statistics have no angles between what goes into layers and what comes out: take them again "
                "with aibit calibrate, or give the text"
            )
        return np.array(found, np.float64)
    added = np.zeros(count)
    for name, spec in model.parameters.items():
        place = layer_of(name, listed)
        if place is not None and spec.takes_inputs and _writes(model, name):
            added[place[0]] += _squares(values(name)) * spec.columns
    embedding = model.module.get_input_embeddings()
    first = next(name for name, module in model.module.named_modules() if module is embedding)
    stream = _squares(values(f"{first}.weight")) + np.cumsum(added)
    return np.sqrt(added / np.maximum(stream, np.finfo(np.float64).tiny))


def of_channels(layer: Layer, statistics: Statistics | None, values: Values) -> np.ndarray:
    """Return the score of each channel of a layer's MLP, f64 [n], or [experts, n]."""
    if statistics is not None:
        return _of_columns(layer.down, statistics, values(layer.down))
    norm, guessed = layer.gains(layer.family.mlp_norm), np.ones(1)
    for name, rows in layer.writers():
        guessed = guessed * _rows(values(name)[..., rows, :], norm, layer, values)
    return guessed * _of_columns(layer.down, None, values(layer.down))


def of_heads(layer: Layer, statistics: Statistics | None, values: Values) -> np.ndarray:
    """Return the score of each head of keys and values of a layer, f64 [groups]."""
    found = _of_columns(layer.output, statistics, values(layer.output))
    if statistics is None:
        name, rows = layer.value_rows()
        squares = _rows(values(name)[rows], layer.gains(layer.family.attention_norm), layer, values)
        found = found * np.repeat(squares.reshape(layer.groups, 1, -1), layer.heads // layer.groups, 1).reshape(-1)
    return found.reshape(layer.groups, -1).sum(1)


def of_experts(layer: Layer, statistics: Statistics | None, values: Values) -> np.ndarray:
    """Return the score of each expert of a layer, f64 [experts]."""
    weight = values(layer.down)
    found = _inputs(layer.down, statistics)
    if found is None:
        return np.sqrt(of_channels(layer, None, values).sum(1))
    tokens = np.maximum(found.counts, 1)
    outputs = (found.sum2 * np.square(weight.astype(np.float64)).sum(-2)).sum(1) / tokens
    routed = tokens if found.routed is None else found.routed
    return np.where(found.counts > 0, np.sqrt(outputs) * routed, 0.0)


def largest(scores: np.ndarray, keep: int) -> np.ndarray:
    """Return which have the largest scores, ``keep`` of them, in their order: i64 [..., keep]. The first win ties."""
    order = np.argsort(-scores, -1, kind="stable")
    return np.sort(order[..., :keep], -1)


def _of_columns(name: str, statistics: Statistics | None, weight: np.ndarray) -> np.ndarray:
    """Return sums of squares of columns times those of their inputs: f64 [K], or [experts, K]."""
    norms = np.square(weight.astype(np.float64)).sum(-2)
    found = _inputs(name, statistics)
    if found is None:
        return norms
    seen = found.counts > 0
    sums = np.where(seen[:, None], found.sum2, np.ones_like(found.sum2))
    return norms * (sums if found.experts else sums[0])


def _rows(weight: np.ndarray, norm: str | None, layer: Layer, values: Values) -> np.ndarray:
    """Return the sums of squares of rows, whose columns a norm multiplies."""
    gains = 1.0 if norm is None else values(norm).astype(np.float64).reshape(-1) + layer.family.gain
    return np.square(weight.astype(np.float64) * gains).sum(-1)


def _inputs(name: str, statistics: Statistics | None) -> Inputs | None:
    if statistics is None:
        return None
    if name not in statistics.inputs:
        raise RecipeError(f"these statistics have none of {name!r}: take them again with aibit calibrate")
    return statistics.inputs[name]


def _squares(weight: np.ndarray) -> float:
    return float(np.square(weight.astype(np.float64)).mean())


def _writes(model: MetaModel, name: str) -> bool:
    """Tell whether a matrix may write to the residual stream: its rows are as many as that has channels."""
    spec = model.parameters[name]
    rows = spec.shape[-1] if spec.transposed else spec.shape[-2]
    return rows == getattr(text_config(model), "hidden_size", None) != spec.columns or name.endswith(
        ("o_proj.weight", "c_proj.weight", "out_proj.weight", "dense.weight")
    )
