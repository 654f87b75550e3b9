"""Quantized experts, joined as transformers joins their values."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

import aibit_format as aibit
from aibit_format.formats.join import joined
from tests.support import block_checkpoints as checkpoints
from tests.support.recorded import Random

SAID = {"quant_method": "fp8", "weight_block_size": [32, 64]}
EXPERTS = "model.layers.0.mlp.experts"


def fp8(random: Random, rows: int, columns: int) -> tuple[dict, torch.Tensor]:
    """Parts of a weight in blocks, and its values."""
    parts = {"weight": random.e4m3(rows, columns)}
    parts["weight_scale_inv"] = random.scales(-(-rows // 32), -(-columns // 64)) / 16
    spread = parts["weight_scale_inv"].repeat_interleave(32, 0)[:rows].repeat_interleave(64, 1)[:, :columns]
    return parts, (parts["weight"].float() * spread).to(torch.bfloat16)


@pytest.fixture(scope="module", params=[64, 48])
def saved(request, tmp_path_factory):
    """A tiny Qwen3-MoE in FP8; of 48 rows the last block of each part is short."""
    config = transformers.Qwen3MoeConfig(
        vocab_size=160, hidden_size=64, intermediate_size=128, moe_intermediate_size=request.param, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
        dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    folder = tmp_path_factory.mktemp("moe")
    model.save_pretrained(folder / "plain")
    tensors = checkpoints.load_file(folder / "plain/model.safetensors")
    stored = {}
    for name, value in tensors.items():
        if ".experts." in name:
            parts, tensors[name] = fp8(Random(len(stored)), *value.shape)
            stored |= {name.removesuffix("weight") + end: part for end, part in parts.items()}
        else:
            stored[name] = value
    said = json.loads((folder / "plain/config.json").read_text())
    checkpoints.write(folder / "hf", stored, said, quantization_config=SAID)
    return folder / "hf", tensors, config, request.param


def test_experts_are_joined_as_they_are_where_blocks_fit(saved, tmp_path):
    folder, values, config, rows = saved
    report = aibit.convert(folder, tmp_path / "m.aibit")
    kept = {tensor.name: tensor.kept for tensor in report.tensors if ".experts." in tensor.name}
    assert kept == {f"{EXPERTS}.gate_up_proj": rows == 64, f"{EXPERTS}.down_proj": True}
    plain = transformers.Qwen3MoeForCausalLM.from_pretrained(None, config=config, state_dict=dict(values)).eval()
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        for name in kept:
            found = torch.from_numpy(file.dequantize(name)).to(torch.bfloat16)
            assert torch.equal(found, plain.get_parameter(name))
    ids = torch.arange(3, 16)[None]
    with torch.no_grad():
        expected, logits = plain(ids).logits, aibit.load_model(tmp_path / "m.aibit")(ids).logits
    assert (logits - expected).abs().max() < 0.02 * expected.abs().max()  # experts are multiplied as they are stored


def test_another_scheme_is_still_taken_from_decoded_values(saved, tmp_path):
    folder, values, _, _ = saved
    aibit.convert(folder, tmp_path / "m.aibit", tensors={"experts.down_proj$": "bf16"})
    with aibit.open(tmp_path / "m.aibit") as file:
        found = torch.from_numpy(file.dequantize(f"{EXPERTS}.down_proj")).to(torch.bfloat16)
    assert torch.equal(found[2], values[f"{EXPERTS}.2.down_proj.weight"])


def test_tensors_of_several_schemes_or_none_are_not_joined(tmp_path):
    tensors = {}
    for name in "abc":
        parts = {"weight": torch.ones(64, 64)} if name == "c" else fp8(Random(1), 64, 64)[0]
        tensors |= {f"m.{name}.{end}": part.clone() for end, part in parts.items()}
    checkpoints.write(tmp_path / "hf", tensors, {}, quantization_config=SAID)
    source = checkpoints.open_source(tmp_path / "hf")
    assert joined(source, "x", [["m.a.weight", "m.b.weight"]]) is not None
    assert joined(source, "x", [["m.a.weight", "m.c.weight"]]) is None
    assert joined(source, "x", [["m.c.weight"], ["m.c.weight"]]) is None
    assert joined(source, "x", [["m.a.weight", "m.b.weight"], ["m.a.weight"]]) is None
