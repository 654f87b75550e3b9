"""Checkpoints of compressed-tensors against the library, or the digests of what version 0.20.1 decodes."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support import block_checkpoints as checkpoints
from tests.support.block_checkpoints import drop, put, say
from tests.support.recorded import Random, digest

ROWS, COLUMNS = 24, 96
MISSING = "compressed-tensors is not installed (pip install --no-deps compressed-tensors loguru; pip install pydantic)"


def said(format: str, ignore=(), **weights) -> dict:
    weights = {"num_bits": 8, "type": "int", "symmetric": True} | weights
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": groups, "ignore": list(ignore),
            "quantization_status": "compressed"}  # fmt: skip


def pack(bits: int, symmetric: bool = True, dtype: torch.dtype = torch.bfloat16, **weights) -> tuple[dict, dict]:
    """Settings and parts of a weight of packed integers."""
    random, groups = Random(bits), COLUMNS // weights["group_size"] if "group_size" in weights else 1
    shape = (1,) if weights["strategy"] == "tensor" else (ROWS, groups)
    parts = {
        "weight_packed": random.stream(bits, ROWS, COLUMNS), "weight_scale": random.scales(*shape, dtype=dtype),
        "weight_shape": torch.tensor([ROWS, COLUMNS]),
    }  # fmt: skip
    if not symmetric and weights["strategy"] == "tensor":
        parts["weight_zero_point"] = (random.below(1 << bits, 1).short() - (1 << (bits - 1))).to(torch.int8)
    elif not symmetric:
        parts["weight_zero_point"] = random.stream(bits, groups, ROWS).T.contiguous()
    return said("pack-quantized", num_bits=bits, symmetric=symmetric, **weights), parts


def naive(format: str, kind: str, scale: tuple[int, ...], zero: bool = False, **weights) -> tuple[dict, dict]:
    """Settings and parts of a weight of a byte a code."""
    random = Random(7)
    codes = random.e4m3(ROWS, COLUMNS) if kind == "float" else random.words(ROWS, COLUMNS, dtype=torch.int8)
    parts = {"weight": codes, "weight_scale": random.scales(*scale, dtype=torch.bfloat16)}
    if zero:
        parts["weight_zero_point"] = random.words(*scale, dtype=torch.int8)
    return said(format, type=kind, symmetric=not zero, **weights), parts


def small(format: str, bits: int, group: int, **more) -> tuple[dict, dict]:
    """Settings and parts of a weight of small floats in groups."""
    random = Random(bits + group)
    name, codes = "weight_packed", random.words(ROWS, COLUMNS // 2, dtype=torch.uint8)
    if bits == 8:
        name, codes = "weight", random.e4m3(ROWS, COLUMNS)
    scale = 110 + random.below(16, ROWS, COLUMNS // group)
    parts = {name: codes, "weight_scale": scale}
    if group == 16:
        scale = random.e4m3(ROWS, COLUMNS // group).view(torch.uint8) & 127
        parts |= {"weight_scale": scale.view(torch.float8_e4m3fn), "weight_global_scale": torch.tensor([123.456])}
    strategy = "tensor_group" if group == 16 else "group"
    return said(format, num_bits=bits, type="float", strategy=strategy, group_size=group, **more), parts


GROUP, CHANNEL, TENSOR = {"strategy": "group", "group_size": 32}, {"strategy": "channel"}, {"strategy": "tensor"}
CASES = {
    **{f"pack-{bits}-group": pack(bits, **GROUP) for bits in range(1, 9)},
    **{f"pack-{bits}-group-asym": pack(bits, False, **GROUP) for bits in range(1, 9)},
    "pack-4-channel": pack(4, **CHANNEL), "pack-3-channel-asym": pack(3, False, **CHANNEL),
    "pack-4-tensor": pack(4, **TENSOR), "pack-4-tensor-asym": pack(4, False, **TENSOR),
    "pack-8-f16": pack(8, dtype=torch.float16, **GROUP), "pack-4-f32": pack(4, dtype=torch.float32, **GROUP),
    "int-channel": naive("int-quantized", "int", (ROWS, 1), **CHANNEL),
    "int-channel-asym": naive("int-quantized", "int", (ROWS, 1), True, **CHANNEL),
    "int-tensor": naive("int-quantized", "int", (1,), **TENSOR),
    "int-tensor-asym": naive("int-quantized", "int", (1,), True, **TENSOR),
    "int-group": naive("naive-quantized", "int", (ROWS, 3), **GROUP),
    "float-channel": naive("float-quantized", "float", (ROWS, 1), **CHANNEL),
    "float-tensor": naive("float-quantized", "float", (1,), **TENSOR),
    "float-group": naive("naive-quantized", "float", (ROWS, 3), **GROUP),
    "float-block": naive("float-quantized", "float", (3, 3), strategy="block", block_structure=[8, 32]),
    "float-block-short": naive("float-quantized", "float", (2, 2), strategy="block", block_structure=[16, 64]),
    "nvfp4": small("nvfp4-pack-quantized", 4, 16), "mxfp4": small("mxfp4-pack-quantized", 4, 32),
    "mxfp8": small("mxfp8-quantized", 8, 32, scale_dtype="torch.uint8"),
}  # fmt: skip

# xxh3_64 of what compressed-tensors 0.20.1 makes of the parts above; where it is installed, the first test checks them.
DECODED = {
    "pack-1-group": "cdbe7866e9c837c2",
    "pack-2-group": "20842efc7f7f97a9",
    "pack-3-group": "453da0b11db3cad7",
    "pack-4-group": "1470691ee3863984",
    "pack-5-group": "5c874ed1879791f0",
    "pack-6-group": "2a6ad02afff84ae6",
    "pack-7-group": "d86ef16cf85d3685",
    "pack-8-group": "9f998deb56a1fbd5",
    "pack-1-group-asym": "f817a7c25eae5115",
    "pack-2-group-asym": "6480b51fbe48f41f",
    "pack-3-group-asym": "382a1ad9b9cb01cc",
    "pack-4-group-asym": "47639c4f4c489b10",
    "pack-5-group-asym": "8219481344967ef3",
    "pack-6-group-asym": "d53a768eda55aafb",
    "pack-7-group-asym": "d42985e3d5ce720a",
    "pack-8-group-asym": "548ab6f0d3eb1a74",
    "pack-4-channel": "107129fcd87f54ff",
    "pack-3-channel-asym": "e4af27d2a7ee5644",
    "pack-4-tensor": "5053030e32a592b0",
    "pack-4-tensor-asym": "3fda3d8c627dfdab",
    "pack-8-f16": "9fa802de557a4b0f",
    "pack-4-f32": "da7bfa344fb89952",
    "int-channel": "9d8266fc2b8c545e",
    "int-channel-asym": "b693a5c11bbf7cea",
    "int-tensor": "5f2d873a3b920328",
    "int-tensor-asym": "c48844733fbd2451",
    "int-group": "11f6b6ff595cec36",
    "float-channel": "58b20f34f105eb57",
    "float-tensor": "47b08240da8af9aa",
    "float-group": "f87bb408acd2d15f",
    "float-block": "eac501cb16e0146c",
    "float-block-short": "e1823f7ddbbbe330",
    "nvfp4": "27f07fae5e98bb8f",
    "mxfp4": "9fc701ba496b654b",
    "mxfp8": "6e7c44523689453f",
}


def library(said: dict, parts: dict) -> torch.Tensor:
    """What the library decodes, in its dtype."""
    quantization = pytest.importorskip("compressed_tensors.quantization", reason=MISSING)
    from compressed_tensors.compressors import BaseCompressor

    scheme = quantization.QuantizationScheme(**said["config_groups"]["group_0"])
    return BaseCompressor.get_value_from_registry(said["format"]).decompress(dict(parts), scheme)["weight"]


@pytest.mark.parametrize("case", CASES)
def test_the_recorded_values_are_those_of_the_library(case):
    assert digest(library(*CASES[case])) == DECODED[case]


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_library(case, tmp_path):
    settings, parts = CASES[case]
    source = checkpoints.one(tmp_path / "hf", settings, parts)
    tensor = source.tensors["m.q.weight"]
    assert source.kind == "compressed-tensors" and tensor.shape == (ROWS, COLUMNS)
    scales = parts["weight_scale"].dtype
    dtype = torch.bfloat16 if scales in (torch.uint8, torch.float8_e4m3fn) else scales
    assert digest(checkpoints.decoded(source).to(dtype)) == DECODED[case]


@pytest.mark.parametrize("case", CASES)
def test_a_weight_goes_back_as_it_came(case, tmp_path):
    settings, parts = CASES[case]
    checkpoints.one(tmp_path / "hf", settings, parts)
    back = checkpoints.goes_back(tmp_path / "hf")
    found = json.loads((back / "config.json").read_text())["quantization_config"]
    assert found["config_groups"] == settings["config_groups"] and found["format"] == settings["format"]


def unpacked(words: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Codes of a stream of words, one bit after another."""
    each = [(words.view(torch.uint8)[:, bit // 8] >> (bit % 8)) & 1 for bit in range(columns * bits)]
    places = torch.stack(each, 1).reshape(len(words), columns, bits).int()
    return (places << torch.arange(bits)).sum(-1)


def four_bits(random: Random, rows: int, columns: int) -> tuple[dict, torch.Tensor]:
    """Parts of a weight of 4 bits with zero points, and its values."""
    groups = columns // 32
    parts = {
        "weight_packed": random.stream(4, rows, columns), "weight_shape": torch.tensor([rows, columns]),
        "weight_scale": random.scales(rows, groups, dtype=torch.bfloat16),
        "weight_zero_point": random.stream(4, groups, rows).T.contiguous(),
    }  # fmt: skip
    zero = unpacked(parts["weight_zero_point"].T.contiguous(), 4, rows).T
    code = unpacked(parts["weight_packed"], 4, columns).reshape(rows, groups, 32)
    return parts, ((code - zero[..., None]) * parts["weight_scale"][..., None].float()).reshape(rows, columns)


def eight_bits(random: Random, rows: int, columns: int) -> tuple[dict, torch.Tensor]:
    """Parts of a weight of 8-bit floats with a scale a row, and its values."""
    parts = {"weight": random.e4m3(rows, columns), "weight_scale": random.scales(rows, 1) / 16}
    return parts, parts["weight"].float() * parts["weight_scale"]


MIXED = {
    "quant_method": "compressed-tensors", "format": "mixed-precision", "quantization_status": "compressed",
    "config_groups": {
        "four": {"targets": ["Linear"], "format": "pack-quantized", "weights": {
            "num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}},
        "eight": {"targets": [r"re:.*layers\.\d+\.mlp\..*"], "format": "float-quantized", "weights": {
            "num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
            "input_activations": {"dynamic": True}},
        "exact": {"targets": ["model.layers.1.mlp.down_proj"], "format": "pack-quantized", "weights": {
            "num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}},
    },
    "ignore": ["lm_head", "re:.*router"],
}  # fmt: skip


def mixed_parts(name: str, weight: torch.Tensor) -> tuple[dict, torch.Tensor]:
    make = eight_bits if ".mlp." in name and name != "model.layers.1.mlp.down_proj.weight" else four_bits
    return make(Random(len(name)), *weight.shape)


def test_a_mixed_model_is_kept_as_it_is(tmp_path):
    folder, values = checkpoints.model(tmp_path, MIXED, mixed_parts)
    report = checkpoints.check_model(folder, values)
    four, eight = "int-group,group=32,scale=bf16,zero=code", "fp8-block,rows=1,columns=all"
    found = {tensor.name: tensor.scheme for tensor in report.tensors}
    assert found["model.layers.0.self_attn.q_proj.weight"] == found["model.layers.1.mlp.down_proj.weight"] == four
    assert found["model.layers.0.mlp.down_proj.weight"] == eight and found["lm_head.weight"] == "bf16"


def test_a_model_that_the_library_compressed(tmp_path):
    quantization = pytest.importorskip("compressed_tensors.quantization", reason=MISSING)
    from compressed_tensors.compressors import BaseCompressor

    settings = said("pack-quantized", num_bits=4, **GROUP)
    scheme = quantization.QuantizationScheme(**settings["config_groups"]["group_0"])
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")

    def parts(name, weight):
        scale = weight.reshape(len(weight), -1, 32).abs().amax(-1) / 7
        made = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
        return made, compressor.decompress(made, scheme)["weight"]

    folder, values = checkpoints.model(tmp_path, settings, parts)
    checkpoints.check_model(folder, values, "int-group,group=32,scale=bf16")


def test_columns_in_another_order(tmp_path):
    settings, parts = pack(4, **GROUP)
    index = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(0)) // 32
    source = checkpoints.one(tmp_path / "hf", settings, parts | {"weight_g_idx": index.int()})
    code = unpacked(parts["weight_packed"], 4, COLUMNS) - 8
    assert torch.equal(checkpoints.decoded(source), code * parts["weight_scale"].float()[:, index])
    checkpoints.goes_back(tmp_path / "hf")
    beyond = {"weight_g_idx": index.int() + (index == 2)}
    with pytest.raises(checkpoints.AibitError, match=r"g_idx' names groups 0 to 3, there are 3"):
        checkpoints.one(tmp_path / "bad", settings, parts | beyond).planes("m.q.weight")


def test_experts_of_three_dimensions(tmp_path):
    settings, parts = pack(4, **GROUP)
    fused = {end: torch.stack([part, part]) for end, part in parts.items() if end != "weight_shape"}
    fused["weight_shape"] = torch.tensor([2, ROWS, COLUMNS])
    one, two = (checkpoints.one(tmp_path / str(i), settings, each) for i, each in enumerate((parts, fused)))
    expected = checkpoints.decoded(one)
    assert torch.equal(checkpoints.decoded(two), torch.stack([expected, expected]))
    checkpoints.goes_back(tmp_path / "1")


def test_scales_of_activations_and_of_the_cache_are_left_out_and_counted(tmp_path):
    settings, parts = CASES["float-tensor"]
    more = {"input_scale": torch.ones(1), "k_scale": torch.ones(1)}
    source = checkpoints.one(tmp_path / "hf", settings, parts | more)
    assert source.metadata["source.left_out"] == ["1 tensors input_scale", "1 tensors k_scale"]


def with_inputs(scale=(ROWS, 1), dtype=torch.bfloat16, weights=CHANNEL, **inputs) -> tuple[dict, dict]:
    """Settings and parts of a weight of a byte a code, whose inputs have 8 bits, too."""
    settings, parts = naive("int-quantized", "int", scale, **weights)
    settings = json.loads(json.dumps(settings))
    said = {"num_bits": 8, "type": "int", "symmetric": True} | inputs
    settings["config_groups"]["group_0"]["input_activations"] = said
    parts["weight_scale"] = parts["weight_scale"].to(dtype)
    if inputs.get("dynamic") is not True:
        parts["input_scale"] = torch.tensor([0.03125 * 1.25], dtype=dtype)
        if not inputs.get("symmetric", True):
            parts["input_zero_point"] = torch.tensor([-28], dtype=torch.int8)
    return settings, parts


TOKEN, WHOLE = {"dynamic": True, "strategy": "token"}, {"dynamic": False, "strategy": "tensor"}
INPUTS = {
    "dynamic": (with_inputs(**TOKEN), "int8-dynamic"),
    "dynamic, one scale": (with_inputs((1,), weights=TENSOR, **TOKEN), "int8-dynamic"),
    "static": (with_inputs(**WHOLE), "int8-static"),
    "static, f32": (with_inputs(dtype=torch.float32, **WHOLE), "int8-static"),
    "static, asymmetric": (with_inputs(symmetric=False, **WHOLE), "int8-static,asymmetric=1"),
}  # fmt: skip


@pytest.mark.parametrize("case", INPUTS)
def test_how_inputs_are_quantized_is_kept_and_goes_back(case, tmp_path):
    (settings, parts), scheme = INPUTS[case]
    source = checkpoints.one(tmp_path / "hf", settings, parts)
    assert source.tensors["m.q.weight"].stored.text == scheme and "source.left_out" not in source.metadata
    planes = source.planes("m.q.weight")
    wanted = parts["weight"].float() * parts["weight_scale"].float().reshape(-1, 1)
    assert torch.equal(checkpoints.decoded(source), wanted)
    for end in ("input_scale", "input_zero_point"):
        assert (end in planes) == (end in parts)
        assert end not in parts or planes[end].tolist() == parts[end].tolist()
    back = checkpoints.goes_back(tmp_path / "hf")
    found = json.loads((back / "config.json").read_text())["quantization_config"]
    assert found["config_groups"] == settings["config_groups"]


def inputs(**changes):
    return lambda said, parts: said["config_groups"]["group_0"]["input_activations"].update(changes)


@pytest.mark.parametrize("change", [inputs(num_bits=4), inputs(type="float"), inputs(strategy="group", group_size=32),
                                    inputs(strategy="token"), inputs(dynamic="local")])  # fmt: skip
def test_other_ways_to_quantize_inputs_are_left_out(change, tmp_path):
    settings, parts = with_inputs(**WHOLE)
    change(settings, parts)
    source = checkpoints.one(tmp_path / "hf", settings, parts)
    assert source.metadata["source.left_out"] == ["1 tensors input_scale"]
    assert source.tensors["m.q.weight"].stored.text == "int-group,bits=8,group=row,scale=bf16"


def test_a_plain_module_with_a_scale_of_its_inputs_stays_plain(tmp_path):
    settings, parts = with_inputs(**WHOLE)
    tensors = {f"m.q.{end}": part for end, part in parts.items()}
    tensors |= {"m.p.weight": torch.ones(4, 4), "m.p.input_scale": torch.ones(1)}
    settings["config_groups"]["group_0"]["targets"] = ["m.q"]
    folder = checkpoints.write(tmp_path / "hf", tensors, {"dtype": "bfloat16"}, quantization_config=settings)
    source = checkpoints.open_source(folder)
    assert source.tensors["m.p.weight"].stored.text == "f32"
    assert source.metadata["source.left_out"] == ["1 tensors input_scale"]


def test_a_model_of_8_bit_inputs_is_kept_as_it_is(tmp_path):
    settings, _ = with_inputs(symmetric=False, **WHOLE)

    def parts(name, weight):
        random = Random(len(name))
        codes, scale = random.words(*weight.shape, dtype=torch.int8), random.scales(len(weight), 1) / 64
        made = {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor([0.05]),
                "input_zero_point": torch.tensor([3], dtype=torch.int8)}  # fmt: skip
        return made, codes.float() * scale

    folder, _ = checkpoints.model(tmp_path, settings, parts, torch.float32)
    report = checkpoints.aibit.convert(folder, tmp_path / "m.aibit")
    assert {t.scheme for t in report.tensors if checkpoints.is_layer(t.name)} == {"int8-static,asymmetric=1"}
    checkpoints.aibit.export(tmp_path / "m.aibit", "huggingface", tmp_path / "back")
    checkpoints.same(folder, tmp_path / "back")


def weights(**changes):
    return lambda said, parts: said["config_groups"]["group_0"]["weights"].update(changes)


def group(**changes):
    return lambda said, parts: said["config_groups"]["group_0"].update(changes)


P, S, Z = "weight_packed", "weight_scale", "weight_zero_point"
ASYM = "pack-4-group-asym"
DAMAGE = [
    (ASYM, lambda said, parts: parts.clear(), r"none of 1 tensors quantized"),
    (ASYM, drop(P), r"belongs to a quantized weight, but m\.q\.weight_packed is missing"),
    (ASYM, drop(S), r"but m\.q\.weight_scale is missing"),
    (ASYM, drop(Z), r"but m\.q\.weight_zero_point is missing"),
    (ASYM, drop("weight_shape"), r"but m\.q\.weight_shape is missing"),
    (ASYM, put(P, lambda a: a.to(torch.int64)), r"'m\.q\.weight_packed' is i64\[24, 12\], expected i32"),
    (ASYM, put(P, lambda a: a[:-1]), r"is \[24, 96\], and 'm\.q\.weight_packed' with 4 bits is \[23, 12\]"),
    (ASYM, put(P, lambda a: a[0]), r"'m\.q\.weight_packed' has shape \[12\], expected rows and columns"),
    (ASYM, put("weight_shape", lambda a: a * 0 - 1), r"'m\.q\.weight_shape' is \[-1, -1\]"),
    (ASYM, put("weight_shape", lambda a: a << 40), r"'m\.q\.weight_shape' is \[26"),
    (ASYM, put("weight_shape", lambda a: a.repeat(99)), r"'m\.q\.weight_shape' is \[\]"),
    (ASYM, put(S, lambda a: a[:, :2]), r"'m\.q\.weight_scale' has shape \[24, 2\], expected \[24, 3\]"),
    (ASYM, put(S, lambda a: a.to(torch.int8)), r"'m\.q\.weight_scale' is i8\[24, 3\], expected f32"),
    (ASYM, put(S, lambda a: a * float("nan")), r"'m\.q\.weight_scale' a scale is not finite"),
    (ASYM, put(Z, lambda a: a[:1]), r"'m\.q\.weight_zero_point' has shape \[1, 3\], expected \[3, 3\]"),
    (ASYM, put(Z, lambda a: a.to(torch.int8)), r"'m\.q\.weight_zero_point' is i8"),
    (ASYM, weights(symmetric=True), r"weight_zero_point' is there, and config group 'group_0' is symmetric"),
    (ASYM, weights(group_size=64), r"'m\.q\.weight_scale' has shape \[24, 3\], expected \[24, 2\]"),
    (ASYM, weights(num_bits=8), r"with 8 bits is \[24, 12\]"),
    (ASYM, weights(num_bits=9), r"config\.json: compressed-tensors .*config group 'group_0', num_bits '9'"),
    (ASYM, weights(num_bits=True), r"num_bits 'True'"),
    (ASYM, weights(type="complex"), r"type 'complex' of weights"),
    (ASYM, weights(strategy="diagonal"), r"strategy 'diagonal'"),
    (ASYM, weights(group_size=0), r"group_size '0'"),
    (ASYM, weights(group_size=None), r"group_size 'None'"),
    (ASYM, weights(symmetric="no"), r"symmetric 'no'"),
    (ASYM, weights(type="float"), r"not integers"),
    (ASYM, weights(strategy="block", block_structure=[8]), r"block_structure '\[8\]', expected two sizes"),
    (ASYM, group(targets=["Conv2d"]), r"no config group has a target that 'm\.q' matches|match no quantized module"),
    (ASYM, group(targets=["re:(("]), r"target 're:\(\(', no regular expression"),
    (ASYM, group(targets=[]), r"targets \[\], expected a list"),
    (ASYM, group(targets="Linear"), r"targets Linear, expected a list"),
    (ASYM, group(format="marlin-24"), r"format 'marlin-24' of config group 'group_0', known: pack-quantized"),
    (ASYM, say(format="dense"), r"format 'dense' of config group"),
    (ASYM, say(config_groups={}), r"config_groups \{\}, expected"),
    (ASYM, say(config_groups={"W4A16": ["Linear"]}), r"'W4A16', the name of a preset"),
    (ASYM, say(config_groups={"a": 4}), r"config group 'a' 4, expected an object"),
    (ASYM, say(ignore=["m.q"]), r"is quantized, but ignore names it: 'm\.q'"),
    (ASYM, say(ignore=[r"re:m\..*"]), r"is quantized, but ignore names it"),
    (ASYM, say(ignore=["re:["]), r"no regular expression"),
    (ASYM, say(transform_config={"config_groups": {"u": {"type": "hadamard"}}}), r"transform_config, rotations"),
    (ASYM, say(sparsity_config={"format": "sparse-24-bitmask"}), r"sparsity_config, sparse weights"),
    ("pack-3-group", put(P, lambda a: a[:, :-1]), r"with 3 bits is \[24, 8\]"),
    ("pack-4-tensor", put(S, lambda a: a.repeat(2)), r"'m\.q\.weight_scale' has shape \[2\], expected \[24, 1\]"),
    ("int-channel", put("weight", lambda a: a.float()), r"'m\.q\.weight' is f32\[24, 96\], expected i8"),
    ("int-channel", weights(num_bits=4), r"'m\.q\.weight' holds codes that do not fit: a code is \d+, beyond 4 bits"),
    ("int-channel", put(S, lambda a: a[:5]), r"'m\.q\.weight_scale' has shape \[5, 1\], expected \[24, 1\]"),
    ("float-channel", put("weight", lambda a: a.view(torch.int8)), r"'m\.q\.weight' is i8\[24, 96\], expected f8_e4m3"),
    ("float-channel", put(S, lambda a: a[:5]), r"_scale' has shape \[5, 1\]: channel scales of \[24, 96\]"),
    ("float-block", put(S, lambda a: a[:2]), r"'m\.q\.weight_scale' has shape \[2, 3\], expected \[3, 3\]"),
    ("nvfp4", drop("weight_global_scale"), r"but m\.q\.weight_global_scale is missing"),
    ("nvfp4", put("weight_global_scale", lambda a: a.repeat(2)), r"global_scale' has shape \[2\], expected \[1\]"),
    ("nvfp4", put("weight_global_scale", lambda a: a * 0), r"'m\.q\.weight_global_scale' a global scale .* is zero"),
    ("nvfp4", put(S, lambda a: a[:, :-1]), r"'m\.q\.weight_scale' has shape \[24, 5\], expected \[24, 6\]"),
    ("nvfp4", weights(group_size=32), r"nvfp4-pack-quantized of 4 bits, type float, group_size 32"),
    ("mxfp4", put(S, lambda a: a * 0 + 255), r"'m\.q\.weight_scale' a scale is NaN"),
    ("mxfp8", put(S, lambda a: a.float()), r"'m\.q\.weight_scale' is f32\[24, 3\], expected u8"),
    ("static", drop("input_scale"), r"but m\.q\.input_scale is missing"),
    ("static", put("input_scale", lambda a: a.repeat(2)), r"'m\.q\.input_scale' has shape \[2\], expected \[1\]"),
    ("static", put("input_scale", lambda a: -a), r"'m\.q\.input_scale' a scale is negative"),
    ("static", put("input_scale", lambda a: a.to(torch.int8)), r"'m\.q\.input_scale' is i8\[1\], expected f32"),
    ("static", lambda said, parts: parts.update(input_zero_point=torch.tensor([1], dtype=torch.int8)),
     r"'m\.q\.input_zero_point' is not 0, and the inputs of config group 'group_0' are symmetric"),
    ("static, asymmetric", drop("input_zero_point"), r"but m\.q\.input_zero_point is missing"),
    ("dynamic", lambda said, parts: parts.update(input_scale=torch.ones(1)), r"inputs of config group .* are dynamic"),
    ("dynamic", put(S, lambda a: a[:5]), r"'m\.q\.weight_scale' has shape \[5, 1\], expected \[24, 1\]"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "damage", "message"), DAMAGE, ids=[f"{case}-{text[:30]}" for case, _, text in DAMAGE])
def test_what_contradicts_itself_is_refused(case, damage, message, tmp_path):
    settings, parts = CASES[case] if case in CASES else INPUTS[case][0]
    settings, parts = json.loads(json.dumps(settings)), dict(parts)
    damage(settings, parts)
    checkpoints.refused(tmp_path, settings, parts, message)


def test_bits_after_the_last_code_are_refused(tmp_path):
    settings, parts = pack(3, **CHANNEL)
    parts |= {P: Random(1).words(ROWS, 9) | -(1 << 31), "weight_shape": torch.tensor([ROWS, 95])}
    checkpoints.refused(tmp_path, settings, parts, r"weight_packed' holds codes that do not fit: a bit")


def test_a_group_that_matches_nothing_is_named(tmp_path):
    settings, parts = CASES[ASYM]
    settings = json.loads(json.dumps(settings))
    settings["config_groups"]["other"] = settings["config_groups"]["group_0"] | {"targets": ["re:.*nowhere"]}
    checkpoints.refused(tmp_path, settings, parts, r"group 'other', whose targets match no quantized module: re:")


def test_a_truncated_file_leaves_nothing_behind(tmp_path):
    settings, parts = CASES[ASYM]
    folder = checkpoints.write(tmp_path / "hf", {f"m.q.{end}": part for end, part in parts.items()}, {},
                               quantization_config=settings)  # fmt: skip
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-7])
    with pytest.raises(checkpoints.AibitError, match="truncated"):
        checkpoints.aibit.convert(folder, tmp_path / "m.aibit")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
