"""Codes of learned codebooks."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.schemes.packing import pack, unpack
from tests.support.eight_bit_weights import F32, encoded, weights


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_codes_are_the_nearest_entries(bits):
    x = weights((37, 51), dtype="f16")
    scheme, planes = encoded(f"cluster,bits={bits}", x, "f16")
    book = planes["codebook"].astype(np.float64)
    distances = np.abs(x.astype(np.float64)[..., None] - book)
    nearest = distances.argmin(axis=-1)  # the first of several: the lower
    assert np.array_equal(unpack(planes["codes"], bits, 51), nearest)
    assert np.array_equal(pack(nearest.astype(np.uint8), bits), planes["codes"])
    assert np.array_equal(scheme.decode(planes, x.shape, "f16"), planes["codebook"][nearest])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_centres_are_the_means_of_their_values(bits):
    x = np.random.default_rng(4).standard_normal((200, 300)).astype(np.float16)
    _, planes = encoded(f"cluster,bits={bits}", x, "f16")
    codes = unpack(planes["codes"], bits, 300).reshape(-1)
    counts = np.bincount(codes, minlength=1 << bits)
    means = np.bincount(codes, x.reshape(-1).astype(np.float64), minlength=1 << bits) / counts
    assert counts.all() and np.allclose(means, planes["codebook"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("bits", "optimum"), [(2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_error_is_that_of_the_best_quantizer_of_normal_values(bits, optimum):
    """Max, Quantizing for Minimum Distortion, 1960: mean square errors for 4, 8 and 16 levels."""
    x = np.random.default_rng(4).standard_normal((500, 1000)).astype(np.float16)
    scheme, planes = encoded(f"cluster,bits={bits}", x, "f16")
    error = np.square(scheme.decode(planes, x.shape, "f16") - x.astype(np.float64)).mean()
    assert error == pytest.approx(optimum, rel=0.01)


def test_a_few_large_values_get_centres_of_their_own():
    x = (np.random.default_rng(4).standard_normal((500, 1000)) * 0.02).astype(np.float16)
    x[:50, 7] = np.linspace(-3, 3, 50)
    scheme, planes = encoded("cluster,bits=8", x, "f16")
    error = np.abs(scheme.decode(planes, x.shape, "f16")[:50, 7] - x[:50, 7])
    assert error.max() < 0.05  # several times that, if the first centres were quantiles of the values


def by_the_page(x: np.ndarray, bits: int) -> tuple[list[float], list[int]]:
    """Codebook and codes of a vector of more than 2^bits values, step by step as the scheme's page has it."""
    size = 1 << bits
    values = sorted(set(x.tolist()))
    n, occurs = len(values), Counter(x.tolist())
    gaps = [b - a for a, b in pairwise(values)]
    mass, reached = 0.0, []
    for left, right, value in zip([gaps[0], *gaps], [*gaps, gaps[-1]], values, strict=True):
        width = (left + right) / 2
        r = math.sqrt(math.sqrt(occurs[value] / width))
        mass += r * math.sqrt(r) * width
        reached.append(mass)
    start: list[int] = []
    for i in range(size):
        first = next(j for j in range(n) if reached[j] >= (i + 0.5) * (mass / size))
        start.append(min(max(first, start[-1] + 1 if start else 0), n - size + i))
    centres, before = [values[j] for j in start], None
    for _ in range(1000):
        midpoints = [(b + a) / 2 for a, b in pairwise(centres)]
        belongs = [sum(m < value for m in midpoints) for value in values]
        if belongs == before:
            break
        before = belongs
        for i in range(size):
            if mine := [value for value, centre in zip(values, belongs, strict=True) if centre == i]:
                mean = sum(occurs[v] * v for v in mine) / sum(occurs[v] for v in mine)
                centres[i] = min(max(mean, mine[0]), mine[-1])
    book = [float(F32(centre)) for centre in centres]
    midpoints = [(b + a) / 2 for a, b in pairwise(book)]
    return book, [sum(m < value for m in midpoints) for value in x.tolist()]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(0, 2**32 - 1), st.integers(20, 200), st.sampled_from([4, 30, 400]))
def test_codebook_and_codes_are_those_of_the_page(bits, seed, count, spread):
    """Whole numbers: their sums are exact in whatever order, and many lie right between two centres."""
    x = np.rint(np.random.default_rng(seed).standard_normal(count) * spread).clip(-2048, 2048).astype(F32)
    if len(np.unique(x)) > 1 << bits:
        _, planes = encoded(f"cluster,bits={bits}", x, "f32")
        book, codes = by_the_page(x, bits)
        assert planes["codebook"].tolist() == book
        assert unpack(planes["codes"], bits, count).tolist() == codes


def test_midpoints_are_float64():
    """Between 0.33333334 and 1.6666666 the middle is below 1, but is 1 in float32."""
    x = np.array([[0, 0, 1, 1.5, 1.5, 2, 8, 9, 16, 17]], F32)
    scheme, planes = encoded("cluster,bits=2", x, "f32")
    assert planes["codebook"].tolist() == [F32(1 / 3), F32(5 / 3), 8.5, 16.5]
    assert scheme.decode(planes, x.shape, "f32")[0, 2] == F32(5 / 3)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17])
def test_as_many_values_as_codes_are_exact(count):
    values = np.random.default_rng(count).permutation(np.arange(count) - 3).astype(F32) / 8
    x = np.resize(values, (7, 19))
    x[x == 0] = -0.0
    scheme, planes = encoded("cluster", x, "f32")
    book = planes["codebook"]
    exact = np.array_equal(scheme.decode(planes, x.shape, "f32"), x)
    assert exact == (count <= 16)
    if exact:
        assert np.array_equal(np.unique(book), np.unique(x)) and (book[count - 1 :] == x.max()).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 40), st.integers(-24, 10))
def test_cluster_error_is_half_a_gap(bits, seed, height, width, exponent):
    x = np.ldexp(np.random.default_rng(seed).standard_t(2, (height, width)), exponent)
    x = x.clip(-6e4, 6e4).astype(np.float16)
    scheme, planes = encoded(f"cluster,bits={bits}", x, "f16")
    book, wide = planes["codebook"].astype(np.float64), x.astype(np.float64)
    bound = max(np.diff(book).max() / 2, book[0] - wide.min(), wide.max() - book[-1]) * (1 + 1e-15)
    assert np.abs(scheme.decode(planes, x.shape, "f16") - wide).max() <= bound


def test_rows_do_not_matter_to_the_codebook():
    """The histogram is all that counts: no order, no shape, no piece of work."""
    x = weights((600, 700), dtype="f16")
    _, planes = encoded("cluster", x, "f16")
    shuffled = np.random.default_rng(9).permutation(x.reshape(-1)).reshape(700, 600)
    assert encoded("cluster", shuffled, "f16")[1]["codebook"].tobytes() == planes["codebook"].tobytes()


def test_bad_codebooks_and_codes_are_found():
    few = np.array([[1, 2, 3]] * 4, F32)
    scheme, good = encoded("cluster", few, "f32")

    def damaged(at, value, role="codebook"):
        planes = good | {role: good[role].copy()}
        planes[role][at] = value
        values = [what for _, what in scheme.bad_values(planes)]
        return values or [what for _, what in scheme.bad_codes(planes, few.shape)]

    for at, value, reason in (
        (0, np.nan, "finite"), (15, np.inf, "finite"), (15, 65505, "65504"), (0, 2, "increasing"), (0, 5, "increasing"),
        (15, 2.5, "increasing"), (15, 4, "increasing"), (0, -0.0, "minus zero"),
    ):  # fmt: skip
        assert [reason in what for what in damaged(at, value)] == [True], (at, value)
    assert damaged((3, 1), 0x21, "codes") == ["bits after the last code of a row are not zero"]
    assert damaged((3, 0), 0x13, "codes") == ["code 3 of a codebook of 3 values"]
