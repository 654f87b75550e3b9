"""The search for scales and zero points of groups, against plain enumeration in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.dtypes import largest_of, nearest_codes, to_float32
from aibit_format.schemes import scale_grids
from aibit_format.schemes.scale_search import Groups, choose, fit


def groups(seed, count=40, size=16, scale=0.1):
    random = np.random.default_rng(seed)
    values = (random.standard_normal((count, size)) * scale).astype(np.float32)
    values[::3, 1] *= 6
    weights = np.exp(random.normal(0, 1, (5, size))).astype(np.float32)
    return Groups(values, "f32", weights / weights.max(axis=1, keepdims=True))


def errors(grid, found, scale, zero):
    """Weighted squared errors, f64 [n], with the nearest values of the grid."""
    values = found.values.astype(np.float64)
    weights = found.weights[np.arange(len(values)) % len(found.weights)]
    scale, zero = scale.astype(np.float64)[:, None], zero.astype(np.float64)[:, None]
    codes = grid.nearest((values / scale + zero).astype(np.float32))
    return (weights * (values - scale * (codes - zero)) ** 2).sum(axis=1)


@pytest.mark.parametrize("dtype", ["f4_e2m1", "f8_e4m3", "f8_e5m2"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-24, 18))
def test_values_on_the_grid_of_a_float_are_those_of_its_codes(dtype, seed, exponent):
    scaled = np.ldexp(np.random.default_rng(seed).standard_normal(200), exponent).astype(np.float32)
    halves = np.arange(-32, 33, dtype=np.float32) / 8
    scaled = np.concatenate([scaled, halves]).clip(-largest_of(dtype), largest_of(dtype))
    assert np.array_equal(scale_grids.floats(dtype).nearest(scaled), to_float32(nearest_codes(scaled, dtype), dtype))


def test_values_beyond_the_grid_are_its_ends():
    far = np.float32([-1e9, 1e9])
    assert scale_grids.floats("f4_e2m1").nearest(far).tolist() == [-6, 6]
    assert scale_grids.integers(4).nearest(far).tolist() == [-8, 7]
    assert scale_grids.integers_from_zero(3).nearest(far).tolist() == [0, 7]
    assert scale_grids.book(tuple(np.linspace(-1, 1, 16).tolist())).nearest(far).tolist() == [-1, 1]


@pytest.mark.parametrize("grid", [
    scale_grids.integers(3), scale_grids.integers(4), scale_grids.floats("f4_e2m1"),
    scale_grids.book(tuple(np.linspace(-1, 1, 16).tolist())),
])  # fmt: skip
def test_a_fitted_scale_is_about_as_good_as_the_best_of_a_thousand(grid):
    found = groups(1)
    scale, zero = fit(grid, found, 2)
    largest = np.abs(found.values).max(axis=1)
    tried = np.linspace(0.4, 2.5, 1000, dtype=np.float32)
    signs = (1, -1) if grid.kind == 0 else (1,)
    best = np.min([errors(grid, found, sign * largest * each / grid.high, zero) for each in tried for sign in signs],
                  axis=0)  # fmt: skip
    assert (errors(grid, found, scale, zero).sum()) < 1.06 * best.sum()


def test_with_zeros_the_fit_is_better_than_any_end_that_is_cut_off():
    grid, found = scale_grids.integers_from_zero(4), groups(2)
    found.values[:] += np.float32(0.05)
    scale, zero = fit(grid, found, 2)
    low, high = found.values.min(axis=1), found.values.max(axis=1)
    for steps in (13, 15, 17):
        each = (high - low) / np.float32(steps)
        assert (errors(grid, found, scale, zero) <= errors(grid, found, each, -low / each) * 1.0001).all()


def test_the_best_candidate_is_chosen_and_of_equal_ones_the_first():
    grid, found = scale_grids.integers(4), groups(3)
    largest = np.abs(found.values).max(axis=1)
    scales = np.stack([largest / np.float32(each) for each in (7, 8, 9, 8)])
    zeros = np.zeros_like(scales)
    index, fitted = choose(grid, found, scales, zeros)
    every = np.stack([errors(grid, found, scale, zeros[0]) for scale in scales])
    picked = every[index, np.arange(len(index))]
    assert (picked <= every.min(axis=0) * 1.0001).all() and index.max() < 3
    moved = errors(grid, found, fitted, zeros[0])
    assert moved.sum() < picked.sum()  # the scale that fits the codes is better still


def test_groups_of_zeros_and_scales_that_are_none_do_no_harm():
    grid = scale_grids.integers(4)
    found = Groups(np.zeros((3, 4), np.float32), "f32", np.ones((1, 4), np.float32))
    assert fit(grid, found, 2)[0].tolist() == [0, 0, 0]
    found = groups(4, 3, 4)
    scales = np.stack([np.full(3, 0.1, np.float32), np.full(3, np.inf, np.float32), np.full(3, np.nan, np.float32)])
    assert choose(grid, found, scales, np.zeros_like(scales))[0].tolist() == [0, 0, 0]


def test_results_scale_with_powers_of_two():
    grid, small = scale_grids.integers_from_zero(4), groups(5, scale=2.0**-60)
    large = Groups(small.values * np.float32(2.0**100), "f32", small.weights)
    (scale, zero), (wide, same) = fit(grid, small, 2), fit(grid, large, 2)
    assert np.array_equal(scale * np.float32(2.0**100), wide) and np.array_equal(zero, same)
