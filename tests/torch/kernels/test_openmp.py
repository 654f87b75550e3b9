"""The threads that torch runs on."""

from __future__ import annotations

from aibit_format.torch.kernels import openmp


def test_torch_has_threads_to_share():
    """Where this fails, int8 layers are multiplied by torch, more slowly: on Linux it always has an OpenMP runtime."""
    assert openmp.parallel()
