"""The peak of a process's memory."""

from __future__ import annotations

import pytest

from aibit_format.torch.evaluate.memory import PeakMemory


def test_the_peak_of_memory_is_what_was_taken_meanwhile():
    memory = PeakMemory("cpu")
    if memory.bytes() is None:
        pytest.skip("this system does not tell the peak of a process")
    block = bytearray(b"x") * 50_000_000
    del block
    assert 45_000_000 < memory.bytes() < 500_000_000
    assert PeakMemory("cpu").bytes() < 45_000_000
