"""Fused experts taken apart: each weight has its own slices of the planes."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.formats.huggingface.experts import take_apart
from aibit_format.formats.huggingface.forms import NotHeldError
from tests.support.forms import weight

NAMES = ("m.*.gate.weight", "m.*.up.weight")


def test_gate_and_up_are_the_halves_of_each_expert():
    codes, scale = np.arange(2 * 8 * 4), np.arange(2 * 4 * 1)
    fused = weight("fp8-block,rows=2,columns=4", (2, 8, 4), "m.gate_up", codes=codes, scale=scale)
    parts = take_apart(fused, NAMES)
    assert [part.name for part in parts] == ["m.0.gate.weight", "m.0.up.weight", "m.1.gate.weight", "m.1.up.weight"]
    assert all(part.shape == (4, 4) and part.scheme == fused.scheme for part in parts)
    up = parts[3].read()
    assert up["codes"].ravel().tolist() == [*range(48, 64)] and up["scale"].ravel().tolist() == [6, 7]
    assert np.concatenate([part.read()["codes"] for part in parts]).ravel().tolist() == codes.tolist()


def test_a_scale_of_an_expert_is_that_of_both_halves():
    fused = weight("fp8-block,rows=all,columns=all", (2, 4, 4), "m", codes=np.zeros((2, 4, 4)), scale=[3, 5])
    assert [part.read()["scale"].item() for part in take_apart(fused, NAMES)] == [3, 3, 5, 5]


def test_planes_are_read_once_and_when_they_are_asked_for():
    fused, calls = weight("mxfp4", (2, 2, 32), "m", codes=np.zeros((2, 2, 16)), scale=np.arange(4)), []
    read = fused.read

    def counted():
        calls.append(1)
        return read()

    object.__setattr__(fused, "read", counted)
    parts = take_apart(fused, ("m.*.down",))
    assert calls == [] and [part.name for part in parts] == ["m.0.down", "m.1.down"]
    assert [part.read()["scale"].ravel().tolist() for part in parts] == [[0, 1], [2, 3]] and calls == [1]


@pytest.mark.parametrize(
    ("scheme", "shape", "planes"),
    [
        ("fp8-block,rows=4,columns=4", (1, 12, 4), {"codes": np.zeros(48), "scale": np.ones(3)}),  # 6 rows each
        ("fp8-block,rows=1,columns=4", (1, 3, 4), {"codes": np.zeros(12), "scale": np.ones(3)}),  # no halves
    ],
)
def test_halves_that_share_a_block_are_refused(scheme, shape, planes):
    with pytest.raises(NotHeldError, match=r"gate and up of an expert, of \d rows each, share blocks"):
        take_apart(weight(scheme, shape, "m", **planes), NAMES)
