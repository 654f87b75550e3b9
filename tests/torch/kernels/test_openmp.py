"""The threads that torch runs on."""

from __future__ import annotations

import pytest

from aibit_format import native
from aibit_format.torch.kernels import openmp


@pytest.mark.skipif(native.kernels is None, reason="only compiled code runs on them, and it was not built")
def test_torch_has_threads_to_share():
    """Where this fails, int8 layers are multiplied by torch, more slowly: on Linux it always has an OpenMP runtime."""
    assert openmp.parallel()
