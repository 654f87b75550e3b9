"""Operators that are recorded: shapes and dtypes of their results, and that none is ever run."""

from __future__ import annotations

import pytest
import torch

from aibit_format.torch.record import custom_ops

_X = (1, 4, 3, 8)
CALLS = [
    (custom_ops.linear, ((1, 3, 8), "w", 5, None), (1, 3, 5), torch.bfloat16),
    (custom_ops.embedding, (torch.long, "w", 5, "f16"), (1, 3, 5), torch.float16),
    (custom_ops.rms_norm, ((1, 3, 8), (8,), 1e-5, 0.0, True), (1, 3, 8), torch.bfloat16),
    (custom_ops.full_attention, (_X, (1, 2, 3, 8), (1, 2, 3, 6), 1.0, 0.0), (1, 3, 4, 6), torch.bfloat16),
    (custom_ops.attention, (_X, (1, 2, 3, 8), (1, 2, 3, 6), 0, 1.0, 0, 0.0), (1, 3, 4, 6), torch.bfloat16),
    (custom_ops.rotary, (_X, (1, 1, 3, 8), (1, 1, 3, 8)), _X, torch.bfloat16),
    (custom_ops.gated, (_X, _X, "silu"), _X, torch.bfloat16),
]


def _values(arguments, device):
    for each in arguments:
        if isinstance(each, torch.dtype):
            yield torch.zeros(1, 3, dtype=each, device=device)
        else:
            yield torch.zeros(each, dtype=torch.bfloat16, device=device) if isinstance(each, tuple) else each


@pytest.mark.parametrize(("operator", "arguments", "shape", "dtype"), CALLS[:4])  # the others come of patterns
def test_results_without_values(operator, arguments, shape, dtype):
    found = operator(*_values(arguments, "meta"))
    assert (tuple(found.shape), found.dtype) == (shape, dtype)


@pytest.mark.parametrize(("operator", "arguments", "shape", "dtype"), CALLS)
def test_none_is_run(operator, arguments, shape, dtype):
    with pytest.raises(RuntimeError, match="recorded, and not run"):
        operator(*_values(arguments, "cpu"))
