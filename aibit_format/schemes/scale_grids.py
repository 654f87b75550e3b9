"""Lists the grids that codes are on, and the scales that are tried for each (``scale_search``).

The more codes there are, the less there is to gain from clipping, and the closer scales must lie to make a difference.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ..dtypes import largest_of
from .scale_search import BOOK, FLOATS, INTEGERS, Grid

# Bits -> the first and the last step, from the largest code, and their distance: what the largest magnitude is scaled
# to.
_STEPS = {
    1: (0.0, 1.0, 0.25), 2: (-1.0, 3.0, 0.25), 3: (-1.0, 3.0, 0.25), 4: (-2.0, 4.0, 0.25), 5: (-4.0, 4.0, 0.5),
    6: (-8.0, 4.0, 0.75), 8: (-24.0, 8.0, 2.0),
}  # fmt: skip
# Bits -> the same of how many steps the range of a group with a zero point is cut into.
_CUTS = {
    1: (-0.5, 1.5, 0.25), 2: (-1.0, 3.0, 0.5), 3: (-2.0, 3.0, 0.5), 4: (-2.0, 4.0, 0.5), 5: (-4.0, 3.0, 0.5),
    6: (-6.0, 3.0, 1.0), 8: (-20.0, 6.0, 2.0),
}  # fmt: skip
_FLOATS = {"f4_e2m1": (1, 1.0), "f8_e4m3": (3, 2.0**-6), "f8_e5m2": (2, 2.0**-14)}  # bits of the fraction, least power


def _up_to(first: float, last: float, step: float) -> tuple[float, ...]:
    return tuple(np.arange(first, last + step / 2, step).tolist())


@cache
def integers(bits: int) -> Grid:
    """Return the grid of whole numbers from -2^(bits - 1) up; a negative scale makes the other end the longer."""
    top = 1 << (bits - 1)
    first, last, step = _STEPS[bits]
    tried = _up_to(top + first, top + last, step)
    return Grid(INTEGERS, -top, top - 1, tuple((sign * each, 0.0) for sign in (-1, 1) for each in tried))


@cache
def integers_from_zero(bits: int) -> Grid:
    """Return the grid of whole numbers from 0 up, less a zero."""
    top = (1 << bits) - 1
    first, last, step = _CUTS[bits]
    tried = _up_to(top + first, top + last, step)
    return Grid(INTEGERS, 0, top, tuple((each, cut) for each in tried for cut in (0.0, 0.5, 1.0, 1.5)), has_zero=True)


@cache
def floats(dtype: str) -> Grid:
    """Return the grid of a small float's values."""
    fraction, least = _FLOATS[dtype]
    top = largest_of(dtype)
    # In wider floats an octave of scales is all there is; in E2M1 the largest magnitude decides which of 8 values
    # count.
    tried = _up_to(0.75 * top, 1.5 * top, top / 24) if dtype == "f4_e2m1" else _up_to(top / 2, top * 1.125, top / 16)
    return Grid(FLOATS, -top, top, tuple((each, 0.0) for each in tried), fraction=fraction, least=least)


@cache
def book(values: tuple[float, ...]) -> Grid:
    """Return the grid of a codebook of 16 ascending values from -1 to 1."""
    tried = tuple((each, 0.0) for each in _up_to(0.8, 1.5, 1 / 32))
    return Grid(BOOK, values[0], values[-1], tried, book=values)
