"""Products with nf4 and fp4 as they are stored, against values decoded by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aibit_format import native, schemes
from aibit_format.torch.kernels.four_bit import Weight

pytestmark = pytest.mark.skipif(not native.available, reason="the compiled decoders are not here")


def _stored(text, shape):
    scheme = schemes.parse(text)
    array = np.random.default_rng(0).standard_normal(shape, np.float32)
    planes = {role: np.asarray(plane) for role, plane in scheme.encode(array, "f32").items()}
    values = scheme.decode(planes, shape, "f32")
    weight = Weight.stored(scheme, {role: torch.from_numpy(plane) for role, plane in planes.items()}, shape)
    return weight, torch.from_numpy(np.asarray(values, np.float32).reshape(shape))


@pytest.mark.parametrize("text", ["nf4", "fp4", "nf4,nested=1", "fp4,block_size=128,nested=1"])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products(text, rows, dtype):
    weight, values = _stored(text, (48, 256))
    x, bias = torch.randn(rows, 256).to(dtype), torch.randn(48).to(dtype)
    for added in (None, bias):
        wanted = x.double() @ values.double().T + (0 if added is None else added.double())
        found = weight.times(x, added)
        assert found.dtype == dtype
        bound = 1e-4 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(found.double(), wanted, atol=bound, rtol=bound / 4)
    torch.testing.assert_close(weight.values(dtype), values.to(dtype), atol=0, rtol=0)


def test_rows_that_are_no_whole_blocks_are_decoded_elsewhere():
    assert _stored("nf4", (8, 96))[0] is None
