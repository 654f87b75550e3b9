"""Sums of inputs are those of numpy, however the inputs are cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.calibrate.statistics import PERCENTILES
from aibit_format.calibrate.sums import Rows, Sums, percentiles
from aibit_format.errors import SourceError


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.lists(st.integers(0, 40), max_size=3))
def test_pieces_add_up_to_the_whole(rows, columns, cuts):
    x, sums = normal(rows, columns), Sums("w", columns, None, True)
    bounds = sorted({0, rows, *(min(cut, rows) for cut in cuts)})
    for start, end in itertools.pairwise(bounds):
        sums.add(Rows(x[start:end]))
    found, exact = sums.finished(), x.double().numpy()
    np.testing.assert_allclose(found.sum[0], exact.sum(0), atol=1e-12)
    np.testing.assert_allclose(found.sum2[0], np.square(exact).sum(0), rtol=1e-12)
    np.testing.assert_allclose(found.magnitude[0], np.abs(exact).sum(0), rtol=1e-12)
    np.testing.assert_allclose(found.hessian[0], exact.T @ exact, rtol=1e-4, atol=1e-4)
    assert (found.largest[0] == np.abs(x.numpy()).max(0)).all() and found.counts.tolist() == [rows]
    assert (found.low[0], found.high[0]) == (x.min(), x.max()) and not found.experts


def test_experts_are_apart_and_those_that_saw_nothing_are_zero():
    sums = Sums("w", 3, 3, False)
    sums.add(Rows(normal(5, 3)), 1)
    found = sums.finished()
    assert found.experts and found.counts.tolist() == [0, 5, 0] and found.hessian is None
    assert not found.sum2[[0, 2]].any() and not found.low[[0, 2]].any() and found.sum2[1].all()


def test_an_input_that_is_not_finite_names_the_tensor():
    sums = Sums("model.q.weight", 2, None, False)
    sums.add(Rows(torch.tensor([[1.0, float("nan")]])))
    with pytest.raises(SourceError, match=r"model\.q\.weight.*--dtype float32"):
        sums.finished()


def test_percentiles_are_the_nearest_ranks_of_bf16():
    x = normal(1000, 1).bfloat16()
    found = percentiles(Rows(x.float()).bins.numpy())
    ordered = np.sort(x.float().numpy().ravel())
    ranks = [max(int(np.ceil(share * 1000)), 1) - 1 for share in PERCENTILES]
    assert found.tolist() == ordered[ranks].tolist()
    assert not percentiles(np.zeros(1 << 16, np.int64)).any()
