"""The parts of compressed-tensors by hand, and which config group a weight goes into."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import aibit_format as aibit
from aibit_format.calibrate.calibrate import calibrate
from aibit_format.errors import WriteError
from aibit_format.formats.huggingface.forms import NotHeldError
from aibit_format.formats.huggingface.integers import packed_words
from tests.support import calibrated
from tests.support.forms import form, laid_out, weight

CODES = np.arange(64).reshape(8, 8) * 5 % 16
PACKED = CODES[:, ::2] | CODES[:, 1::2] << 4


def group(**weights):
    return {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": True} | weights}


def said(format="pack-quantized", **weights):
    return {"config_groups": {"g": group(**weights)}, "format": format}


def integers(zero=None, name="m.q.weight"):
    zeros = {} if zero is None else {"zero_point": np.broadcast_to(zero, 8)}
    scheme = f"int-group,group=row,scale=f32{',zero=code' if zeros else ''}"
    return weight(scheme, (8, 8), name, codes=PACKED, scale=np.arange(8), **zeros)


def bytes_of(codes, rows=2, columns=4, scales=2):
    return weight("int-group,bits=8,group=row,scale=f32", (rows, columns), codes=codes, scale=np.arange(scales) + 1)


def test_codes_and_zero_points_are_words_along_columns_and_rows(tmp_path):
    found = laid_out(form("compressed-tensors", tmp_path), integers(np.arange(8)))
    assert [*found] == [".weight_packed", ".weight_shape", ".weight_scale", ".weight_zero_point"]
    words = [sum(int(code) << 4 * i for i, code in enumerate(row)) for row in CODES]
    assert found[".weight_packed"].view(np.uint32).ravel().tolist() == words
    assert found[".weight_shape"].tolist() == [8, 8] and found[".weight_shape"].dtype == np.int64
    assert found[".weight_zero_point"].tolist() == [[0x76543210]]  # of eight rows, one group
    assert found[".weight_scale"].ravel().tolist() == [*range(8)]


def test_bytes_are_signed_about_the_middle(tmp_path):
    found = laid_out(form("compressed-tensors", tmp_path), bytes_of([0, 127, 128, 255] * 2))
    assert [*found] == [".weight", ".weight_scale"] and found[".weight"].tolist() == [[-128, -1, 0, 127]] * 2
    plain = weight("int8-absmax", (2, 2), codes=[[-127, 0], [3, 4]], scale=[1, 2])
    assert laid_out(form("compressed-tensors", tmp_path), plain)[".weight"].tolist() == [[-127, 0], [3, 4]]


def test_codes_of_a_width_that_no_plane_has_are_narrowed_again(tmp_path):
    """7 bits are kept in 8, about the middle of these."""
    known = form("compressed-tensors", tmp_path, said(num_bits=7, strategy="channel"))
    codes = np.array([[64, 100, 128, 191]] * 2)
    found = laid_out(known, bytes_of(codes))[".weight_packed"]
    assert found.tolist() == packed_words((codes - 64).astype(np.uint8), 7).tolist()
    for wrong in (63, 192):
        with pytest.raises(WriteError, match=r"'m\.q\.weight': has a code or zero point of \d+, beyond 7 bits"):
            laid_out(known, bytes_of([wrong] * 8))


def test_one_scale_for_a_tensor_has_to_be_one(tmp_path):
    known = form("compressed-tensors", tmp_path, said("int-quantized", num_bits=8, strategy="tensor"))
    one = weight("int-group,bits=8,group=row,scale=f32", (2, 4), codes=np.zeros(8), scale=[3, 3])
    assert laid_out(known, one)[".weight_scale"].tolist() == [3.0]
    with pytest.raises(WriteError, match="has more than one scale, and its config group has one a tensor"):
        laid_out(known, bytes_of(np.zeros(8)))


def test_scales_have_the_dimensions_that_those_of_the_source_had(tmp_path):
    channel = {"num_bits": 8, "type": "float", "strategy": "channel"}
    stored = weight("fp8-block,rows=1,columns=all", (2, 4), codes=np.zeros(8), scale=[1, 2])
    for rank, shape in ((1, (2,)), (2, (2, 1))):
        known = form("compressed-tensors", tmp_path, said("float-quantized", **channel), [f".weight_scale f32 {rank}"])
        assert laid_out(known, stored)[".weight_scale"].shape == shape


@pytest.mark.parametrize("known", [True, False])
def test_the_order_of_columns_is_of_the_dtype_of_the_source(known, tmp_path):
    made = form("compressed-tensors", tmp_path, {"format": "pack-quantized"}, [".weight_g_idx i64 1"] * known)
    stored = weight("int4-group,group=32,symmetric=1,ordered=1", (8, 64), codes=np.zeros((8, 32)),
                    scale=np.ones((8, 2)), group_index=np.arange(64) % 2)  # fmt: skip
    found = laid_out(made, stored)[".weight_g_idx"]
    assert found.dtype == (np.int64 if known else np.int32) and found.tolist() == [0, 1] * 32


def test_small_floats_have_a_scale_of_the_tensor_or_exponents(tmp_path):
    small = weight("nvfp4,reciprocal=1", (2, 32), codes=np.arange(32), scale=np.arange(4), global_scale=[0.5])
    found = laid_out(form("compressed-tensors", tmp_path), small)
    assert {end: part.shape for end, part in found.items()} == {
        ".weight_packed": (2, 16), ".weight_scale": (2, 2), ".weight_global_scale": (1,),
    }  # fmt: skip
    exponents = weight("mxfp4", (2, 32), codes=np.arange(32), scale=[5, 6])
    assert laid_out(form("compressed-tensors", tmp_path), exponents)[".weight_scale"].tolist() == [[5], [6]]


@pytest.mark.parametrize(
    ("scheme", "shape", "name"),
    [
        ("int-group,group=32,zero=bias", (2, 32), "m.q.weight"), ("nvfp4", (2, 32), "m.q.weight"),
        ("mxfp8,element=f8_e5m2", (2, 32), "m.q.weight"), ("ternary", (4, 4), "m.q.weight"),
        ("fp8-block,rows=2,columns=all", (2, 4), "m.q.weight"), ("mxfp4", (2, 2, 32), "m.experts.up"),
        ("fp8-block,rows=2,columns=4,scale=f8_e8m0", (2, 4), "m.q.weight"),
    ],
)  # fmt: skip
def test_what_is_not_held_is_said(scheme, shape, name, tmp_path):
    with pytest.raises(NotHeldError, match=r"compressed-tensors has (no format for that|weights of modules alone)"):
        form("compressed-tensors", tmp_path).settings(weight(scheme, shape, name))


def test_the_largest_kind_is_for_all_linears_and_others_are_named(tmp_path):
    kinds = [integers(name="m.0.weight"), integers(name="m.1.weight"), integers(8, name="m.2.weight")]
    found = form("compressed-tensors", tmp_path).config(kinds, ["lm_head"])
    assert found["ignore"] == ["lm_head"] and found["format"] == "pack-quantized"
    assert {name: each["targets"] for name, each in found["config_groups"].items()} == {
        "group_0": ["Linear"], "group_1": ["m.2"],
    }  # fmt: skip
    assert found["config_groups"]["group_0"]["weights"] == {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None, "dynamic": False,
    }  # fmt: skip


def test_a_group_of_the_source_is_kept_where_it_is_true(tmp_path):
    known = form("compressed-tensors", tmp_path, said(strategy="channel"))
    kept = known.config([integers(name="m.0.weight"), integers(8, name="m.1.weight")], [])
    assert kept["config_groups"]["g"] == group(strategy="channel")
    assert kept["config_groups"]["made_0"]["targets"] == ["m.1"]
    assert kept["config_groups"]["made_0"]["weights"]["symmetric"] is False


def test_a_group_says_nothing_of_inputs_whose_scales_are_left_out(tmp_path):
    inputs = {"num_bits": 8, "dynamic": False}
    settings = {"config_groups": {"g": group(strategy="channel") | {"input_activations": inputs}},
                "format": "pack-quantized", "kv_cache_scheme": {"num_bits": 8}}  # fmt: skip
    whole = form("compressed-tensors", tmp_path, settings).config([integers()], [])
    assert whole["config_groups"]["g"]["input_activations"] == inputs and whole["kv_cache_scheme"] == {"num_bits": 8}
    less = form("compressed-tensors", tmp_path, settings, left_out=["1 tensors k_scale"]).config([integers()], [])
    assert less["config_groups"]["g"]["input_activations"] is None is less["kv_cache_scheme"]
    inputs["dynamic"] = True  # such are computed, and need no scales
    dynamic = form("compressed-tensors", tmp_path, settings, left_out=["1 tensors k_scale"]).config([integers()], [])
    assert dynamic["config_groups"]["g"]["input_activations"] == inputs


def rounded(name="m.q.weight", zero=None):
    more = {} if zero is None else {"input_zero_point": [zero]}
    scheme = "int8-static" + ",asymmetric=1" * (zero is not None)
    return weight(scheme, (2, 4), name, codes=[*range(8)], scale=[1.1, 2], input_scale=[0.3], **more)


def test_what_is_said_of_inputs_is_written(tmp_path):
    made = form("compressed-tensors", tmp_path)
    found = laid_out(made, rounded(zero=-5))
    assert [*found] == [".weight", ".weight_scale", ".input_scale", ".input_zero_point"]
    assert found[".input_scale"].tolist() == pytest.approx([0.3]) and found[".input_zero_point"].tolist() == [-5]
    dynamic = weight("int8-dynamic", (2, 4), "m.d.weight", codes=[*range(8)], scale=[1, 2])
    assert [*laid_out(made, dynamic)] == [".weight", ".weight_scale"]
    kinds = made.config([dynamic, rounded("m.a.weight"), rounded("m.b.weight"), rounded("m.c.weight", 1)], [])
    groups = [(g["targets"], g["input_activations"]) for g in kinds["config_groups"].values()]
    same = {"num_bits": 8, "type": "int", "group_size": None}
    whole = same | {"strategy": "tensor", "dynamic": False}
    assert groups == [
        (["Linear"], whole | {"symmetric": True}),
        (["m.d"], same | {"strategy": "token", "dynamic": True, "symmetric": True}),
        (["m.c"], whole | {"symmetric": False}),
    ]
    assert kinds["format"] == "int-quantized"


def test_an_embedding_has_no_inputs(tmp_path):
    table = replace(weight("int8-dynamic", (2, 4), codes=[*range(8)], scale=[1, 2]), kind="embedding")
    (group,) = form("compressed-tensors", tmp_path).config([table], [])["config_groups"].values()
    assert group["input_activations"] is None and group["targets"] == ["Linear", "m.q"]


def test_scales_are_in_the_dtype_of_the_source_if_they_are_its_own(tmp_path):
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}
    settings = {"config_groups": {"g": {"targets": ["Linear"], "input_activations": inputs,
                                        "weights": {"num_bits": 8, "strategy": "channel"}}},
                "format": "int-quantized"}  # fmt: skip
    parts = [".weight_scale bf16 2", ".input_scale bf16 1"]
    known = form("compressed-tensors", tmp_path, settings, parts)
    own = weight("int8-static", (2, 4), codes=[*range(8)], scale=[1.5, 2], input_scale=[0.25])
    assert laid_out(known, own)[".weight_scale"].view(np.uint16).ravel().tolist() == [0x3FC0, 0x4000]
    assert laid_out(known, own)[".input_scale"].view(np.uint16).tolist() == [0x3E80]
    with pytest.raises(WriteError, match="has scales that are not those of the source, which were bf16"):
        laid_out(known, rounded())
    inputs["dynamic"] = True  # another way than the weight's, so it is in no group of the source
    other = form("compressed-tensors", tmp_path, settings, parts)
    assert laid_out(other, rounded())[".weight_scale"].dtype == np.float32
    assert other.config([rounded()], [])["config_groups"].keys() == {"made_0"}


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-static", "int8-static,asymmetric=1"])
def test_transformers_computes_with_what_is_written(scheme, tmp_path):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    folder, text = calibrated.save("llama-untied", tmp_path / "hf", dtype=torch.float32)
    statistics = calibrate(folder, [text], tmp_path / "s.safetensors", samples=3, length=24)
    aibit.convert(folder, tmp_path / "m.aibit", scheme, calibration=statistics)
    aibit.export(tmp_path / "m.aibit", "huggingface", tmp_path / "out")
    theirs, ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), aibit.load_model(tmp_path / "m.aibit")
    exact, ids = AutoModelForCausalLM.from_pretrained(folder).eval(), torch.arange(3, 40)[None]
    with torch.no_grad():
        expected, found, plain = (model(ids).logits for model in (theirs, ours, exact))
    error = (found - plain).abs().max()
    assert 1e-3 < error < 0.1 * plain.abs().max()  # inputs are rounded, and not by much
    # The library's scale of a row is max|x| / 127.5, and ours max|x| / 127; a stored scale is the same for both, and
    # rounding differs next to ties.
    bound = error if scheme == "int8-dynamic" else 0.1 * error
    assert (found - expected).abs().max() < bound


def test_groups_that_make_no_sense_are_as_if_there_were_none(tmp_path):
    known = form("compressed-tensors", tmp_path, {"config_groups": {"g": {"targets": ["re:(("], "weights": {}}}})
    assert known.config([integers()], [])["config_groups"].keys() == {"made_0"}
