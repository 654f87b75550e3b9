"""Fits a matrix that reads fewer inputs so that its outputs stay as near as they can to what they were.

Of inputs x only some are kept. The least squares over the inputs of a text are W H[:, kept] inverse(H[kept, kept]), H
being the sum of x x^T (Hassibi and Stork, Optimal Brain Surgeon, 1993; Frantar and Alistarh, Optimal Brain Compression,
2022; the same is done behind each cut of Ashkboos et al., SliceGPT, 2024). A share of the mean of the diagonal is added
to it, so that columns that hardly differ do not get large weights of both signs.
"""

from __future__ import annotations

import numpy as np

from ...errors import RecipeError

DAMPING = 0.01


def refitted(weight: np.ndarray, hessian: np.ndarray, kept: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """Return the weight that reads the kept inputs alone.

    Args:
        weight: f64 [rows, K].
        hessian: f32 [K, K], the sum of x x^T.
        kept: i64 [n], which inputs are left.
        damping: what is added to the diagonal, as a share of its mean.

    Returns f64 [rows, n]. Columns whose inputs were zero for every token stay as they are.

    Raises:
        RecipeError: the Hessian is no sum of squares.
    """
    diagonal = hessian.diagonal().astype(np.float64)
    live = kept[diagonal[kept] > 0]
    others = np.setdiff1d(np.arange(len(diagonal)), kept)
    others = others[diagonal[others] > 0]
    made = weight[:, kept].copy()
    if not len(live) or not len(others):
        return made
    inside = hessian[np.ix_(live, live)].astype(np.float64)
    inside[np.diag_indices(len(live))] += damping * diagonal[live].mean()
    try:
        shares = np.linalg.solve(inside, hessian[np.ix_(live, others)].astype(np.float64))
    except np.linalg.LinAlgError as error:
        raise RecipeError(f"its Hessian cannot be inverted: {error}: take the statistics from more text") from error
    made[:, np.searchsorted(kept, live)] += weight[:, others] @ shares.T
    return made
