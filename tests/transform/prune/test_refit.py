"""What reads fewer inputs is fitted by least squares."""

import numpy as np
import pytest

from aibit_format.errors import RecipeError
from aibit_format.transform.prune.refit import refitted


def case(tokens=200, columns=12):
    random = np.random.default_rng(0)
    x = random.normal(size=(tokens, 5)) @ random.normal(size=(5, columns)) + 0.1 * random.normal(size=(tokens, columns))
    return x, random.normal(size=(7, columns)), (x.T @ x).astype(np.float32)


def test_the_least_squares_of_numpy():
    x, weight, hessian = case()
    kept = np.array([0, 2, 3, 5, 8, 9, 11])
    made = refitted(weight, hessian, kept, damping=1e-9)
    expected = np.linalg.lstsq(x[:, kept], x @ weight.T, rcond=None)[0].T
    assert np.allclose(made, expected, atol=1e-3)
    errors = [
        np.square(x[:, kept] @ each.T - x @ weight.T).sum()
        for each in (made, refitted(weight, hessian, kept), weight[:, kept])
    ]
    assert errors[0] <= errors[1] < errors[2] / 5


def test_inputs_that_were_never_there_change_nothing():
    _, weight, hessian = case()
    hessian[2] = hessian[:, 2] = hessian[3] = hessian[:, 3] = 0
    kept = np.array([1, 2, 4])
    made = refitted(weight, hessian, kept)
    assert np.array_equal(made[:, 1], weight[:, 2]) and not np.array_equal(made, weight[:, kept])
    assert np.array_equal(refitted(weight, np.zeros_like(hessian), kept), weight[:, kept])
    assert np.array_equal(refitted(weight, hessian, np.arange(12)), weight)


def test_a_hessian_that_has_no_inverse():
    weight = np.ones((2, 4))
    hessian = np.ones((4, 4), np.float32)
    with pytest.raises(RecipeError, match="cannot be inverted"):
        refitted(weight, hessian, np.array([0, 1]), damping=0)
