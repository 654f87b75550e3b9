"""Initializers: which weights stay packed, and that onnxruntime's codes stand for the same values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import aibit_format as aibit
from aibit_format.formats.onnx.weights import Weights, _group_of, _packed_form
from aibit_format.schemes import make, parse
from tests.support import architectures

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def converted(tmp_path):
    def convert(scheme):
        if not (tmp_path / "hf").exists():
            architectures.save("llama-untied", tmp_path / "hf", torch.bfloat16)
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme, overwrite=True)
        return aibit.open(tmp_path / "m.aibit")

    return convert


@pytest.mark.parametrize("scheme", [
    "int8", "int8-absmax", "int8-absmax,group=32", "int8-zp", "int8-zp,group=16", "int4-group,group=16",
    "int4-group,group=64,symmetric=1",
])  # fmt: skip
def test_packed_codes_stand_for_the_same_values(scheme, converted):
    with converted(scheme) as file:
        weights = Weights(file)
        packed = weights.packed(NAME)
        assert packed is not None
        codes, scales, *zeros = (weights.made[name].make() for name in packed.operands)
        rows, columns = file.info(NAME).shape
        codes = codes.reshape(rows, -1)
        if packed.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], -1).reshape(rows, columns)
        scales = np.repeat(scales.reshape(rows, -1), packed.group, 1)
        middle = 8 if packed.bits == 4 else 128
        if zeros:
            zero = zeros[0].reshape(rows, -1)
            zero = np.stack([zero & 15, zero >> 4], -1).reshape(rows, -1) if packed.bits == 4 else zero
            middle = np.repeat(zero[:, : columns // packed.group], packed.group, 1).astype(np.float32)
        found = (codes.astype(np.float32) - middle) * scales
        assert np.allclose(found, file.dequantize(NAME), rtol=1e-6, atol=0)
        sizes = [weights.made[name].nbytes == weights.made[name].make().nbytes for name in packed.operands]
        assert all(sizes)


def test_what_is_decoded_is_told(converted):
    with converted("nf4") as file:
        weights = Weights(file)
        assert weights.packed(NAME) is None and weights.rows_of_codes(NAME) is None
        assert weights.values(NAME) == (NAME, "float32") and weights.as_floats == [NAME]
        assert np.array_equal(weights.made[NAME].make(), file.dequantize(NAME))


def test_in_place_is_what_lies_there(converted):
    with converted("bf16") as file:
        weights = Weights(file, in_place=True)
        assert weights.values(NAME) == (NAME, "bfloat16")
        assert weights.made[NAME].plane == file.info(NAME).planes[0]


@pytest.mark.parametrize(("scheme", "columns", "group"), [
    ("int8", 4096, 128), ("int8", 96, 32), ("int8", 50, 0), ("int4-group,group=row", 64, 64),
    ("int8-zp,group=48", 96, 0),
])  # fmt: skip
def test_groups(scheme, columns, group):
    assert _group_of(parse(scheme), columns) == group


def test_a_scale_for_a_whole_tensor_is_decoded():
    assert _packed_form(parse("int8-absmax,group=tensor"), (8, 64)) is None
    assert _packed_form(make("nf4"), (8, 64)) is None
