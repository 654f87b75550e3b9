"""The search for scales of GGML's blocks: what it must find, and what it must not depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.schemes.ggml_encode import ENCODERS
from aibit_format.schemes.ggml_search import search_blocks, weights_of
from tests.support.ggml_search import decoded

SEARCHES = {name: replace(encoder.search, by_value=False) for name, encoder in ENCODERS.items()}


def error(search, found, values, weights):
    return (weights * (decoded(search, found) - values).astype(np.float64) ** 2).sum(axis=1)


@pytest.fixture(params=SEARCHES)
def search(request):
    return SEARCHES[request.param]


def values_of(search, count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, search.block)).astype(np.float32)


def test_codes_and_factors_are_within_their_ranges(search):
    found = search_blocks(search, values_of(search, 20), np.ones((20, search.block), np.float32))
    assert found.codes.max() <= search.codes[1] - search.codes[0]
    factors, offsets = found.factors[:, 0], found.factors[:, 1]
    assert factors.min() >= search.factors[0] and factors.max() <= search.factors[1]
    assert offsets.min() >= 0 and offsets.max() <= (search.factors[1] if search.minima else 0)


def test_values_that_a_block_can_hold_are_found(search):
    """Every code and both ends of the factors, so that no other scale comes near."""
    low, high = search.codes
    codes = np.resize(np.arange(low, high + 1) if search.book is None else search.book, (search.groups, search.size))
    factors = np.linspace(search.factors[1] / 4, search.factors[1], search.groups).round()[:, None]
    values = (0.5 * factors * codes - (0.25 * factors if search.minima else 0)).astype(np.float32).reshape(1, -1)
    found = search_blocks(search, values, np.ones_like(values))
    largest = np.abs(values).max()
    assert np.abs(decoded(search, found) - values).max() <= largest * 5e-3


def test_blocks_do_not_depend_on_their_neighbours_nor_on_a_power_of_two(search):
    values = values_of(search, 9)
    weights = np.random.default_rng(1).random((9, search.block)).astype(np.float32)
    whole = search_blocks(search, values, weights)
    for i in range(9):
        alone = search_blocks(search, values[i : i + 1], weights[i : i + 1])
        assert (alone.codes[0] == whole.codes[i]).all() and (alone.factors[0] == whole.factors[i]).all()
    scaled = search_blocks(search, values * np.float32(32), weights)
    assert (scaled.codes == whole.codes).all() and (scaled.factors == whole.factors).all()
    assert (scaled.scales == whole.scales.astype(np.float32) * 32).all()


def test_weights_move_the_error_to_where_it_does_not_matter(search):
    values = values_of(search, 40, seed=2)
    importance = np.exp(np.random.default_rng(3).normal(0, 1.5, search.block)).astype(np.float32)
    weights = np.tile(weights_of(importance, search.block), (40, 1))
    alike, better = (search_blocks(search, values, each) for each in (np.ones_like(values), weights))
    assert error(search, better, values, weights).sum() < 0.95 * error(search, alike, values, weights).sum()
    assert error(search, alike, values, 1).sum() < error(search, better, values, 1).sum()


def test_weights_by_value_are_those_of_the_formula(search):
    values = values_of(search, 10)
    weights = np.sqrt(2 * (values**2).mean(axis=1, keepdims=True) + values**2)
    own = search_blocks(replace(search, by_value=True), values, np.ones_like(values))
    found = search_blocks(search, values, weights)
    assert error(search, own, values, weights).sum() == pytest.approx(error(search, found, values, weights).sum(), 1e-3)


def test_columns_without_importance_are_encoded_too(search):
    importance = np.ones(search.block, np.float32)
    importance[: search.size // 2] = 0
    values = values_of(search, 10)
    found = search_blocks(search, values, np.tile(weights_of(importance, search.block), (10, 1)))
    part = slice(search.size // 2)
    assert np.abs(decoded(search, found) - values)[:, part].max() < 3 * np.abs(values).max()
    nothing = search_blocks(search, values, np.tile(weights_of(np.zeros_like(importance), search.block), (10, 1)))
    alike = search_blocks(search, values, np.ones_like(values))
    assert (nothing.codes == alike.codes).all() and (nothing.scales == alike.scales).all()


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-40, -1e-30])
def test_a_block_of_nothing_is_zero(search, value):
    values = np.full((1, search.block), value, np.float32)
    found = search_blocks(search, values, np.ones_like(values))
    assert not decoded(search, found).any() and not found.scales.view(np.uint16).any()


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(SEARCHES)), st.integers(-6, 14), st.integers(0, 2**32 - 1))
def test_the_error_is_below_that_of_the_range_cut_into_steps(name, exponent, seed):
    search = SEARCHES[name]
    values = values_of(search, 3, seed) * np.float32(2.0**exponent)
    found = search_blocks(search, values, np.ones_like(values))
    steps = search.codes[1] - search.codes[0]
    # A step of the largest group, which the factors of smaller groups can always make as well, and float16's own.
    largest = np.ptp(values, axis=1) + np.abs(values).max(axis=1)
    assert (np.abs(decoded(search, found) - values).max(axis=1) <= largest / steps * 2 + 2.0**-13).all()


def test_weights_are_multiplied_by_a_power_of_two_and_none_is_zero():
    weights = weights_of(np.array([0, 3, 1e-20, 1.5] * 8 + [5e10] * 32, np.float32), 32)
    assert weights.shape == (2, 32) and (weights[1] == weights[1, 0]).all() and 1 <= weights[1, 0] < 2
    assert weights[0, :4].tolist() == [2.0**-20, 1.5, 2.0**-20, 0.75]
    assert weights_of(None, 32).tolist() == [[1.0] * 32]
