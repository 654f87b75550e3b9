"""Gemma's checkpoints against transformers' layers for them."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.gemma_quant import QuantizedEmbedding, QuantizedLinear

from tests.support import block_checkpoints as checkpoints
from tests.support.block_checkpoints import say
from tests.support.recorded import Random

SAID = {"quant_method": "gemma", "num_bits": 4}


def parts_of(random: Random, rows: int, columns: int, bits: int) -> tuple[dict, torch.Tensor]:
    """Parts of a layer, and the values that transformers' layer with them has."""
    layer = QuantizedLinear(columns, rows, num_bits=bits)
    stored = random.words(rows, columns * bits // 8, dtype=layer.weight.dtype)
    layer.weight.data, layer.weight_scale.data = stored, random.scales(rows, 1) / (1 << bits)
    parts = {"weight": stored, "weight_scale": layer.weight_scale.data, "input_activation_scale": torch.ones(())}
    return parts, layer._dequantize_weights().detach()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_are_those_of_transformers(bits, tmp_path):
    parts, values = parts_of(Random(bits), 16, 64, bits)
    source = checkpoints.one(tmp_path / "hf", SAID | {"num_bits": bits}, parts)
    assert source.kind == "gemma" and torch.equal(checkpoints.decoded(source), values)
    assert source.metadata["source.left_out"] == ["1 tensors input_activation_scale"]
    checkpoints.goes_back(tmp_path / "hf", ("activation_scale",))


@pytest.mark.parametrize(("bits", "groups"), [(2, 1), (4, 1), (8, 1), (4, 2)])
def test_embeddings(bits, groups, tmp_path):
    layer, random = QuantizedEmbedding(24, 64, torch.float32, num_bits=bits), Random(bits)
    layer.embedding_quantized.data = random.words(24, 64 * bits // 8, dtype=layer.embedding_quantized.dtype)
    layer.embedding_scale.data = random.scales(24, groups)
    parts = {"embedding_quantized": layer.embedding_quantized.data, "embedding_scale": layer.embedding_scale.data}
    source = checkpoints.one(tmp_path / "hf", SAID | {"num_bits": bits}, parts)
    assert torch.equal(checkpoints.decoded(source), layer.weight.detach())
    checkpoints.goes_back(tmp_path / "hf")


def test_a_mixed_model_is_kept_as_it_is(tmp_path):
    said = SAID | {"module_quant_configs": {r"layers\.0\.mlp": {"num_bits": 2}, r"\.mlp\.": {"num_bits": 8}}}

    def parts(name, weight):
        return parts_of(Random(len(name)), *weight.shape, 4 if ".mlp." not in name else 2 if "layers.0" in name else 8)

    folder, values = checkpoints.model(tmp_path, said, parts)
    schemes = {tensor.name: tensor.scheme for tensor in checkpoints.check_model(folder, values).tensors}
    assert schemes["model.layers.0.mlp.up_proj.weight"] == "int-group,bits=2,group=row,scale=f32"
    assert schemes["model.layers.1.mlp.up_proj.weight"] == "int-group,bits=8,group=row,scale=f32"
    assert schemes["model.layers.1.self_attn.q_proj.weight"] == "int-group,group=row,scale=f32"


DAMAGE = [
    (lambda said, parts: parts.pop("weight"), r"belongs to a quantized weight, but"),
    (lambda said, parts: parts.update(weight=parts["weight"].char()), r"\.weight' is i8\[16, 32\], expected u8"),
    (lambda said, parts: parts.update(weight_scale=torch.ones(15, 1)), r"_scale' has shape \[15, 1\], expected \[16"),
    (lambda said, parts: parts.update(weight_scale=torch.ones(16)), r"_scale' has shape \[16\], expected \[16, 1\]"),
    (lambda said, parts: parts["weight_scale"].fill_(float("nan")), r"_scale' a scale is not finite"),
    (say(num_bits=8), r"'m\.q\.weight' is u8\[16, 32\], expected i8"),
    (say(num_bits=3), r"config\.json: gemma quantization with num_bits 3, expected one of 2, 4, 8"),
    (say(num_bits="4"), r"num_bits 4, expected"),
    (say(module_quant_configs={"(": {"num_bits": 4}}), r"module_quant_configs '\(', no regular expression"),
    (say(module_quant_configs={"nowhere": {"num_bits": 4}}), r"'nowhere', which matches no quantized module"),
    (say(modules_to_not_convert=["m"]), r"modules_to_not_convert names 'm'"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[text[:30] for _, text in DAMAGE])
def test_what_contradicts_itself_is_refused(damage, message, tmp_path):
    said, parts = dict(SAID), parts_of(Random(4), 16, 64, 4)[0]
    damage(said, parts)
    checkpoints.refused(tmp_path, said, parts, message)
