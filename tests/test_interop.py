"""Arrays of numpy and tensors of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aibit_format import interop
from aibit_format.dtypes import DTYPES
from aibit_format.errors import SchemeError

pytestmark = pytest.mark.usefixtures("encoders")


def test_read_only_pages_become_tensors_without_a_copy_or_a_warning(recwarn):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    array.flags.writeable = False
    tensor = interop.to_torch(array, "f32")
    assert tensor.data_ptr() == array.ctypes.data and tensor.shape == (3, 4) and not recwarn.list


def test_tensors_that_torch_negates_are_negated():
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        values = torch.tensor([1, -2, 3]).to(dtype)
        array, name = interop.to_numpy(torch._neg_view(values))
        assert torch.equal(interop.to_torch(array, name), -values)


def test_rows_of_four_bit_floats_are_torchs_pairs():
    array = np.array([[0x21, 0x43], [0x65, 0x87]], np.uint8)
    tensor = interop.values_to_torch(array, "f4_e2m1", (2, 4))
    assert tensor.dtype == torch.float4_e2m1fn_x2 and tensor.shape == (2, 2)
    assert tensor.view(torch.uint8).tolist() == array.tolist() and tensor.data_ptr() == array.ctypes.data
    back, dtype, shape = interop.values_of_torch(tensor)
    assert (back.tolist(), dtype, shape) == (array.tolist(), "f4_e2m1", (2, 4))
    assert interop.values_of_torch(torch.ones(2, 3))[1:] == ("f32", (2, 3))
    assert interop.to_torch(array, "u4").dtype == interop.plane_dtype("u4") == torch.uint8


@pytest.mark.parametrize(
    ("dtype", "shape"), [("f4_e2m1", (2, 3)), ("f4_e2m1", ()), ("u4", (2, 4)), ("f6_e2m3", (2, 4))]
)
def test_what_torch_cannot_hold_is_an_error(dtype, shape):
    array = np.zeros(DTYPES[dtype].stored(shape), np.uint8)
    with pytest.raises(SchemeError, match=f"torch has no dtype for {dtype}"):
        interop.values_to_torch(array, dtype, shape)
    if dtype == "f4_e2m1":
        with pytest.raises(KeyError):
            interop.to_numpy(torch.zeros((), dtype=torch.uint8).view(torch.float4_e2m1fn_x2))
