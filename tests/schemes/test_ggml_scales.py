"""Scales of groups without minima: a grid is found again, and no start is worse than the best."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.schemes.ggml_blocks import NO_MINIMA, Blocks, decoded, inverse
from aibit_format.schemes.ggml_encode import ENCODERS
from aibit_format.schemes.ggml_scales import choose_factors, fit_scales

NAMES = sorted(name for name, encoder in ENCODERS.items() if encoder.search.minima == NO_MINIMA)


def blocks_of(search, values):
    return Blocks.of(search, values, np.ones_like(values))


@pytest.mark.parametrize("name", NAMES)
def test_a_fitted_scale_is_the_least_squares_of_its_codes(name):
    search = ENCODERS[name].search
    values = np.random.default_rng(1).normal(size=(4, search.block)).astype(np.float32)
    blocks = blocks_of(search, values)
    fit_scales(search, blocks)
    codes = decoded(search, blocks.values * inverse(blocks.scales))
    error = np.square(blocks.values - blocks.scales * codes).sum(axis=0)
    for factor in (0.9, 0.97, 1.03, 1.1):
        scale = blocks.scales * np.float32(factor)
        other = np.square(blocks.values - scale * decoded(search, blocks.values * inverse(scale))).sum(axis=0)
        assert error.sum() < other.sum()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_on_the_grid_is_found_without_an_error(name):
    search = ENCODERS[name].search
    random = np.random.default_rng(2)
    table = search.bounds_and_book
    codes = table[15:] if table is not None else np.arange(search.codes[0], search.codes[1] + 1, dtype=np.float32)
    values = codes[random.integers(0, len(codes), (2, search.block))]
    values[:, :: search.size] = codes[np.abs(codes).argmax()]  # each group reaches the end of the grid
    blocks = blocks_of(search, values.astype(np.float32) / 1024)
    fit_scales(search, blocks)
    scale = np.abs(blocks.scales).max(axis=0)
    chosen = choose_factors(search, blocks, scale / np.float32(max(search.factors)), np.zeros_like(scale))
    assert (chosen.error < 1e-4 * np.square(blocks.values).sum(axis=(0, 1))).all()
    assert ((chosen.factors >= search.factors[0]) & (chosen.factors <= search.factors[1])).all()
