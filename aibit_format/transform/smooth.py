"""Moves the range of inputs into the weights that they are multiplied with (SmoothQuant, 2211.10438)."""

from __future__ import annotations

import numpy as np

from ..calibrate.statistics import Statistics
from ..errors import RecipeError
from ..formats.sources import values
from .changes import to_float64
from .fold import Changes, fold, inputs_of, rescaled
from .method import Context, Done
from .source import Transformed
from .structure import Channels, decoder_of

_LEAST = 1e-5  # of a factor, and of a largest weight


def smooth(source: Transformed, statistics: Statistics, context: Context, how: str, alpha: float) -> Done:
    """Fold ``max|x|^alpha / max|w|^(1 - alpha)`` of each channel into norms.

    Raises:
        RecipeError: the statistics have no largest magnitudes, as those of an imatrix.
    """
    changes: Changes = {}
    count = 0
    for channels in decoder_of(source.model).channels:
        factors = _factors(source, channels, statistics, alpha) if channels.kind == "norm" else None
        if factors is None:
            continue
        more, factors = fold(source, channels, factors)
        for name, each in more.items():
            changes.setdefault(name, []).extend(each)
        statistics, count = rescaled(statistics, channels, factors), count + 1
    if not count:
        raise RecipeError(
            f"{source.path}: {how} needs the largest input of each column behind a norm, and the statistics have none: "
            "an imatrix has sums of squares alone, and inputs of a rotated model have to be seen (--calibrate TEXT)"
        )
    return source.transformed(how, changes), statistics


def _factors(source: Transformed, channels: Channels, statistics: Statistics, alpha: float) -> np.ndarray | None:
    """Return the factors of a norm's channels; ``None`` if nothing is known of what reads them."""
    inputs, weights = np.zeros(channels.count), np.full(channels.count, _LEAST)
    for port in channels.readers:
        found = inputs_of(statistics, port.name)
        if found is None or found.largest is None:
            continue
        inputs = np.maximum(inputs, found.largest.max(0))
        array, dtype = values(source, port.name)
        for matrix in array.reshape(-1, *array.shape[-2:]):
            weights = np.maximum(weights, np.abs(to_float64(matrix, dtype)).max(0))
    if not inputs.any():
        return None
    return np.maximum(np.maximum(inputs, _LEAST) ** alpha / weights ** (1 - alpha), _LEAST)
