"""Makes columns that large inputs meet larger before weights are quantized (AWQ, 2306.00978).

Each channel is multiplied by ``x^a``, where x is the mean magnitude of its inputs (of an imatrix, the root of the mean
square), divided by the root of the product of the largest and the smallest factor, as AutoAWQ does. Of 20 exponents
from 0 to 0.95, that is taken for each set of channels whose readers have the smallest error of their outputs once their
weights are quantized in the schemes that they will have. The outputs' error is computed from x^T x where there are
Hessians; otherwise from sums of squares, as if columns of inputs were uncorrelated.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..calibrate.statistics import Inputs, Statistics
from ..dtypes import to_float32
from ..errors import RecipeError
from ..formats.sources import values
from .fold import Changes, fold, inputs_of, rescaled
from .method import Context, Done, Quantize
from .source import Transformed
from .structure import Channels, Port, decoder_of

_EXPONENTS = np.arange(20) / 20
_LEAST = 1e-4  # of a factor, before it is normalized
_ROWS, _STACK_ROWS = 512, 4096  # of a matrix, and of a stack, that the search looks at


def awq(source: Transformed, statistics: Statistics, context: Context, how: str) -> Done:
    """Fold factors into norms, ``up`` and values.

    Raises:
        RecipeError: no weight that reads what can be scaled is to be quantized.
    """
    every = decoder_of(source.model).channels
    searches = [found for channels in every if (found := _Search.of(source, channels, statistics))]
    with ThreadPoolExecutor(context.jobs) as workers:
        found = []
        for search, exponent in zip(
            searches, workers.map(lambda each: each.best(source, context.quantize), searches), strict=True
        ):
            found.append(exponent)
            if context.on_progress is not None:
                context.on_progress(len(found), len(searches), search.channels.name)
    if all(exponent is None for exponent in found):
        raise RecipeError(f"{source.path}: {how}: no weight is to be quantized whose columns can be scaled")
    changes: Changes = {}
    scaled = [(search, exponent) for search, exponent in zip(searches, found, strict=True) if exponent]
    for search, exponent in scaled:
        more, factors = fold(source, search.channels, search.factors(exponent))
        for name, each in more.items():
            changes.setdefault(name, []).extend(each)
        statistics = rescaled(statistics, search.channels, factors)
    metadata = {
        "transform.awq.reader": [search.channels.name for search, _ in scaled],
        "transform.awq.exponent": np.array([exponent for _, exponent in scaled], np.float64),
    }
    return source.transformed(how, changes, metadata), statistics


@dataclass(frozen=True)
class _Search:
    """Search the exponent for channels with inputs of magnitudes ``levels``, f64 [channels] or [experts, channels]."""

    channels: Channels
    levels: np.ndarray
    inputs: tuple[tuple[Port, Inputs], ...]  # readers that are known

    @classmethod
    def of(cls, source: Transformed, channels: Channels, statistics: Statistics) -> _Search | None:
        """Return the search; ``None`` if no token reached what reads the channels."""
        found = [(port, inputs) for port in channels.readers if (inputs := inputs_of(statistics, port.name))]
        if not found:
            return None
        # A weight that sees all tokens, if there is one: experts see some of them.
        port, inputs = min(found, key=lambda each: each[1].experts)
        return cls(channels, port.gathered(_magnitudes(inputs, channels.matrices)), tuple(found))

    def factors(self, exponent: float) -> np.ndarray:
        """Return the factors for an exponent."""
        made = np.maximum(self.levels**exponent, _LEAST)
        return made / np.sqrt(made.max(-1, keepdims=True) * made.min(-1, keepdims=True))

    def best(self, source: Transformed, quantize: Quantize) -> float | None:
        """Return the exponent with the smallest error; ``None`` if nothing is quantized."""
        weights = [(port, inputs, _sample(source, port.name)) for port, inputs in self.inputs]
        errors = []
        for exponent in _EXPONENTS:
            parts = [part for each in weights for part in self._errors(*each, self.factors(exponent), quantize)]
            if not parts:
                return None
            errors.append(sum(parts))
        return float(_EXPONENTS[int(np.argmin(errors))])

    def _errors(
        self, port: Port, inputs: Inputs, weight: np.ndarray, factors: np.ndarray, quantize: Quantize
    ) -> Iterator[float]:
        """Yield the errors of a reader's outputs, for each matrix; none if it is stored as it is."""
        by = port.spread(factors).astype(np.float32)
        by = np.broadcast_to(by, (len(inputs.sum2), by.shape[-1]))
        stack = weight.reshape(-1, *weight.shape[-2:])
        importance = (inputs.importance().reshape(by.shape) / by**2).astype(np.float32)
        scaled = (stack * by[:, None]).reshape(weight.shape)
        stored = quantize(port.name, scaled, importance if weight.ndim == 3 else importance[0])
        if stored is None:
            return
        error = stored.reshape(stack.shape) / by[:, None] - stack
        for which, each in enumerate(error):
            if inputs.hessian is not None:
                yield float(((each @ inputs.hessian[which]) * each).sum(dtype=np.float64))
            else:
                yield float((each.astype(np.float64) ** 2).sum(0) @ inputs.sum2[which])


def _magnitudes(inputs: Inputs, matrices: int) -> np.ndarray:
    """Return the mean magnitude of each column, f64 [K], or [experts, K] of channels of each expert; none is 0."""
    sums = inputs.sum2 if inputs.magnitude is None else inputs.magnitude
    counts = inputs.counts[:, None]
    if matrices == 1:
        sums, counts = sums.sum(0), counts.sum(0)
    means = np.divide(sums, counts, out=np.ones(np.broadcast_shapes(sums.shape, counts.shape)), where=counts > 0)
    means = np.sqrt(means) if inputs.magnitude is None else means
    return np.maximum(means, _LEAST * np.maximum(means.mean(-1, keepdims=True), _LEAST))


def _sample(source: Transformed, name: str) -> np.ndarray:
    """Return rows of a weight, evenly spaced, f32: all of a small one."""
    array, dtype = values(source, name)
    rows = array.shape[-2]
    most = _ROWS if array.ndim == 2 else max(_STACK_ROWS // len(array) // 32 * 32, 32)
    places = np.arange(rows) if rows <= most else np.arange(most) * rows // most
    return to_float32(array[..., places, :], dtype)
