"""Randomized Hadamard rotations are orthogonal, flat, and the same everywhere."""

import hashlib
import itertools
from fractions import Fraction

import numpy as np
import pytest

from aibit_format.transform import hadamard
from aibit_format.transform.hadamard import Rotation, factor_of

# Size -> size of the factor: Sylvester alone; Paley's first construction, his second; none is known, so Hartley's.
SIZES = {1: 1, 2: 1, 64: 1, 12: 12, 576: 36, 640: 20, 896: 28, 960: 60, 1152: 36, 43: 43, 100: 25, 6: 3}


@pytest.mark.parametrize(("size", "factor"), SIZES.items())
def test_it_is_orthogonal_and_spreads_every_column(size, factor):
    assert len(factor_of(size)) == factor
    matrix = Rotation.seeded(size, 3).apply(np.eye(size))
    assert np.abs(matrix @ matrix.T - np.eye(size)).max() < 1e-11
    known = set(np.unique(factor_of(size))) <= {-1.0, 1.0}
    assert np.abs(matrix).max() <= (1 if known else np.sqrt(2)) / np.sqrt(size) * (1 + 1e-11)
    assert known == (size not in (43, 100, 6))


def test_stretches_are_rotated_by_themselves_and_rows_too():
    turn = Rotation.seeded(12, 0)
    x = np.random.default_rng(0).normal(size=(3, 5, 36))
    matrix = turn.apply(np.eye(12))
    expected = (x.reshape(3, 5, 3, 12) @ matrix).reshape(x.shape)
    assert np.abs(turn.apply(x) - expected).max() < 1e-11


def test_seeds_tell_rotations_apart_and_never_change():
    signs = [Rotation.seeded(64, *seed).signs for seed in ((0,), (1,), (0, 1))]
    assert all(not np.array_equal(one, other) for one, other in itertools.pairwise(signs))
    assert set(signs[0]) == {-1.0, 1.0} and abs(signs[0].sum()) < 32
    digest = hashlib.sha256(Rotation.seeded(576, 0).apply(np.eye(576)).tobytes()).hexdigest()
    assert digest[:16] == "de0789bbe5d20a21"


@pytest.mark.parametrize("size", [36, 576])
def test_sums_do_not_depend_on_their_order(size):
    x = np.random.default_rng(0).normal(size=(8, size)) * np.exp(np.random.default_rng(1).normal(0, 9, size=(8, 1)))
    turn, places = Rotation.seeded(size, 0), np.random.default_rng(2).permutation(len(factor_of(size)))
    fixed = hadamard._fixed(x)
    assert np.array_equal(hadamard._fixed(fixed), fixed) and np.abs(fixed / x - 1).max() < 1e-6
    exact = np.array([[sum(map(Fraction, row * column)) for column in factor_of(size).T] for row in
                      fixed[:, : len(places)]])  # fmt: skip
    found = hadamard._times(fixed[:, places], factor_of(size)[places])
    assert np.array_equal(found, exact.astype(np.float64))
    assert np.abs(turn.apply(x) - fixed @ turn.apply(np.eye(size))).max() < 1e-10 * np.abs(x).max()
