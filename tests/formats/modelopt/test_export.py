"""Model Optimizer's parts: shapes of scales, algorithms by scheme, and what is said of inputs that are not there."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.formats.huggingface.forms import NotHeldError
from tests.support.forms import form, laid_out, weight

LEFT_OUT = ["3 tensors input_scale"]


def nvfp4():
    return weight("nvfp4", (2, 32), codes=np.arange(32), scale=np.arange(4), global_scale=[0.5])


def fp8(rows="all", columns="all", scales=1, shape=(4, 8)):
    scheme = f"fp8-block,rows={rows},columns={columns}"
    return weight(scheme, shape, codes=np.arange(np.prod(shape)) % 100, scale=np.arange(scales) + 1)


def test_a_scale_of_the_whole_tensor_has_the_dimensions_of_the_source(tmp_path):
    found = laid_out(form("modelopt", tmp_path), nvfp4())
    assert found[".weight"].tolist() == np.arange(32).reshape(2, 16).tolist()
    assert found[".weight_scale"].tolist() == [[0, 1], [2, 3]] and found[".weight_scale_2"].shape == ()
    known = form("modelopt", tmp_path, {"quant_algo": "NVFP4"}, [".weight_scale_2 f32 1"])
    assert laid_out(known, nvfp4())[".weight_scale_2"].tolist() == [0.5]


def test_scales_of_blocks_may_have_four_dimensions(tmp_path):
    stored = fp8(128, 128, 2, (128, 256))
    known = form("modelopt", tmp_path, {"quant_algo": "FP8_PB_WO"}, [".weight_scale f32 4"])
    assert laid_out(known, stored)[".weight_scale"].tolist() == [[[[1.0], [2.0]]]]
    plain = form("modelopt", tmp_path, {"quant_algo": "FP8_PB_WO"})
    assert laid_out(plain, stored)[".weight_scale"].tolist() == [[1.0, 2.0]]


def test_powers_of_two_are_bytes(tmp_path):
    found = laid_out(form("modelopt", tmp_path), weight("mxfp8", (2, 32), codes=np.arange(64), scale=[5, 6]))
    assert found[".weight_scale"].tolist() == [[5], [6]] and found[".weight"].shape == (2, 32)


@pytest.mark.parametrize(
    ("said", "left_out", "algorithm"),
    [(None, (), "W4A16_NVFP4"), ({"quant_algo": "NVFP4"}, LEFT_OUT, "W4A16_NVFP4"),
     ({"quant_algo": "NVFP4"}, (), "NVFP4"), ({"quant_algo": "W4A8_NVFP4_FP8"}, (), "W4A8_NVFP4_FP8")],
)  # fmt: skip
def test_weights_alone_are_quantized_where_scales_of_inputs_are_not_there(said, left_out, algorithm, tmp_path):
    modelopt = form("modelopt", tmp_path, said, left_out=left_out)
    assert modelopt.config([nvfp4()], [])["quant_algo"] == algorithm


def test_fp8_layers_need_numbers_for_their_inputs(tmp_path):
    for said, left_out in ((None, ()), ({"quant_algo": "FP8"}, LEFT_OUT)):
        with pytest.raises(NotHeldError, match="scales the inputs of FP8 layers by numbers that are not in the file"):
            form("modelopt", tmp_path, said, left_out=left_out).settings(fp8())
    assert form("modelopt", tmp_path, {"quant_algo": "FP8"}).settings(fp8()) == "FP8"
    assert form("modelopt", tmp_path, {"quant_algo": "MIXED_PRECISION"}).settings(fp8()) is None


@pytest.mark.parametrize(
    ("scheme", "shape", "message"),
    [
        ("nvfp4,reciprocal=1", (2, 32), "modelopt has NVFP4, MXFP8, and 8-bit floats"),
        ("nvfp4", (2, 33), "modelopt has NVFP4"), ("mxfp8,element=f8_e5m2", (2, 32), "modelopt has NVFP4"),
        ("fp8-block,rows=2,columns=4", (4, 8), "scales of 128 by 128, rows or a tensor"),
        ("fp8-block,rows=128,columns=128,scale=f8_e8m0", (4, 8), "scales of 128 by 128, rows or a tensor"),
        ("mxfp8", (2, 2, 32), "modelopt has matrices alone"),
    ],
)  # fmt: skip
def test_what_is_not_held_is_said(scheme, shape, message, tmp_path):
    with pytest.raises(NotHeldError, match=message):
        form("modelopt", tmp_path).settings(weight(scheme, shape))


def test_a_config_of_its_own_has_a_group_and_names_what_is_left(tmp_path):
    weights = {"num_bits": 8, "type": "float", "group_size": 32}
    stored = weight("mxfp8", (2, 32), codes=np.zeros(64), scale=[1, 1])
    assert form("modelopt", tmp_path).config([stored], ["lm_head"]) == {
        "quant_method": "modelopt", "quant_algo": "MXFP8", "group_size": 32,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"],
    }  # fmt: skip


def test_lists_have_patterns_of_file_names(tmp_path):
    said = {"quant_algo": "NVFP4", "exclude_modules": ["lm_*", "m.q*", "m[.]q", "*.gate"]}
    found = form("modelopt", tmp_path, said).config([nvfp4()], ["lm_head", "m.gate", "m.v"])
    assert found["exclude_modules"] == ["lm_*", "*.gate", "m.v"] and "ignore" not in found
