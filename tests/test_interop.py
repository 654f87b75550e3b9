"""Arrays of numpy and tensors of torch."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format import interop

pytestmark = pytest.mark.usefixtures("encoders")


def test_read_only_pages_become_tensors_without_a_copy_or_a_warning(recwarn):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    array.flags.writeable = False
    tensor = interop.to_torch(array, "f32")
    assert tensor.data_ptr() == array.ctypes.data and tensor.shape == (3, 4) and not recwarn.list
