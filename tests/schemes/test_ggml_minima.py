"""Scales and minima of groups: an offset grid is found again, and minima keep their sign."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.schemes.ggml_blocks import MINIMA, NO_MINIMA, Blocks, inverse, whole
from aibit_format.schemes.ggml_encode import ENCODERS
from aibit_format.schemes.ggml_minima import choose_both, fit_both

NAMES = sorted(name for name, encoder in ENCODERS.items() if encoder.search.minima != NO_MINIMA)


def fitted(search, values):
    blocks = Blocks.of(search, values, np.ones_like(values))
    fit_both(search, blocks)
    return blocks


def error_of(search, blocks, scale, minimum):
    codes = whole((blocks.values + minimum) * inverse(scale), (0, search.codes[1]))
    return float(np.square(blocks.values - (scale * codes - minimum)).sum())


@pytest.mark.parametrize("name", NAMES)
def test_small_changes_of_both_are_no_better(name):
    search = ENCODERS[name].search
    blocks = fitted(search, np.random.default_rng(1).normal(size=(4, search.block)).astype(np.float32))
    best = error_of(search, blocks, blocks.scales, blocks.minima)
    for a, b in ((0.95, 1), (1.05, 1), (1, 0.9), (1, 1.1)):
        assert best < error_of(search, blocks, blocks.scales * np.float32(a), blocks.minima * np.float32(b))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shift", [-3.0, 3.0])
def test_minima_are_of_the_sign_that_the_type_has(name, shift):
    search = ENCODERS[name].search
    values = (np.random.default_rng(2).normal(size=(4, search.block)) + shift).astype(np.float32)
    blocks = fitted(search, values)
    if search.minima == MINIMA:
        assert (blocks.minima >= 0).all()
    chosen = choose_both(search, blocks, np.abs(blocks.scales).max(axis=0), np.abs(blocks.minima).max(axis=0))
    for factors in (chosen.factors, chosen.offsets):
        assert ((factors >= search.factors[0]) & (factors <= search.factors[1])).all()


@pytest.mark.parametrize("name", NAMES)
def test_equal_values_need_no_step(name):
    search = ENCODERS[name].search
    blocks = fitted(search, np.full((1, search.block), -0.75, np.float32))
    np.testing.assert_allclose(error_of(search, blocks, blocks.scales, blocks.minima), 0, atol=1e-9)
