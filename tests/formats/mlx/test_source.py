"""Checkpoints of MLX against ``mlx.core.dequantize``, or the digests of what version 0.32.4 decodes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.support import block_checkpoints as checkpoints
from tests.support.block_checkpoints import drop, put, say
from tests.support.recorded import Random, digest

ROWS, COLUMNS = 16, 128
MISSING = "mlx is not installed (pip install 'mlx[cpu]')"


def affine(bits: int, group: int = 32, dtype: torch.dtype = torch.float32) -> tuple[dict, dict]:
    """Settings and parts of a weight with scales and biases."""
    random = Random(bits)
    parts = {
        "weight": random.words(ROWS, COLUMNS * bits // 32).view(torch.uint32),
        "scales": random.scales(ROWS, COLUMNS // group, dtype=dtype),
        "biases": -random.scales(ROWS, COLUMNS // group, dtype=dtype) * 4,
    }
    return {"bits": bits, "group_size": group}, parts


def floats(mode: str, bits: int, group: int) -> tuple[dict, dict]:
    """Settings and parts of a weight of small floats."""
    random = Random(bits)
    codes = random.words(ROWS, COLUMNS * bits // 32).view(torch.uint32)
    if bits == 8:
        codes = random.e4m3(ROWS, COLUMNS).view(torch.uint32)
    scales = random.e4m3(ROWS, COLUMNS // group).view(torch.uint8) & 127
    parts = {"weight": codes, "scales": scales if mode == "nvfp4" else 118 + random.below(16, ROWS, COLUMNS // group)}
    return {"bits": bits, "group_size": group, "mode": mode}, parts


CASES = {
    **{f"affine-{bits}": affine(bits) for bits in (2, 3, 4, 5, 6, 8)},
    "affine-4-64": affine(4, 64), "affine-4-128": affine(4, 128), "affine-4-bf16": affine(4, 64, torch.bfloat16),
    "affine-4-f16": affine(4, 64, torch.float16),
    "mxfp4": floats("mxfp4", 4, 32), "mxfp8": floats("mxfp8", 8, 32), "nvfp4": floats("nvfp4", 4, 16),
}  # fmt: skip

# xxh3_64 of what MLX 0.32.4 makes of the parts above; where it is installed, the first test checks them.
DECODED = {
    "affine-2": "3b8a8cb8f2460a4e",
    "affine-3": "6279f2382401c463",
    "affine-4": "7263d134f60f0eee",
    "affine-5": "35874bf3df4b83d6",
    "affine-6": "d1867edf4dc8e36b",
    "affine-8": "3234996803fbb42c",
    "affine-4-64": "e023e994a7392ac2",
    "affine-4-128": "87509c63e63a7475",
    "affine-4-bf16": "e023e994a7392ac2",
    "affine-4-f16": "e023e994a7392ac2",
    "mxfp4": "9d022a53c917b6c2",
    "mxfp8": "41fa306f0b3f9198",
    "nvfp4": "954f0a4f191b5827",
}


def library(said: dict, parts: dict) -> torch.Tensor:
    """What the library decodes on the CPU; from scales in other dtypes than float32 after casting them to that."""
    mx = pytest.importorskip("mlx.core", reason=MISSING)
    mx.set_default_device(mx.cpu)
    given = {end: mx.array((part.float() if part.is_floating_point() else part).numpy()) for end, part in parts.items()}
    mode = said.get("mode", "affine")
    more = {} if mode == "affine" else {"mode": mode, "dtype": mx.float32}
    weight, scales, biases = (given.get(end) for end in ("weight", "scales", "biases"))
    return torch.from_numpy(np.array(mx.dequantize(weight, scales, biases, said["group_size"], said["bits"], **more)))


@pytest.mark.parametrize("case", CASES)
def test_the_recorded_values_are_those_of_the_library(case):
    assert digest(library(*CASES[case])) == DECODED[case]


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_library(case, tmp_path):
    said, parts = CASES[case]
    source = checkpoints.one(tmp_path / "hf", said, parts, "quantization")
    assert source.kind == "mlx" and source.tensors["m.q.weight"].shape == (ROWS, COLUMNS)
    assert digest(checkpoints.decoded(source)) == DECODED[case]
    config = json.loads((checkpoints.goes_back(tmp_path / "hf") / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"] == said


def test_what_transformers_quantizes_for_metal(tmp_path):
    from transformers.integrations.metal_quantization import _affine_dequantize_tensor, _affine_quantize_tensor

    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    packed, scales, biases = _affine_quantize_tensor(weight, 64, 4)
    said = {"quant_method": "metal", "bits": 4, "group_size": 64}
    parts = {"weight": packed, "scales": scales, "qbiases": biases}
    found = checkpoints.decoded(checkpoints.one(tmp_path / "hf", said, parts))
    assert torch.equal(found, _affine_dequantize_tensor(packed, scales, biases, 64, 4))
    checkpoints.goes_back(tmp_path / "hf")


def test_a_model_that_is_mixed_by_path_is_kept_as_it_is(tmp_path):
    said = {"bits": 4, "group_size": 32, "model.layers.0.mlp.up_proj": {"bits": 8, "group_size": 64}, "lm_head": False}

    def parts(name, weight):
        bits, group = (8, 64) if name == "model.layers.0.mlp.up_proj.weight" else (4, 32)
        random, (rows, columns) = Random(len(name)), weight.shape
        codes = random.words(rows, columns * bits // 32)
        scale = random.scales(rows, columns // group) * 2 / (1 << bits)
        shifts = torch.arange(0, 32, bits)
        code = (codes[..., None] >> shifts & ((1 << bits) - 1)).reshape(rows, -1, group)
        bias = -scale * (1 << (bits - 1))
        values = (code * scale[..., None] + bias[..., None]).reshape(rows, columns)
        return {"weight": codes.view(torch.uint32), "scales": scale, "biases": bias}, values

    folder, values = checkpoints.model(tmp_path, said, parts, key="quantization")
    report = checkpoints.check_model(folder, values)
    schemes = {tensor.name: tensor.scheme for tensor in report.tensors}
    assert schemes["model.layers.0.mlp.up_proj.weight"] == "int-group,bits=8,group=64,scale=f32,zero=bias"
    assert schemes["model.layers.1.mlp.up_proj.weight"] == "int-group,group=32,scale=f32,zero=bias"


DAMAGE = [
    ("affine-4", drop("scales"), r"but m\.q\.scales is missing"),
    ("affine-4", drop("biases"), r"but m\.q\.biases is missing"),
    ("affine-4", drop("weight"), r"belongs to a quantized weight, but"),
    ("affine-4", put("weight", lambda a: a.view(torch.int32)), r"'m\.q\.weight' is i32\[16, 16\], expected u32"),
    ("affine-4", put("scales", lambda a: a[:, :2]), r"'m\.q\.scales' has shape \[16, 2\], expected \[16, 4\]"),
    ("affine-4", put("biases", lambda a: a.half()), r"'m\.q\.biases' is f16\[16, 4\], expected f32"),
    ("affine-4", put("scales", lambda a: a * float("inf")), r"'m\.q\.scales' a scale is not finite"),
    ("affine-4", put("biases", lambda a: a * float("nan")), r"'m\.q\.biases' a bias is not finite"),
    ("affine-4", say(bits=8), r"'m\.q\.scales' has shape \[16, 4\], expected \[16, 2\]"),
    ("affine-4", say(bits=7), r"config\.json: mlx quantization with bits 7, group_size 32, mode 'affine' of 'm\.q'"),
    ("affine-4", say(group_size=48), r"group_size 48"),
    ("affine-4", say(mode="ternary"), r"mode 'ternary'"),
    ("affine-4", say(**{"m.q": False}), r"is quantized, but the config says that 'm\.q' is not"),
    ("affine-4", say(**{"m.nowhere": {"bits": 4}}), r"settings for 'm\.nowhere', which is no quantized module"),
    ("affine-4", say(mode="mxfp4"), r"'m\.q\.scales' is f32\[16, 4\], expected u8"),
    ("mxfp4", say(group_size=16), r"expected 4 and 32"),
    ("mxfp4", lambda said, parts: parts.update(biases=torch.ones(16, 4)), r"biases' belongs to mode affine"),
    ("mxfp8", put("scales", lambda a: a[:-1]), r"'m\.q\.scales' has shape \[15, 4\], expected \[16, 4\]"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "damage", "message"), DAMAGE, ids=[f"{case}-{text[:30]}" for case, _, text in DAMAGE])
def test_what_contradicts_itself_is_refused(case, damage, message, tmp_path):
    said, parts = CASES[case]
    said, parts = json.loads(json.dumps(said)), dict(parts)
    damage(said, parts)
    checkpoints.refused(tmp_path, said, parts, message, "quantization")
