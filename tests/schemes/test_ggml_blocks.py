"""The steps that all searches for scales share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aibit_format.schemes.ggml_blocks import Blocks, decoded, in_order, inverse, least, powers, total, whole
from aibit_format.schemes.ggml_encode import ENCODERS

FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)


@given(arrays.arrays(np.float32, 5, elements=st.floats(2.0**-90, 2.0**90, width=32)))
def test_powers_of_two_bring_a_magnitude_between_one_and_two(magnitude):
    up, down = powers(magnitude)
    assert (up * down == 1).all() and ((magnitude * down >= 1) & (magnitude * down < 2)).all()


@given(arrays.arrays(np.float32, 6, elements=FLOATS))
def test_an_inverse_is_zero_where_there_is_none(value):
    found = inverse(value)
    assert np.isfinite(found).all() and (found[np.abs(value) <= 2.0**-60] == 0).all()
    some = np.abs(value) > 2.0**-60
    np.testing.assert_allclose(found[some] * value[some], 1, rtol=1e-6)


def test_whole_numbers_round_ties_to_even_within_limits():
    assert whole(np.array([-9, 0.5, 1.5, 2.5, 99], np.float32), (0, 15)).tolist() == [0, 0, 2, 2, 15]


@given(arrays.arrays(np.float32, (8, 3), elements=st.floats(-1e3, 1e3, width=32)))
def test_sums_are_in_the_stated_order(terms):
    even, odd = np.zeros(3, np.float32), np.zeros(3, np.float32)
    for i in range(0, 8, 2):
        even, odd = even + terms[i], odd + terms[i + 1]
    assert total(terms).tobytes() == (even + odd).tobytes()
    one = np.zeros(3, np.float32)
    for term in terms:
        one = one + term
    assert in_order(terms).tobytes() == one.tobytes()


def test_the_least_is_chosen_element_by_element_and_the_first_of_equals():
    tried = [(np.array([3, 1, 2]), np.array([0, 0, 0])), (np.array([1, 1, 5]), np.array([7, 7, 7]))]
    assert [each.tolist() for each in least(iter(tried))] == [[1, 1, 2], [7, 0, 0]]


def test_codes_of_a_book_are_the_nearest_values():
    search = ENCODERS["gguf:iq4_nl"].search
    book = np.array(search.book, np.float32)
    values = np.linspace(-140, 130, 301, dtype=np.float32)
    found = decoded(search, values)
    assert (np.abs(found - values) <= np.abs(book[:, None] - values).min(axis=0)).all()


def test_blocks_are_normalized_and_weighted_by_value_if_asked():
    search = replace(ENCODERS["gguf:q4_k"].search, by_value=True)
    values = np.random.default_rng(0).normal(size=(3, search.block)).astype(np.float32) * 1000
    found = Blocks.of(search, values, np.ones_like(values))
    top = np.abs(found.values).max(axis=(0, 1))
    assert ((top >= 1) & (top < 2)).all() and found.values.shape == (search.size, search.groups, 3)
    back = (found.values * found.up).transpose(2, 1, 0).reshape(values.shape)
    assert (back == values).all()
    wanted = np.sqrt(2 * np.square(back).mean(axis=1)[:, None] + np.square(back))
    np.testing.assert_allclose((found.weights * found.up).transpose(2, 1, 0).reshape(values.shape), wanted, rtol=1e-5)
