"""The operations of GGML's decoders with torch: what numpy's are, on random bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aibit_format.schemes import ggml_numpy
from aibit_format.torch.kernels import ggml_torch

DATA = np.random.default_rng(0).integers(0, 256, (5, 64), np.uint8)
TABLE = np.random.default_rng(1).normal(size=(256, 4)).astype(np.float32)
CALLS = {
    **{f"spread {bits} {width}": lambda ops, data, bits=bits, width=width: ops.spread(data, bits, width)
       for bits in (1, 2, 4) for width in (1, 16, 32)},
    "words of 2": lambda ops, data: ops.words(data, 2),
    "words of 4": lambda ops, data: ops.words(data, 4),
    "words of a part": lambda ops, data: ops.words(data[:, 8:24], 4),
    "codes of words": lambda ops, data: ops.four(ops.words(data, 2), 3),
    "signed": lambda ops, data: ops.signed(data),
    "wide": lambda ops, data: ops.wide(data) << 8,
    "floats": lambda ops, data: ops.to_f32(data),
    "half": lambda ops, data: ops.half(data[:, 6:8]),
    "joined": lambda ops, data: ops.join([data[:, :3], data[:, 60:]]),
    "looked up": lambda ops, data: ops.take(TABLE, data),
    "negated": lambda ops, data: ops.negated(ops.to_f32(data[:, :32]) - 128, data[:, 32:36]),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_operation_gives_what_numpys_gives(call):
    expected = call(ggml_numpy, DATA.copy())
    found = call(ggml_torch, torch.from_numpy(DATA.copy())).numpy()
    assert found.shape == expected.shape
    assert np.array_equal(found.astype(np.float64), expected.astype(np.float64), equal_nan=True)
    assert np.array_equal(np.signbit(found), np.signbit(expected))
