"""Figures of the error of quantization."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aibit_format.convert import encoders
from aibit_format.convert.error import measure
from tests.support.weights import INT8

pytestmark = pytest.mark.usefixtures("encoders")


@pytest.mark.parametrize("rows", [40, 2050])
@pytest.mark.parametrize("columns", [63, 100, 1024, 4099])
def test_figures_of_error_are_those_of_float64(rows, columns):
    x = np.random.default_rng(5).standard_normal((rows, columns)).astype(np.float16)
    planes = encoders.encode(INT8, x, "f16")
    error = measure(INT8, planes, x, "f16")
    stride = 16 if rows >= 1024 else 1
    values = x.astype(np.float64)[::stride]
    difference = INT8.decode(planes, x.shape, "f16")[::stride] - values
    noise = (difference**2).sum() / (values**2).sum()
    assert error.relative_rms == pytest.approx(np.sqrt(noise), rel=1e-5)
    assert error.signal_to_noise_db == pytest.approx(-10 * np.log10(noise), abs=1e-3)
    assert error.largest == pytest.approx(np.abs(difference).max(), rel=1e-4)


def test_figures_do_not_depend_on_threads():
    x = np.random.default_rng(5).standard_normal((1600, 2048)).astype(np.float16)
    before = torch.get_num_threads()
    found = set()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found.add(measure(INT8, encoders.encode(INT8, x, "f16"), x, "f16"))
    torch.set_num_threads(before)
    assert len(found) == 1
