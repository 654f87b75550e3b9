"""gpt-oss checkpoints against transformers' own decoding of their experts."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import aibit_format as aibit
from tests.support import block_checkpoints as checkpoints
from tests.support.recorded import Random

SAID = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "model.embed_tokens", "self_attn"]}
EXPERTS = "model.layers.0.mlp.experts"


def packed(random: Random, experts: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = random.words(experts, rows, columns // 32, 16, dtype=torch.uint8)
    return blocks, 118 + random.below(8, experts, rows, columns // 32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny gpt-oss as it is published, and the values of all its tensors."""
    config = transformers.GptOssConfig(
        vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, dtype="bfloat16",
        layer_types=["full_attention"], sliding_window=16, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GptOssForCausalLM(config).to(torch.bfloat16).eval()
    stored, values = {}, {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in list(values.items()):
        if name in (f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"):
            experts, columns, rows = value.shape
            blocks, scales = packed(Random(rows), experts, rows, columns)
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            values[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
        else:
            stored[name] = value
    model = transformers.GptOssForCausalLM.from_pretrained(None, config=config, state_dict=dict(values)).eval()
    folder = tmp_path_factory.mktemp("gpt-oss")
    checkpoints.write(folder / "hf", stored, {**config.to_dict(), "architectures": ["GptOssForCausalLM"]},
                      quantization_config=SAID)  # fmt: skip
    return folder / "hf", values, model


def test_experts_are_kept_as_they_are_in_the_place_of_the_models(saved, tmp_path):
    folder, values, model = saved
    report = aibit.convert(folder, tmp_path / "m.aibit")
    kept = {tensor.name: tensor.scheme for tensor in report.tensors if ".experts." in tensor.name and tensor.kept}
    assert kept.pop(f"{EXPERTS}.gate_up_proj") == kept.pop(f"{EXPERTS}.down_proj") == "mxfp4"
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        info = file.info(f"{EXPERTS}.gate_up_proj")
        assert info.shape == (4, 192, 64) and info.transposed
        found = torch.from_numpy(file.dequantize(info.name)).to(torch.bfloat16)
        assert torch.equal(found.transpose(1, 2), values[info.name])
        blocks = checkpoints.load_file(folder / "model.safetensors")[f"{info.name}_blocks"]
        assert file.planes(info.name)["codes"].tobytes() == blocks.numpy().tobytes()
    loaded = aibit.load_model(tmp_path / "m.aibit")
    for name, value in values.items():
        if name.endswith("_proj") and ".experts." in name:
            assert torch.equal(loaded.get_submodule(name).weight, value)
    ids = torch.arange(3, 16)[None]
    with torch.no_grad():
        expected, logits = model(ids).logits, loaded(ids).logits
    assert (logits - expected).abs().max() < 0.02 * expected.abs().max()  # experts are multiplied as they are stored


def test_a_model_goes_back_as_it_came(saved, tmp_path):
    folder, _, model = saved
    aibit.convert(folder, tmp_path / "m.aibit")
    aibit.export(tmp_path / "m.aibit", "huggingface", tmp_path / "back")
    checkpoints.same(folder, tmp_path / "back")
    found = json.loads((tmp_path / "back/config.json").read_text())["quantization_config"]
    assert found == SAID
    config = transformers.Mxfp4Config(dequantize=True)
    again = transformers.GptOssForCausalLM.from_pretrained(tmp_path / "back", quantization_config=config).eval()
    ids = torch.arange(3, 16)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_experts_can_be_quantized_anew_and_exported(saved, tmp_path):
    folder, values, _ = saved
    aibit.convert(folder, tmp_path / "m.aibit", tensors={"experts.down_proj$": "bf16"})
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        info = file.info(f"{EXPERTS}.down_proj")
        assert not info.transposed
        assert torch.equal(torch.from_numpy(file.dequantize(info.name)).to(torch.bfloat16), values[info.name])
    aibit.export(tmp_path / "m.aibit", "safetensors", tmp_path / "out")
    exported = checkpoints.load_file(next((tmp_path / "out").glob("*.safetensors")))
    for name in ("gate_up_proj", "down_proj"):
        assert torch.equal(exported[f"{EXPERTS}.{name}"], values[f"{EXPERTS}.{name}"])


DAMAGE = [
    (lambda parts: parts.pop("_blocks"), r"but m\.e\.up_blocks is missing"),
    (lambda parts: parts.pop("_scales"), r"but m\.e\.up_scales is missing"),
    (lambda parts: parts.update(_blocks=parts["_blocks"].char()), r"up_blocks' is i8\[2, 8, 2, 16\], expected u8"),
    (lambda parts: parts.update(_blocks=parts["_blocks"][..., :8]), r"up_blocks' has shape \[2, 8, 2, 8\], expected"),
    (lambda parts: parts.update(_blocks=parts["_blocks"].flatten(2)), r"up_blocks' has shape \[2, 8, 32\], expected"),
    (lambda parts: parts.update(_scales=parts["_scales"][:, 1:]), r"'m\.e\.up_scales' has shape \[2, 7, 2\], expected"),
    (lambda parts: parts.update(_scales=parts["_scales"].int()), r"'m\.e\.up_scales' is i32\[2, 8, 2\], expected u8"),
    (lambda parts: parts["_scales"].fill_(255), r"'m\.e\.up_scales' a scale is NaN"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[text[:30] for _, text in DAMAGE])
def test_what_contradicts_itself_is_refused(damage, message, tmp_path):
    parts = dict(zip(("_blocks", "_scales"), packed(Random(1), 2, 8, 64), strict=True))
    damage(parts)
    tensors = {f"m.e.up{end}": part for end, part in parts.items()}
    checkpoints.write(tmp_path / "hf", tensors, {}, quantization_config=SAID)
    with pytest.raises(checkpoints.AibitError, match=message):
        checkpoints.open_source(tmp_path / "hf").planes("m.e.up")
