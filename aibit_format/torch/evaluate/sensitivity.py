"""Measures what a model loses if one of its weights is quantized, for each weight and each of some schemes.

A weight is put in a probe scheme, all others as they are, and the divergence of the predictions is measured. It grows
with the square of the error, so what other schemes cost follows from their errors: with a squared error of a half, half
the divergence. Errors are weighted by the importance of columns, if there are statistics. If the conversion rounds with
a method (GPTQ), which saves more in some schemes than in others, they are those of outputs, by the Hessian, of some
rows that are rounded so. Of several weights the costs add up, nearly: their errors are independent.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...container.plan import Tensor
from ...convert.allocation import Choices
from ...convert.conversion import Assignment, Conversion, rounded
from ...convert.convert import convert
from ...convert.encoders import encode
from ...convert.gptq import quantizer_of
from ...errors import LoadError, SchemeError
from ...formats.sources import values
from ...interop import to_torch
from ...io.scratch import temporary_folder
from ...schemes import Scheme, parse
from ...schemes.base import matrix
from ..kernels.decode import decode_rows
from ..load.model import load
from .perplexity import evaluate
from .predictions import Text
from .saved_logits import SavedLogits, save_logits

# k-quants for rows of whole blocks of 256, the others for rows of 32.
CANDIDATES = (
    "gguf:q2_k", "gguf:q3_k", "gguf:iq4_xs", "gguf:q4_k", "gguf:q5_k", "gguf:q6_k", "gguf:q8_0", "gguf:iq4_nl",
    "gguf:q4_0", "gguf:q4_1", "gguf:q5_0", "gguf:q5_1", "int-group,bits=2,group=32,zero=code",
    "int-group,bits=3,group=32,zero=code", "int4-group", "int-group,bits=3,group=64,zero=float",
    "int-group,bits=4,group=64,zero=float",
)  # fmt: skip
_PROBE = 4.25  # bits of the scheme that is measured, or the nearest to it
_ROWS = 128  # of a weight, that are rounded with a method

OnProgress = Callable[[int, int, str], None]  # weights that were measured, of how many, and the name of the next


def searched(conversion: Conversion) -> list[Assignment]:
    """Return the weights of a conversion to a preset that are quantized there: layers, embeddings and head."""
    found = [each for each in conversion.tensors if each.tensor.alias_of is None]
    return [each for each in found if each.tensor.scheme.lossy or each.replaced is not None]


@contextmanager
def plain_model(conversion: Conversion) -> Iterator[tuple[Any, Any]]:
    """Load the model of a conversion's source, and its tokenizer, with values in the place of quantized weights."""
    quantized = {each.tensor.name: each.model_dtype for each in conversion.tensors if each.origin.lossy}
    rules = [(f"^{re.escape(name)}$", dtype) for name, dtype in quantized.items()]
    with temporary_folder() as folder:
        path = os.path.join(folder.name, "plain.aibit")
        convert(conversion.source.path, path, "keep", rules)
        yield load(path)


def sensitivities(
    conversion: Conversion, model: Any, text: Text, candidates: tuple[str, ...] = CANDIDATES,
    on_progress: OnProgress | None = None,
) -> Choices:  # fmt: skip
    """Measure what each scheme would cost each searched weight of a conversion, in nats a token.

    Args:
        conversion: to a preset, of which the weights, the importance of their columns and the method are taken.
        model: its model, with plain weights; they are as they were afterwards.
        text: what is predicted.
        candidates: schemes. A weight that cannot be in one is in its fallback, if that is a candidate too.

    Raises:
        LoadError: the text is too short.
        SchemeError: a candidate is no scheme, or no weight can be in any.
    """
    schemes = [parse(each) for each in candidates]
    weights = searched(conversion)
    nbytes = np.zeros((len(weights), len(schemes)), np.int64)
    costs = np.full((len(weights), len(schemes)), np.inf)
    with temporary_folder() as folder:
        path = os.path.join(folder.name, "logits.safetensors")
        reference = save_logits(model, text, path)
        for place, weight in enumerate(weights):
            if on_progress is not None:
                on_progress(place, len(weights), weight.tensor.name)
            nbytes[place], costs[place] = _of_weight(weight, conversion, schemes, model, text, reference)
    if on_progress is not None:
        on_progress(len(weights), len(weights), "")
    return Choices(tuple(each.tensor.name for each in weights), nbytes, costs)


def _of_weight(
    weight: Assignment, conversion: Conversion, schemes: Sequence[Scheme], model: Any, text: Text,
    reference: SavedLogits,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    array, dtype = weight.read() if weight.read else values(conversion.source, weight.sources[0])
    if weight.read and weight.tensor.transposed != weight.source_transposed:
        array = np.ascontiguousarray(np.swapaxes(array, -1, -2))
    array, dtype = rounded(array, dtype, weight.model_dtype), weight.model_dtype
    nbytes, errors = np.zeros(len(schemes), np.int64), np.full(len(schemes), np.inf)
    tensors = {}
    for i, scheme in enumerate(schemes):
        tensor = replace(weight.tensor, scheme=scheme, shape=array.shape, dtype=dtype)
        try:
            nbytes[i] = tensor.nbytes
        except SchemeError:  # rows are no whole blocks
            continue
        tensors[i] = tensor
    if not tensors:
        raise SchemeError(f"tensor {weight.tensor.name!r}: none of {', '.join(s.text for s in schemes)} can hold it")
    probe = min(tensors, key=lambda i: abs(8 * nbytes[i] / array.size - _PROBE))
    error = _of_outputs if weight.method is not None and array.ndim == 2 else _of_values
    usual, found_errors = error(weight, array, dtype, tensors[probe], list(tensors.values()))
    errors[list(tensors)] = found_errors
    quantized = _values(tensors[probe], encode(schemes[probe], array, dtype, weight.importance_of()))
    found = _divergence(model, weight, quantized, text, reference)
    return nbytes, errors * (found / usual) if usual > 0 else np.where(np.isfinite(errors), 0, errors)


def _of_values(
    weight: Assignment, array: np.ndarray, dtype: str, probe: Tensor, tensors: Sequence[Tensor]
) -> tuple[float, list[float]]:
    """Return the squared error of a weight in the probe scheme, and in each scheme, weighted by importance."""
    wide, importance = to_torch(np.ascontiguousarray(array), dtype).float(), _importance(weight, array.shape)

    def error(tensor: Tensor) -> float:
        apart = _values(tensor, encode(tensor.scheme, array, dtype, weight.importance_of())) - wide
        return float((apart.square() * importance).sum(dtype=torch.float64))

    errors = [error(tensor) for tensor in tensors]
    return errors[tensors.index(probe)], errors


def _of_outputs(
    weight: Assignment, array: np.ndarray, dtype: str, probe: Tensor, tensors: Sequence[Tensor]
) -> tuple[float, list[float]]:
    """Return the squared error of some outputs in the probe scheme, rounded to nearest, and in each with the method."""
    method: Any = weight.method
    count = min(len(array), _ROWS)
    sample = np.ascontiguousarray(array[np.arange(count) * len(array) // count])
    wide, hessian = to_torch(sample, dtype).float(), torch.from_numpy(np.array(method.hessian[0]))

    def error(tensor: Tensor, rounded: bool) -> float:
        some, scheme = replace(tensor, shape=sample.shape), tensor.scheme
        if rounded and quantizer_of(scheme, sample.shape[1]) is not None:
            planes = method.encode(scheme, sample, dtype)
        else:
            planes = encode(scheme, sample, dtype, weight.importance_of())
        apart = _values(some, planes) - wide
        return max(0.0, float(((apart @ hessian) * apart).sum(dtype=torch.float64)))

    return error(probe, False), [error(tensor, True) for tensor in tensors]


def _values(tensor: Tensor, planes: Mapping[str, np.ndarray]) -> torch.Tensor:
    """Return the values, f32, that planes of a tensor stand for."""
    dtypes = {spec.role: spec.dtype for spec in tensor.planes}
    stored = {role: to_torch(plane, dtypes[role]) for role, plane in planes.items()}
    rows = matrix(tensor.shape)[0]
    return decode_rows(tensor.scheme, stored, tensor.shape, tensor.dtype, slice(0, rows)).float().view(tensor.shape)


def _importance(weight: Assignment, shape: tuple[int, ...]) -> torch.Tensor:
    found = weight.importance_of()
    if found is None:
        return torch.ones(1)
    return torch.from_numpy(np.array(found)).view(*(shape if found.ndim > 1 else (-1,)))


@torch.no_grad()
def _divergence(model: Any, weight: Assignment, quantized: torch.Tensor, text: Text, reference: SavedLogits) -> float:
    """Return the mean divergence of a model with a quantized weight."""
    try:
        parameter = model.get_parameter(weight.tensor.name)
    except AttributeError as error:
        raise LoadError(f"{weight.tensor.name}: no parameter of {type(model).__name__}") from error
    kept = parameter.clone()
    parameter.copy_((quantized.mT if weight.tensor.transposed else quantized).to(parameter.dtype))
    try:
        found = evaluate(model, text, reference).divergence
    finally:
        parameter.copy_(kept)
    return max(0.0, found.mean) if found else 0.0
