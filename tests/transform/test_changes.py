"""Changes of one tensor: what is multiplied and rotated, in which dtype it is rounded, and how it is cut."""

import numpy as np
import pytest

from aibit_format.dtypes import from_float32, to_float32
from aibit_format.errors import SchemeError
from aibit_format.transform import changes
from aibit_format.transform.changes import Replace, Rotate, Scale, changed
from aibit_format.transform.hadamard import Rotation

RANDOM = np.random.default_rng(0)


def test_rows_and_columns_from_a_place_on():
    x = RANDOM.normal(size=(4, 6))
    by = np.array([2.0, 3.0])
    rows = changed(x, "f64", [Scale(-2, by, 1)], "f64")
    columns = changed(x, "f64", [Scale(-1, by, 3)], "f64")
    assert np.array_equal(rows, x * np.array([1, 2, 3, 1])[:, None])
    assert np.array_equal(columns, x * np.array([1, 1, 1, 2, 3, 1]))


def test_each_matrix_of_a_stack_has_its_own_factors():
    x, by = RANDOM.normal(size=(3, 4, 5)), RANDOM.normal(size=(3, 5))
    assert np.array_equal(changed(x, "f64", [Scale(-1, by)], "f64"), x * by[:, None])
    assert np.array_equal(changed(x, "f64", [Scale(-2, by[:, :4])], "f64"), x * by[:, :4, None])


def test_a_vector_is_a_column_of_rows():
    x, by = RANDOM.normal(size=4), RANDOM.normal(size=4)
    assert np.array_equal(changed(x, "f64", [Scale(-2, by)], "f64"), x * by)
    assert np.array_equal(changed(x, "f64", [Replace(by)], "f64"), by)


@pytest.mark.parametrize("axis", [-1, -2])
def test_a_rotation_turns_stretches_and_leaves_the_rest(axis):
    turn, x = Rotation.seeded(4, 1), RANDOM.normal(size=(12, 12))
    matrix = np.eye(12)
    matrix[2:10, 2:10] = np.kron(np.eye(2), turn.apply(np.eye(4)))
    expected = x @ matrix if axis == -1 else matrix.T @ x
    assert np.abs(changed(x, "f64", [Rotate(axis, turn, 8, 2)], "f64") - expected).max() < 1e-11


@pytest.mark.parametrize("to", ["bf16", "f16", "f32", "f64"])
def test_values_are_rounded_once_and_pieces_make_no_difference(to, monkeypatch):
    x = from_float32(RANDOM.normal(size=(37, 12)).astype(np.float32), "bf16")
    by = np.exp(RANDOM.normal(size=12))
    what = [Scale(-1, by), Rotate(-1, Rotation.seeded(12, 0), 12)]
    whole = changed(x, "bf16", what, to)
    monkeypatch.setattr(changes, "_PIECE", 40)
    assert np.array_equal(changed(x, "bf16", what, to), whole)
    exact = Rotation.seeded(12, 0).apply(to_float32(x, "bf16").astype(np.float64) * by)
    expected = exact if to == "f64" else from_float32(exact.astype(np.float32), to)
    assert whole.dtype == expected.dtype and np.array_equal(whole, expected)


def test_what_does_not_fit_is_an_error():
    with pytest.raises(SchemeError, match="too large for f16"):
        changed(np.full((2, 2), 60000.0), "f64", [Scale(-1, np.full(2, 2.0))], "f16")
