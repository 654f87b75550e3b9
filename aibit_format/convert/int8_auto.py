"""Chooses for each layer between 8-bit codes around zero and codes with a zero point, by the layer's symmetry score.

``int8-auto`` is no scheme of a file: a tensor is stored in ``int8-absmax`` (-127 to 127) if the score of what goes into
its layer is above the threshold, and in ``int8-zp`` (0 to 255) otherwise (``calibrate.statistics`` says which score).
A layer without one, as no token reached it, counts as asymmetric: that costs a byte for each scale, and its steps are
never wider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..calibrate.statistics import Inputs, Statistics
from ..errors import RecipeError, SchemeError
from ..schemes import Scheme, parse

NAME = "int8-auto"
SYMMETRIC, ASYMMETRIC = "symmetric", "asymmetric"
_SCHEMES = {SYMMETRIC: "int8-absmax", ASYMMETRIC: "int8-zp"}


@dataclass(frozen=True, slots=True)
class Choice:
    """Say what was chosen for a layer, and why; all figures are 0 for a layer that no token reached."""

    mean: float
    std: float
    score: float
    mode: str


@dataclass(frozen=True)
class Int8Auto:
    """Stand in a recipe for the scheme that each layer's statistics choose.

    ``options`` are those of both schemes, as users write them. Without a ``threshold``, it is that of the statistics.
    """

    options: str = ""
    threshold: float | None = None
    statistics: Statistics | None = field(default=None, compare=False, repr=False)

    lossy = True
    fallback = None

    @classmethod
    def parse(cls, text: str) -> Int8Auto:
        """Parse ``int8-auto,group=tensor,threshold=0.7``; both options may be missing.

        Raises:
            SchemeError: an option is unknown, or has a value without a meaning.
        """
        threshold, others = None, []
        for option in text.split(",")[1:]:
            key, _, value = option.partition("=")
            if key != "threshold":
                others.append(f",{option}")
                continue
            try:
                threshold = float(value)
            except ValueError:
                threshold = -1.0
            if not 0 <= threshold <= 1:
                raise SchemeError(f"{NAME}: threshold {value!r}: a number from 0 to 1 is needed")
        made = cls("".join(others), threshold)
        made.scheme(SYMMETRIC)  # raises for options that it does not take
        return made

    @property
    def text(self) -> str:
        """Return it as users write it."""
        return f"{NAME}{self.options}" + ("" if self.threshold is None else f",threshold={self.threshold:g}")

    def scheme(self, mode: str) -> Scheme:
        """Return the scheme of a mode."""
        return parse(_SCHEMES[mode] + self.options)

    def planes(self, shape: tuple[int, ...], dtype: str) -> object:
        """Return the planes of the symmetric scheme; both can hold the same tensors."""
        return self.scheme(SYMMETRIC).planes(shape, dtype)

    def told(self, statistics: Statistics | None) -> Int8Auto:
        """Return it with statistics.

        Raises:
            RecipeError: there are none, or they say nothing of symmetry.
        """
        if statistics is None:
            raise RecipeError(
                f"{NAME} chooses by statistics of activations, and there are none: give a text or a file of "
                "aibit calibrate (--calibrate FILE; --calibrate default for the text that comes with this program)"
            )
        if all(found.sum is None for found in statistics.inputs.values()):
            raise RecipeError(
                f"{NAME} needs means of activations, and an imatrix has sums of squares alone: take statistics with "
                "aibit calibrate SRC -o STATS.safetensors"
            )
        return replace(self, statistics=statistics)

    def choice(self, names: Sequence[str]) -> Choice:
        """Choose for a tensor with these names."""
        known: Mapping[str, Inputs] = {} if self.statistics is None else self.statistics.inputs
        found = next((known[name] for name in names if name in known), None)
        if self.statistics is None or found is None or found.mean is None or found.std is None:
            return Choice(0.0, 0.0, 0.0, ASYMMETRIC)
        about = self.statistics.about
        score = found.score(about.eps) or 0.0
        threshold = about.threshold if self.threshold is None else self.threshold
        return Choice(found.mean, found.std, score, SYMMETRIC if score > threshold else ASYMMETRIC)


def step(scale: np.ndarray, zero_point: np.ndarray | None) -> tuple[float, float]:
    """Return the largest scale of a tensor, and the zero point that goes with it."""
    if not scale.size:
        return 0.0, 0.0
    place = int(scale.argmax())
    return float(scale.flat[place]), 0.0 if zero_point is None else float(zero_point.flat[place])
