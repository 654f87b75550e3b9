"""FP8 checkpoints against transformers' own dequantization."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from tests.support import block_checkpoints as checkpoints
from tests.support.block_checkpoints import drop, put, say

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
SAID = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 64]}
WHOLE = SAID | {"weight_block_size": None}
PER_ROW = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
UE8M0 = SAID | {"scale_fmt": "ue8m0"}


def codes(*shape: int) -> torch.Tensor:
    """Random codes, none of which is NaN."""
    found = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found[(found & 127) == 127] -= 1
    return found.view(E4M3)


def scales(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    if dtype == E8M0:
        return torch.randint(112, 122, shape, dtype=torch.uint8, generator=generator).view(E8M0)
    return (torch.rand(shape, generator=generator) * 0.001 + 1e-5).to(dtype)


def reference(parts: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    scale = next(value for end, value in parts.items() if "scale" in end and "activation" not in end)
    return Fp8Dequantize(None)._dequantize_one(parts["weight"], scale.reshape(scale.shape or (1, 1)), dtype)


GRIDS = {
    "blocks": (SAID, (64, 128), (2, 2), torch.float32, "fp8-block,rows=32,columns=64,scale=f32"),
    "blocks-bf16": (SAID, (64, 128), (2, 2), torch.bfloat16, "fp8-block,rows=32,columns=64,scale=bf16"),
    "blocks-e8m0": (UE8M0, (64, 128), (2, 2), E8M0, "fp8-block,rows=32,columns=64,scale=f8_e8m0"),
    "tensor": (WHOLE, (64, 128), (), torch.float32, "fp8-block,rows=all,columns=all,scale=f32"),
    "tensor-1": (WHOLE, (64, 128), (1,), torch.bfloat16,
                 "fp8-block,rows=all,columns=all,scale=bf16"),
    "rows": (PER_ROW, (64, 128), (64, 1), torch.float32, "fp8-block,rows=1,columns=all,scale=f32"),
    "mxfp8": ({"quant_method": "mxfp8"}, (64, 128), (64, 4), E8M0, "mxfp8"),
    "mxfp8-as-fp8": (UE8M0 | {"weight_block_size": [1, 32]}, (64, 128), (64, 4), E8M0, "mxfp8"),
}  # fmt: skip


@pytest.mark.parametrize("case", GRIDS)
@pytest.mark.parametrize("end", ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"])
def test_values_are_those_of_transformers(case, end, tmp_path):
    said, shape, grid, dtype, scheme = GRIDS[case]
    parts = {"weight": codes(*shape), end: scales(*grid, dtype=dtype), "activation_scale": torch.ones(())}
    source = checkpoints.one(tmp_path / "hf", said, parts)
    tensor = source.tensors["m.q.weight"]
    assert source.kind == "fp8" and list(source.tensors) == ["m.b", "m.q.weight"]
    assert tensor.stored.text == checkpoints.parse(scheme).text and tensor.dtype == "bf16"
    assert torch.equal(checkpoints.decoded(source), reference(parts))
    assert source.metadata["source.left_out"] == ["1 tensors activation_scale"]
    checkpoints.goes_back(tmp_path / "hf", (".activation_scale",))


def test_bytes_are_exponents_if_the_config_says_so(tmp_path):
    parts = {"weight": codes(64, 128), "weight_scale_inv": scales(2, 2, dtype=E8M0).view(torch.uint8)}
    assert torch.equal(checkpoints.decoded(checkpoints.one(tmp_path / "hf", UE8M0, parts)), reference(parts))
    checkpoints.goes_back(tmp_path / "hf")
    with pytest.raises(checkpoints.AibitError, match=r"'m\.q\.weight_scale_inv' is u8, expected f32 or"):
        checkpoints.one(tmp_path / "other", SAID, parts)


def test_blocks_at_the_ends_may_be_short(tmp_path):
    parts = {"weight": codes(70, 130), "weight_scale_inv": scales(3, 3)}
    expanded = parts["weight_scale_inv"].repeat_interleave(32, 0)[:70].repeat_interleave(64, 1)[:, :130]
    found = checkpoints.decoded(checkpoints.one(tmp_path / "hf", SAID, parts))
    assert torch.equal(found, parts["weight"].float() * expanded)
    checkpoints.goes_back(tmp_path / "hf")


def test_fused_experts(tmp_path):
    tensors = {"m.experts.up": codes(3, 64, 128), "m.experts.up_scale_inv": scales(3, 2, 2)}
    checkpoints.write(tmp_path / "hf", tensors, {"dtype": "bfloat16", "quantization_config": SAID})
    source = checkpoints.open_source(tmp_path / "hf")
    expected = reference({"weight": tensors["m.experts.up"], "scale": tensors["m.experts.up_scale_inv"]})
    assert torch.equal(checkpoints.decoded(source, "m.experts.up"), expected)
    checkpoints.goes_back(tmp_path / "hf")


def test_experts_of_four_bits(tmp_path):
    packed = torch.randint(-128, 128, (48, 64), dtype=torch.int8)
    parts = {"weight": packed, "scale": scales(48, 4, dtype=E8M0)}
    source = checkpoints.one(tmp_path / "hf", UE8M0 | {"expert_dtype": "fp4"}, parts)
    assert source.tensors["m.q.weight"].stored.text == "mxfp4"
    assert torch.equal(checkpoints.decoded(source), reference(parts))
    checkpoints.goes_back(tmp_path / "hf")


@pytest.mark.parametrize("case", ["blocks", "blocks-e8m0", "rows"])
def test_a_model_is_kept_as_it_is(case, tmp_path):
    said, _, _, dtype, scheme = GRIDS[case]

    def parts(name, weight):
        made = {"weight": (weight / 4).to(E4M3)}
        rows, columns = weight.shape
        grid = (rows, 1) if case == "rows" else (rows // 32, columns // 64)
        made["weight_scale_inv"] = scales(*grid, dtype=dtype) if dtype == E8M0 else scales(*grid) + 2
        return made, reference(made)

    folder, values = checkpoints.model(tmp_path, said, parts)
    report = checkpoints.check_model(folder, values, checkpoints.parse(scheme).text)
    assert "config.json:quantization_config" in report.dropped_keys


S = "weight_scale_inv"
DAMAGE = [
    (drop(S), r"none of 2 tensors quantized"),
    (drop("weight"), r"m\.q\.weight_scale_inv' belongs to a quantized weight, but m\.q\.weight is missing"),
    (put("weight", lambda a: a.view(torch.uint8)), r"'m\.q\.weight' is u8 with scales f32, and no expert_dtype"),
    (put("weight", lambda a: a.view(torch.float8_e5m2)), r"'m\.q\.weight' is f8_e5m2\[64, 128\], expected f8_e4m3"),
    (put("weight", lambda a: a[0]), r"'m\.q\.weight_scale_inv' has shape|has shape \[128\]|no scale a row"),
    (put("weight", lambda a: a[:, :-64]), r"'m\.q\.weight_scale_inv' has shape \[2, 2\], expected \[2, 1\]"),
    (put(S, lambda a: a[:1]), r"'m\.q\.weight_scale_inv' has shape \[1, 2\], expected \[2, 2\]"),
    (put(S, lambda a: a.T.repeat(2, 1)), r"'m\.q\.weight_scale_inv' has shape \[4, 2\], expected \[2, 2\]"),
    (put(S, lambda a: a.to(torch.int32)), r"'m\.q\.weight_scale_inv' is i32, expected f32"),
    (put(S, lambda a: a * float("nan")), r"'m\.q\.weight_scale_inv' a scale is not finite"),
    (put(S, lambda a: a * float("inf")), r"'m\.q\.weight_scale_inv' a scale is not finite"),
    (put(S, lambda a: -a), r"'m\.q\.weight_scale_inv' a scale is negative"),
    (say(weight_block_size=[64, 64]), r"has shape \[2, 2\], expected \[1, 2\]"),
    (say(weight_block_size=[32]), r"config\.json: fp8 quantization with weight_block_size \[32\], expected two sizes"),
    (say(weight_block_size=[32, -64]), r"weight_block_size \[32, -64\]"),
    (say(weight_block_size=[32, True]), r"weight_block_size \[32, True\]"),
    (say(weight_block_size="32x64"), r"weight_block_size 32x64"),
    (say(weight_block_size=None), r"'m\.q\.weight_scale_inv' has shape \[2, 2\]: no scale a row"),
    (say(modules_to_not_convert=["m"]), r"is quantized, but modules_to_not_convert names 'm'"),
    (say(ignored_layers=["q"]), r"is quantized, but ignored_layers names 'q'"),
    (lambda said, parts: parts.update(weight_scale=parts[S].clone()), r"is scale of 'm\.q\.weight', and so is"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[text[:30] for _, text in DAMAGE])
def test_what_contradicts_itself_is_refused(damage, message, tmp_path):
    said, parts = dict(SAID), {"weight": codes(64, 128), S: scales(2, 2)}
    damage(said, parts)
    checkpoints.refused(tmp_path, said, parts, message)


def test_codes_without_a_scale_beside_others_are_named(tmp_path):
    tensors = {"m.a.weight": codes(64, 128), f"m.a.{S}": scales(2, 2), "m.q.weight": codes(64, 128)}
    checkpoints.write(tmp_path / "hf", tensors, {"quantization_config": SAID})
    with pytest.raises(
        checkpoints.AibitError, match=r"'m\.q\.weight' is f8_e4m3, codes of a quantized weight, without"
    ):
        checkpoints.open_source(tmp_path / "hf")


def test_a_nan_among_the_codes_is_found_when_it_is_written(tmp_path):
    parts = {"weight": codes(64, 128), S: scales(2, 2)}
    parts["weight"].view(torch.uint8)[3, 5] = 0x7F
    checkpoints.write(
        tmp_path / "hf", {"m.q.weight": parts["weight"], f"m.q.{S}": parts[S]}, {"quantization_config": SAID}
    )
    with pytest.raises(checkpoints.AibitError):
        checkpoints.aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
