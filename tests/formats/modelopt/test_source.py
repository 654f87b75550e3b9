"""Checkpoints of Model Optimizer, by the arithmetic of ``NVFP4QTensor.dequantize``, two roundings to float32.

The library itself says the same, where it is installed.
"""

from __future__ import annotations

import json

import pytest
import torch
import transformers

import aibit_format as aibit
from tests.support import block_checkpoints as checkpoints
from tests.support.block_checkpoints import put
from tests.support.recorded import Random

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["lm_head", "model.layers.*.router*"]}
FP8 = {"quant_method": "modelopt", "quant_algo": "FP8"}
MISSING = "Model Optimizer is not installed (pip install nvidia-modelopt)"


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


def test_nvfp4_is_what_the_library_decodes(tmp_path):
    family = pytest.importorskip("modelopt.torch.quantization.qtensor.nvfp4_tensor", reason=MISSING).NVFP4QTensor
    parts, values = nvfp4(Random(3), 24, 96)
    wanted = family(values.shape, torch.float32, parts["weight"]).dequantize(
        scale=parts["weight_scale"], double_scale=parts["weight_scale_2"], block_sizes={-1: 16}
    )
    assert torch.equal(checkpoints.decoded(checkpoints.one(tmp_path / "hf", NVFP4, parts)), wanted)


@pytest.mark.parametrize(("scale", "blocks"), [((), None), ((24, 1), {0: 1, 1: 96})])
def test_fp8_is_what_the_library_decodes(scale, blocks, tmp_path):
    family = pytest.importorskip("modelopt.torch.quantization.qtensor.fp8_tensor", reason=MISSING).FP8QTensor
    parts, values = fp8(Random(4), 24, 96, *scale)
    wanted = family(values.shape, torch.float32, parts["weight"]).dequantize(
        scale=parts["weight_scale"], block_sizes=blocks
    )
    assert torch.equal(checkpoints.decoded(checkpoints.one(tmp_path / "hf", FP8, parts)), wanted)


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
    (put("weight", lambda a: a[0]), r"'m\.q\.weight' has shape \[32\], expected rows and columns"),
    (put("weight", lambda a: a[0, 0]), r"'m\.q\.weight' has shape \[\], expected rows and columns"),
    (put("weight_scale", lambda a: a.view(torch.uint8)[:, :2]), r"weight_scale_2' belongs to NVFP4, and the scales"),
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


def test_mxfp4(tmp_path):
    random = Random(4)
    parts = {"weight": random.words(24, 48, dtype=torch.uint8), "weight_scale": 120 + random.below(8, 24, 3)}
    code = torch.stack([parts["weight"] & 15, parts["weight"] >> 4], -1).flatten(1).long()
    values = E2M1[code & 7] * torch.where(code > 7, -1.0, 1.0)
    values *= torch.exp2(parts["weight_scale"].float() - 127).repeat_interleave(32, 1)
    source = checkpoints.one(tmp_path / "hf", FP8 | {"quant_algo": "W4A8_MXFP4_FP8"}, parts)
    assert source.tensors["m.q.weight"].stored.text == "mxfp4" and torch.equal(checkpoints.decoded(source), values)


def mixed(**layers: str) -> dict:
    """Settings as ``process_layer_quant_config`` and ``convert_hf_quant_config_format`` write them."""
    each = {f"m.{name}": {"quant_algo": algorithm, "group_size": 16} for name, algorithm in layers.items()}
    groups = {
        f"group_{i}": {"targets": [name], "weights": {"num_bits": 4, "type": "float"}} for i, name in enumerate(each)
    }
    return {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": each,
            "ignore": ["lm_head"], "config_groups": groups}  # fmt: skip


def mixture(folder, said):
    """A source of one module in NVFP4, and one in FP8."""
    tensors = {f"m.q.{end}": part for end, part in nvfp4(Random(1), 16, 64)[0].items()}
    tensors |= {f"m.k.{end}": part for end, part in fp8(Random(2), 16, 64)[0].items()}
    checkpoints.write(folder, tensors | {"m.v.weight": torch.ones(2, 2)}, {"quantization_config": said})
    return checkpoints.open_source(folder)


def test_modules_of_several_algorithms(tmp_path):
    source = mixture(tmp_path / "hf", mixed(q="W4A16_NVFP4", k="FP8"))
    assert torch.equal(checkpoints.decoded(source, "m.q.weight"), nvfp4(Random(1), 16, 64)[1])
    assert torch.equal(checkpoints.decoded(source, "m.k.weight"), fp8(Random(2), 16, 64)[1])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (mixed(q="NVFP4", k="NVFP4"), r"'m\.k\.weight' is f8_e4m3, but quantized_layers says NVFP4"),
        (mixed(q="NVFP4", k="FP8", v="FP8"), r"'m\.v\.weight' is not quantized, but quantized_layers says FP8"),
        (mixed(q="NVFP4", k="W8A16"), r"quant_algo 'W8A16' of 'm\.k', known: NVFP4"),
        (mixed(x="NVFP4", y="FP8"), r"quantized_layers that name m\.x, m\.y, of which none is there"),
        (mixed(), r"quant_algo MIXED_PRECISION and quantized_layers \{\}, expected an object"),
        (mixed(q="NVFP4") | {"ignore": ["m.k"]}, r"'m\.k\.weight_scale' is quantized, but ignore names 'm\.k'"),
    ],
)
def test_several_algorithms_that_contradict_the_weights_are_refused(said, message, tmp_path):
    with pytest.raises(checkpoints.AibitError, match=message) as caught:
        mixture(tmp_path / "bad", said)
    assert str(tmp_path / "bad") in str(caught.value)


@pytest.mark.parametrize("shared", [True, False])
def test_experts_with_one_global_scale_for_gate_and_up_are_stacked_as_they_are(shared, tmp_path):
    config = transformers.Qwen3MoeConfig(
        vocab_size=160, hidden_size=64, intermediate_size=128, moe_intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    tensors, stored = checkpoints.load_file(tmp_path / "plain/model.safetensors"), {}
    for name, value in tensors.items():
        if ".experts." not in name:
            stored[name] = value
            continue
        expert, part = name.split(".")[5:7]
        made, _ = nvfp4(Random(len(stored)), *value.shape)
        number = int(expert) + 1 + (0 if shared or part != "up_proj" else 0.5)
        made["weight_scale_2"] = torch.tensor(0.0004321 * number)
        stored |= {name.removesuffix("weight") + end: piece for end, piece in made.items()}
    said = json.loads((tmp_path / "plain/config.json").read_text())
    checkpoints.write(tmp_path / "hf", stored, said, quantization_config=NVFP4)
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    at = "model.layers.0.mlp.experts"
    kept = {tensor.name: (tensor.kept, tensor.scheme) for tensor in report.tensors if ".experts." in tensor.name}
    assert kept[f"{at}.down_proj"] == (True, "nvfp4") and kept[f"{at}.gate_up_proj"][0] is shared
    source = checkpoints.open_source(tmp_path / "hf")
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        found = torch.from_numpy(file.dequantize(f"{at}.gate_up_proj"))
        parts = [
            [checkpoints.decoded(source, f"{at}.{e}.{part}_proj.weight") for part in ("gate", "up")] for e in range(4)
        ]
        expected = torch.stack([torch.cat(each) for each in parts])
        assert torch.equal(found, expected) if shared else torch.equal(found.bfloat16(), expected.bfloat16())
        assert file.planes(f"{at}.down_proj")["global_scale"].shape == (4, 1)
