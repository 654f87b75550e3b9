"""Arrays of numpy and tensors of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aibit_format import interop

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
