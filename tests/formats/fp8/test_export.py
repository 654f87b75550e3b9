"""FP8's parts: names of scales, blocks that transformers takes for what they are, and what the config says."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.formats.huggingface.forms import NotHeldError
from tests.support.forms import form, laid_out, weight

BLOCK = "fp8-block,rows=2,columns=4"


def stored(scheme=BLOCK, shape=(4, 8), scales=4, **more):
    return weight(scheme, shape, codes=np.arange(32), scale=np.arange(scales) + 1, **more)


def test_scales_are_a_grid_of_blocks_under_the_name_of_the_method(tmp_path):
    found = laid_out(form("fp8", tmp_path), stored())
    assert [*found] == [".weight", ".weight_scale_inv"]
    assert found[".weight"].tolist() == np.arange(32).reshape(4, 8).tolist()
    assert found[".weight_scale_inv"].tolist() == [[1, 2], [3, 4]]
    assert [*laid_out(form("fp8", tmp_path, {"a": 1}, [".scale f32 2"]), stored())] == [".weight", ".scale"]
    fbgemm = form("fp8", tmp_path, {"quant_method": "fbgemm_fp8"})
    assert ".weight_scale" in laid_out(fbgemm, stored("fp8-block,rows=1,columns=all"))


def test_fused_experts_have_their_scales_beside_them(tmp_path):
    fused = weight("fp8-block,rows=2,columns=4", (2, 2, 8), "m.e.up", "experts", codes=np.zeros(32), scale=np.ones(4))
    fp8 = form("fp8", tmp_path, {"weight_block_size": [2, 4]}, ["_scale_inv f32 3"])
    assert fp8.fused and {end: part.shape for end, part in laid_out(fp8, fused).items()} == {
        "": (2, 2, 8), "_scale_inv": (2, 1, 2),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "shape", "message"),
    [
        ("fp8-block,rows=1,columns=all", (4, 8), "blocks or one a tensor alone"),  # no layer of transformers'
        ("fp8-block,rows=1,columns=4", (4, 8), "blocks or one a tensor alone"),
        ("mxfp8", (4, 32), "blocks or one a tensor alone"), ("mxfp4", (4, 32), "blocks or one a tensor alone"),
        ("fp8-block,rows=3,columns=4", (4, 8), r"takes blocks of \[4, 8\] for even parts, which they are not"),
    ],
)  # fmt: skip
def test_what_is_not_held_is_said(scheme, shape, message, tmp_path):
    with pytest.raises(NotHeldError, match=message):
        form("fp8", tmp_path).settings(weight(scheme, shape))


def test_a_block_larger_than_the_matrix_is_one(tmp_path):
    assert form("fp8", tmp_path).settings(weight("fp8-block,rows=128,columns=128", (4, 8))) is not None


def test_what_a_source_had_goes_back_to_it(tmp_path):
    assert "blocks of 1 by 32" in form("fp8", tmp_path, {"quant_method": "mxfp8"}).settings(weight("mxfp8", (4, 32)))
    uneven = form("fp8", tmp_path, {"weight_block_size": [3, 4]})
    assert uneven.settings(weight("fp8-block,rows=3,columns=4", (4, 8))) == "blocks of 3 by 4 with scales of floats"
    experts = form("fp8", tmp_path, {"expert_dtype": "fp4"}, [".weight i8 2"])
    small = weight("mxfp4", (2, 32), codes=np.arange(32) + 200, scale=[1, 2])
    assert experts.settings(small) is None
    found = laid_out(experts, small)
    assert found[".weight"].dtype == np.int8 and found[".weight"].tobytes() == bytes(range(200, 232))
    assert found[".weight_scale_inv"].tolist() == [[1], [2]]


def test_the_config_says_blocks_and_powers_of_two(tmp_path):
    power = stored(f"{BLOCK},scale=f8_e8m0")
    fp8 = form("fp8", tmp_path)
    assert fp8.settings(power) == "blocks of 2 by 4 with scales f8_e8m0"
    assert fp8.config([power], ["lm_head"]) == {
        "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [2, 4],
        "scale_fmt": "ue8m0", "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    whole = fp8.config([stored("fp8-block,rows=all,columns=all", scales=1)], [])
    assert whole["weight_block_size"] is None and "scale_fmt" not in whole


def test_inputs_are_not_static_where_their_scales_are_left_out(tmp_path):
    said = {"activation_scheme": "static"}
    assert form("fp8", tmp_path, said).config([stored()], [])["activation_scheme"] == "static"
    left_out = form("fp8", tmp_path, said, left_out=["1 tensors input_scale"])
    assert left_out.config([stored()], [])["activation_scheme"] == "dynamic"
