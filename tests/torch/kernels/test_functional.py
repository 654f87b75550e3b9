"""Linear layers and embeddings over planes."""

import numpy as np
import pytest
import torch

from aibit_format.interop import to_torch
from aibit_format.schemes import make, parse
from aibit_format.torch.kernels import functional
from aibit_format.torch.kernels.functional import Weight

SCHEMES = ["int8", "int8-zp,group=16", "fp8-e4m3", "int4-group,group=16", "cluster,bits=3", "nf4", "gguf:q4_0"]
ROWS, COLUMNS = 37, 64


def weight(scheme):
    """Quantize a random weight; return it and its float32 values by the numpy code."""
    values = np.random.default_rng(3).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    scheme = parse(scheme)
    planes = scheme.encode(values, "f32")
    dtypes = {spec.role: spec.dtype for spec in scheme.planes(values.shape, "f32")}
    tensors = {role: to_torch(np.array(plane), dtypes[role]) for role, plane in planes.items()}
    decoded = torch.from_numpy(scheme.decode(planes, values.shape, "f32"))
    return Weight(scheme, tensors, values.shape, "f32"), decoded


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_are_those_of_decoded_values_however_many_rows_a_piece_has(scheme, monkeypatch):
    made, decoded = weight(scheme)
    x, bias = torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(0)), torch.arange(ROWS).float()
    expected = x @ decoded.T + bias
    for elements in (1, 10 * COLUMNS, 1 << 21):
        monkeypatch.setattr(functional, "_ON_CPU", elements)
        found = functional.linear(x, made, bias)
        assert found.shape == (5, ROWS) and found.dtype == x.dtype
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_reach_the_input(scheme):
    made, decoded = weight(scheme)
    x = torch.ones(2, COLUMNS, requires_grad=True)
    assert functional.learns(x, None) and not functional.uses_codes(functional.row_product(made.scheme), x, None)
    functional.linear(x, made, None).sum().backward()
    torch.testing.assert_close(x.grad, decoded.sum(0).expand(2, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_embeddings_are_rows_of_decoded_values(scheme):
    made, decoded = weight(scheme)
    ids = torch.tensor([[5, 3, 5], [ROWS - 1, 0, 3]])
    assert torch.equal(functional.embedding(ids, made), decoded[ids])
    for wrong in (-1, ROWS):
        with pytest.raises(IndexError, match=f"the table has {ROWS}"):
            functional.embedding(torch.tensor([wrong]), made)


def test_a_scheme_without_a_product_of_codes_has_none():
    assert functional.row_product(make("f32")) is None
    assert not functional.uses_codes(None, torch.ones(1, 4), None)
