"""Chooses the range of a layer's inputs that 8-bit codes are for, in schemes that store it (``int8-static``).

It is the whole range that was seen, from the lowest to the highest input, of each expert by itself; an expert that no
token reached has the range of all. Nothing is clipped: in many models a few inputs are a thousand times as large as the
others, and without them the model is destroyed.

Where such inputs make a step so wide that it rounds the others away, the layer is better off with a scale for each row
of inputs: it gets the scheme's ``uncalibrated`` form, unless a rule names it. A step is too wide if it is more than
half the spread of the inputs, ``(p95 - p5) / 3.29``, which is the standard deviation of normal ones: then rounding adds
noise of 2 % of their variance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..calibrate.statistics import PERCENTILES, Inputs, Statistics
from ..errors import RecipeError
from ..schemes import Scheme

UNSEEN = "nothing was seen of their inputs"
TOO_WIDE = "a few inputs are so large that one scale would round the others away (a --tensor rule keeps it)"
_P5, _P95 = PERCENTILES.index(0.05), PERCENTILES.index(0.95)
_NORMAL = 3.29  # standard deviations between these percentiles
_WIDEST = 0.5  # step, in spreads


def calibrated(
    scheme: Scheme, statistics: Statistics | None, names: Sequence[str], is_named: bool = False
) -> tuple[Scheme, str]:
    """Return a scheme that ``needs_inputs`` with the range of the inputs of a tensor; or another one, and why.

    Args:
        scheme: the scheme.
        statistics: of activations.
        names: of the tensor.
        is_named: a rule names the tensor, so that its step may be as wide as it comes.

    Returns:
        The scheme, and an empty text; or its ``uncalibrated`` form, and ``UNSEEN`` if no token has reached the layer,
        or the tensor is no layer's weight that inputs are multiplied with, or ``TOO_WIDE``.

    Raises:
        RecipeError: there are no statistics, or none of ranges.
    """
    if statistics is None:
        raise RecipeError(
            f"tensor {names[0]!r}: {scheme.name} stores how inputs are quantized, and nothing says in which range they "
            "are: give a text or a file of aibit calibrate (--calibrate FILE; --calibrate default for the text that "
            "comes with this program), or take int8-dynamic, which needs none"
        )
    inputs = next((statistics.inputs[name] for name in names if name in statistics.inputs), None)
    if inputs is None or not inputs.tokens:
        return scheme.uncalibrated, UNSEEN
    found = ranges(inputs)
    if found is None:
        raise RecipeError(
            f"tensor {names[0]!r}: {scheme.name} needs the range of inputs, and an imatrix has sums of squares alone: "
            "take statistics with aibit calibrate SRC -o STATS.safetensors"
        )
    ready = scheme.calibrated(*found)
    if not is_named and inputs.percentiles is not None:
        spread = float(inputs.percentiles[_P95] - inputs.percentiles[_P5]) / _NORMAL
        if ready.input_steps().max(initial=0) > _WIDEST * spread:
            return scheme.uncalibrated, TOO_WIDE
    return ready, ""


def ranges(inputs: Inputs) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the lowest and the highest input of each matrix, f32 [G]; ``None`` if they are not known."""
    if inputs.low is None or inputs.high is None or inputs.extremes is None:
        return None
    seen, (low, high) = inputs.counts > 0, inputs.extremes
    return np.where(seen, inputs.low, np.float32(low)), np.where(seen, inputs.high, np.float32(high))
