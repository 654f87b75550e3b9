"""BitNet's checkpoints against transformers' own packing and layers."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.bitnet import AutoBitLinear, pack_weights

from tests.support import block_checkpoints as checkpoints
from tests.support.recorded import Random

SAID = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
DIVIDED = {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline"}


def ternary(random: Random, rows: int, columns: int) -> torch.Tensor:
    return random.below(128, rows, columns).int() % 3 - 1


def parts_of(random: Random, rows: int, columns: int, divided: bool = False) -> tuple[dict, torch.Tensor]:
    values, scale = ternary(random, rows, columns), torch.tensor([37.25 if divided else 0.0123], dtype=torch.bfloat16)
    packed = pack_weights(values.clone())
    return {"weight": packed, "weight_scale": scale}, values / scale.float() if divided else values * scale.float()


@pytest.mark.parametrize("said", [SAID, DIVIDED, {"quant_method": "bitnet"}], ids=["multiplied", "divided", "default"])
def test_values_are_those_of_transformers(said, tmp_path):
    divided = said is not SAID
    parts, values = parts_of(Random(1), 32, 48, divided)
    source = checkpoints.one(tmp_path / "hf", said, parts)
    assert source.tensors["m.q.weight"].stored.text == f"ternary,scale=bf16{',reciprocal=1' * divided}"
    assert torch.equal(checkpoints.decoded(source), values)
    checkpoints.goes_back(tmp_path / "hf")


def test_the_layer_multiplies_by_the_scale():
    """Which of the two layers divides is read in them, as nothing in a checkpoint says so."""
    layer = AutoBitLinear(4, 1, bias=False, dtype=torch.float32)
    layer.weight.data, layer.weight_scale.data = torch.tensor([[1.0, 0, 0, -1]]), torch.tensor([2.0])
    assert layer(torch.tensor([[127.0, 0, 0, 0]])).item() == pytest.approx(254)


def test_a_model_is_kept_as_it_is(tmp_path):
    folder, values = checkpoints.model(tmp_path, SAID, lambda name, w: parts_of(Random(len(name)), *w.shape))
    checkpoints.check_model(folder, values, "ternary,scale=bf16")


DAMAGE = [
    (lambda said, parts: parts.pop("weight"), r"but m\.q|belongs to a quantized weight"),
    (lambda said, parts: parts.update(weight=parts["weight"].int()), r"'m\.q\.weight' is i32\[8, 48\], expected u8"),
    (lambda said, parts: parts.update(weight=parts["weight"] | 3), r"'m\.q\.weight' holds a code 3"),
    (lambda said, parts: parts.update(weight_scale=torch.ones(8)), r"_scale' has shape \[8\], expected one number"),
    (lambda said, parts: parts.update(weight_scale=torch.ones(1) * float("nan")), r"_scale' a scale is not finite"),
    (lambda said, parts: parts.update(weight_scale=-torch.ones(1)), r"weight_scale' a scale is negative"),
    (lambda said, parts: said.update(quantization_mode="online"), r"config\.json: bitnet .*quantization_mode 'online'"),
    (lambda said, parts: said.update(linear_class="conv"), r"linear_class 'conv', known: bitlinear, autobitlinear"),
    (lambda said, parts: said.update(use_rms_norm=True), r"use_rms_norm"),
    (lambda said, parts: said.update(modules_to_not_convert=["q"]), r"modules_to_not_convert names 'q'"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[text[:30] for _, text in DAMAGE])
def test_what_contradicts_itself_is_refused(damage, message, tmp_path):
    said, parts = dict(SAID), parts_of(Random(1), 32, 48)[0]
    damage(said, parts)
    checkpoints.refused(tmp_path, said, parts, message)
