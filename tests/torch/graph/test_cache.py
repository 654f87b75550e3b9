"""Attention over kept keys and values, against sums written out."""

from __future__ import annotations

import pytest
import torch

from aibit_format.torch.graph import cache
from aibit_format.torch.graph.cache import Cache, attend
from aibit_format.torch.kernels import operators


def _reference(query, key, value, first, scale, window, cap):
    query, key, value = query.double(), key.double(), value.double()
    out = torch.zeros(1, query.shape[2], query.shape[1], value.shape[3], dtype=torch.double)
    repeats = query.shape[1] // key.shape[1]
    for head in range(query.shape[1]):
        for token in range(query.shape[2]):
            last = first + token + 1
            start = max(0, last - window) if window else 0
            scores = key[0, head // repeats, start:last] @ query[0, head, token] * scale
            if cap:
                scores = cap * (scores / cap).tanh()
            out[0, token, head] = scores.softmax(0) @ value[0, head // repeats, start:last]
    return out


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize("window", [0, 1, 3, 100])
@pytest.mark.parametrize(("first", "tokens"), [(0, 1), (0, 6), (5, 1), (5, 4)])
def test_attention(first, tokens, window, cap, dtype, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(operators, "COMPILED", False)
    torch.manual_seed(first + tokens)
    query = torch.randn(1, 6, tokens, 16, dtype=dtype)
    key, value = (torch.randn(1, 2, 20, size, dtype=dtype) for size in (16, 8))
    found = attend(query, key, value, first, 0.3, window, cap)
    assert found.dtype == dtype and found.is_contiguous()
    wanted = _reference(query, key, value, first, 0.3, window, cap)
    bound = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), wanted, atol=bound, rtol=bound)


def test_what_lies_after_the_last_position_is_not_read():
    query = torch.randn(1, 2, 3, 8)
    key, value = torch.full((1, 2, 10, 8), torch.nan), torch.full((1, 2, 10, 8), torch.nan)
    key[:, :, :5], value[:, :, :5] = torch.randn(2, 1, 2, 5, 8)
    assert attend(query, key, value, 2, 1.0, 0, 0.0).isfinite().all()
    assert attend(query[:, :, :1], key, value, 4, 1.0, 0, 0.0).isfinite().all()


def test_memory_grows_and_keeps_what_it_holds(monkeypatch):
    monkeypatch.setattr(cache, "_LEAST", 4)
    kept = Cache(11)
    keys, values = torch.randn(1, 2, 10, 8), torch.randn(1, 2, 10, 6)
    rooms = []
    for first, stop in ((0, 3), (3, 5), (5, 10)):
        key, value = kept.append(first, keys[:, :, first:stop], values[:, :, first:stop])
        rooms.append(key.shape[2])
        assert torch.equal(key[:, :, :stop], keys[:, :, :stop])
        assert torch.equal(value[:, :, :stop], values[:, :, :stop])
    assert rooms == [6, 6, 11]
    key, _ = kept.append(1, keys[:, :, 7:8], values[:, :, 7:8])
    assert torch.equal(key[:, :, 1], keys[:, :, 7]) and torch.equal(key[:, :, 0], keys[:, :, 0])
