"""Hessians that are computed when they are asked for."""

import numpy as np
import pytest

from aibit_format.calibrate.hessians import Derivation, Derived


def test_a_matrix_is_computed_when_it_is_asked_for():
    asked = []

    def change(hessian, which):
        asked.append(which)
        return hessian * (which + 2.0)

    before = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
    found = Derived(before, change)
    assert found.shape == (2, 3, 3) and not asked
    assert np.array_equal(found[1], before[1] * 3) and found[1].dtype == np.float32 and asked == [1, 1]
    assert np.array_equal(np.asarray(found), np.stack([before[0] * 2, before[1] * 3]))
    with pytest.raises(IndexError):
        found[2]
    assert len(list(found)) == 2


def test_weights_that_share_a_hessian_share_what_follows_from_it():
    one, other = np.ones((1, 2, 2), np.float32), np.ones((1, 2, 2), np.float32)
    derivation = Derivation(lambda hessian, which: hessian)
    assert derivation.of(one) is derivation.of(one)
    assert derivation.of(one) is not derivation.of(other) and derivation.of(None) is None
