"""Checkpoints of Model Optimizer, by the arithmetic of ``NVFP4QTensor.dequantize``, two roundings to float32."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support import block_checkpoints as checkpoints
from tests.support.block_checkpoints import put
from tests.support.recorded import Random

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["lm_head", "model.layers.*.router*"]}
FP8 = {"quant_method": "modelopt", "quant_algo": "FP8"}


def nvfp4(random: Random, rows: int, columns: int) -> tuple[dict, torch.Tensor]:
    """Parts of a weight, and its values: code * (scale * scale_2), rounded to float32 twice."""
    packed = random.words(rows, columns // 2, dtype=torch.uint8)
    scale = (random.e4m3(rows, columns // 16).view(torch.uint8) & 127).view(torch.float8_e4m3fn)
    parts = {"weight": packed, "weight_scale": scale, "weight_scale_2": torch.tensor(0.0004321)}
    parts["input_scale"] = torch.ones(())
    code = torch.stack([packed & 15, packed >> 4], -1).reshape(rows, -1, 16).long()
    values = E2M1[code & 7] * torch.where(code > 7, -1.0, 1.0) * (scale.float() * parts["weight_scale_2"])[..., None]
    return parts, values.reshape(rows, columns)


def fp8(random: Random, rows: int, columns: int, *scale: int) -> tuple[dict, torch.Tensor]:
    parts = {"weight": random.e4m3(rows, columns), "weight_scale": random.scales(*scale) / 16}
    each = parts["weight_scale"]
    if len(scale) == 4:
        each = each.reshape(scale[0], scale[2]).repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return parts, parts["weight"].float() * (each[:, None] if len(scale) == 1 else each)


def test_nvfp4_in_a_model_is_kept_as_it_is(tmp_path):
    folder, values = checkpoints.model(tmp_path, NVFP4, lambda name, w: nvfp4(Random(len(name)), *w.shape))
    checkpoints.check_model(folder, values, "nvfp4")


def test_settings_may_be_in_a_file_beside(tmp_path):
    parts, values = nvfp4(Random(1), 16, 64)
    checkpoints.write(tmp_path / "hf", {f"m.q.{end}": part for end, part in parts.items()}, {"dtype": "bfloat16"})
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    (tmp_path / "hf/hf_quant_config.json").write_text(json.dumps(said))
    source = checkpoints.open_source(tmp_path / "hf")
    assert source.kind == "modelopt" and torch.equal(checkpoints.decoded(source), values)
    (tmp_path / "hf/hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "W4A8_AWQ"}}))
    with pytest.raises(checkpoints.AibitError, match=r"hf_quant_config\.json: .*quant_algo 'W4A8"):
        checkpoints.open_source(tmp_path / "hf")


@pytest.mark.parametrize("scale", [(), (24,), (24, 1), (1, 1, 1, 1)])
def test_fp8(scale, tmp_path):
    parts, values = fp8(Random(2), 24, 96, *scale)
    assert torch.equal(checkpoints.decoded(checkpoints.one(tmp_path / "hf", FP8, parts)), values)
    checkpoints.goes_back(tmp_path / "hf")


def test_fp8_in_blocks(tmp_path):
    parts, values = fp8(Random(2), 200, 256, 2, 1, 2, 1)
    assert torch.equal(checkpoints.decoded(checkpoints.one(tmp_path / "hf", FP8, parts)), values)
    checkpoints.goes_back(tmp_path / "hf")


def test_mxfp8(tmp_path):
    random = Random(3)
    parts = {"weight": random.e4m3(24, 96), "weight_scale": 120 + random.below(8, 24, 3)}
    values = parts["weight"].float() * torch.exp2(parts["weight_scale"].float() - 127).repeat_interleave(32, 1)
    source = checkpoints.one(tmp_path / "hf", FP8 | {"quant_algo": "MXFP8"}, parts)
    assert source.tensors["m.q.weight"].stored.text == "mxfp8" and torch.equal(checkpoints.decoded(source), values)
    checkpoints.goes_back(tmp_path / "hf")


def add(**parts):
    return lambda said, stored: stored.update(parts)


DAMAGE = [
    (lambda said, parts: parts.pop("weight_scale_2"), r"but m\.q\.weight_scale_2 is missing"),
    (lambda said, parts: parts.pop("weight_scale"), r"but m\.q\.weight_scale is missing"),
    (put("weight", lambda a: a.view(torch.int8)), r"'m\.q\.weight' is i8\[16, 32\], expected u8 or f8_e4m3"),
    (put("weight", lambda a: a.view(torch.float8_e4m3fn)), r"weight_scale_2' belongs to 4-bit codes"),
    (put("weight_scale", lambda a: a[:, :1]), r"'m\.q\.weight_scale' has shape \[16, 1\], expected \[16, 4\]"),
    (put("weight_scale", lambda a: a.float()), r"'m\.q\.weight_scale' is f32\[16, 4\], expected f8_e4m3"),
    (put("weight_scale", lambda a: (a.view(torch.uint8) * 0 + 127).view(torch.float8_e4m3fn)), r"a scale is NaN"),
    (put("weight_scale", lambda a: (a.view(torch.uint8) | 128).view(torch.float8_e4m3fn)), r"a scale is negative"),
    (put("weight_scale_2", lambda a: a * float("inf")), r"'m\.q\.weight_scale_2' a global scale is not finite"),
    (put("weight_scale_2", lambda a: a.repeat(3)), r"'m\.q\.weight_scale_2' has shape \[3\], expected \[1\]"),
    (add(pre_quant_scale=torch.ones(64)), r"pre_quant_scale' scales the inputs of its layer"),
    (lambda said, parts: said.update(quant_algo="INT4_AWQ"), r"config\.json: .*quant_algo 'INT4_AWQ', known: NVFP4"),
    (lambda said, parts: said.update(exclude_modules=["m.*"]), r"is quantized, but exclude_modules names 'm\.\*'"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[text[:30] for _, text in DAMAGE])
def test_what_contradicts_itself_is_refused(damage, message, tmp_path):
    said, parts = dict(NVFP4), nvfp4(Random(1), 16, 64)[0]
    damage(said, parts)
    checkpoints.refused(tmp_path, said, parts, message)
