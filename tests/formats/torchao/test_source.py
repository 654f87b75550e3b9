"""Checkpoints of torchao's tensors against its library, or the digests of what torchao 0.18 decodes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.support import block_checkpoints as checkpoints
from tests.support.block_checkpoints import put
from tests.support.recorded import Random, digest

ROWS, COLUMNS = 24, 64
SAID = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}
MISSING = "torchao is not installed (pip install --no-deps torchao)"
INTX = "IntxUnpackedToInt8Tensor"


def integers(kind: str, block: list[int], scale: tuple[int, ...], bits: int = 8, zero: bool = False,
             dtype: torch.dtype = torch.bfloat16) -> tuple[dict, dict]:  # fmt: skip
    """The JSON and the parts of a weight of integers."""
    random, half = Random(bits), 1 << (bits - 1)
    codes = (random.below(1 << bits, ROWS, COLUMNS).short() - half).to(torch.int8)
    said = {"block_size": block, "dtype": {"_type": "torch.dtype", "_data": str(dtype).removeprefix("torch.")}}
    if kind == INTX:
        said |= {"target_dtype": {"_type": "torch.dtype", "_data": f"int{bits}"}}
    parts = {"qdata": codes, "scale": random.scales(*scale, dtype=dtype)}
    if zero:
        parts["zero_point"] = (random.below(1 << bits, *scale).short() - half).to(torch.int8)
    return {"_type": kind, "_data": said, "_tensor_data_names": list(parts)}, parts


def floats(block: list[int], scale: tuple[int, ...]) -> tuple[dict, dict]:
    """The JSON and the parts of a weight of 8-bit floats."""
    random = Random(5)
    parts = {"qdata": random.e4m3(ROWS, COLUMNS), "scale": random.scales(*scale)}
    return {"_type": "Float8Tensor", "_data": {"block_size": block}, "_tensor_data_names": list(parts)}, parts


CASES = {
    "int8-row": integers("Int8Tensor", [1, COLUMNS], (ROWS, 1)),
    "int8-row-asym": integers("Int8Tensor", [1, COLUMNS], (ROWS, 1), zero=True, dtype=torch.float32),
    "int8-tensor": integers("Int8Tensor", [ROWS, COLUMNS], (1, 1)),
    "int8-group": integers("Int8Tensor", [1, 32], (ROWS, 2)),
    **{f"int{bits}": integers(INTX, [1, 32], (ROWS, 2), bits, True) for bits in range(1, 9)},
    "float8-row": floats([1, COLUMNS], (ROWS, 1)), "float8-tensor": floats([ROWS, COLUMNS], (1, 1)),
    "float8-block": floats([8, 32], (3, 2)),
}  # fmt: skip

# xxh3_64 of what torchao 0.18 makes of the parts above; where it is installed, the first test checks them.
DECODED = {
    "int8-row": "6c73fd3b08dc180d",
    "int8-row-asym": "1844db5fe80b9ab4",
    "int8-tensor": "ec11e98d7c936e1a",
    "int8-group": "4c1238605109aeb7",
    "int1": "4f5abf880c2f5ffc",
    "int2": "f7599812a9d4fcac",
    "int3": "ba14da5c51dc89b5",
    "int4": "c2fec626416845ec",
    "int5": "11f902f1bbd0e0b3",
    "int6": "11b45da1d8270d7f",
    "int7": "a0e841debf205fcb",
    "int8": "cabded16680ead43",
    "float8-row": "5f1878bd264010e3",
    "float8-tensor": "bc83ff7d135406bf",
    "float8-block": "1dea073e41164492",
}


def library(said: dict, parts: dict) -> torch.Tensor:
    """What the library decodes, in the dtype of the scales."""
    pytest.importorskip("torchao", reason=MISSING)
    from torchao.quantization.quant_primitives import _dequantize_affine_float8, dequantize_affine

    if said["_type"] == "Float8Tensor":
        return _dequantize_affine_float8(parts["qdata"], parts["scale"], torch.float32)
    block, zero = said["_data"]["block_size"], parts.get("zero_point")
    return dequantize_affine(parts["qdata"], block, parts["scale"], zero, torch.int8, output_dtype=parts["scale"].dtype)


def write(folder, said: dict, parts: dict):
    """A source of one module, with the library's names and metadata."""
    folder.mkdir()
    metadata = {"m.q.weight": json.dumps(said), "m.b": json.dumps({"_type": "Tensor"})}
    metadata["tensor_names"] = json.dumps(list(metadata))
    tensors = {"m.b": torch.ones(3)} | {f"m.q._weight_{end}": part.contiguous() for end, part in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata)
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16", "quantization_config": SAID}))
    return checkpoints.open_source(folder)


@pytest.mark.parametrize("case", CASES)
def test_the_recorded_values_are_those_of_the_library(case):
    assert digest(library(*CASES[case])) == DECODED[case]


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_library(case, tmp_path):
    said, parts = CASES[case]
    source = write(tmp_path / "hf", said, parts)
    assert source.kind == "torchao" and list(source.tensors) == ["m.b", "m.q.weight"]
    assert digest(checkpoints.decoded(source).to(parts["scale"].dtype)) == DECODED[case]


def test_what_the_library_saved(tmp_path):
    torchao = pytest.importorskip("torchao.quantization", reason=MISSING)
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    layer = torch.nn.Sequential(torch.nn.Linear(64, 32, dtype=torch.bfloat16))
    torchao.quantize_(layer, torchao.Int8WeightOnlyConfig(version=2))
    tensors, metadata = flatten_tensor_state_dict({key: value.data for key, value in layer.state_dict().items()})
    (tmp_path / "hf").mkdir()
    save_file(tensors, tmp_path / "hf/model.safetensors", metadata)
    (tmp_path / "hf/config.json").write_text(json.dumps({"dtype": "bfloat16", "quantization_config": SAID}))
    found = checkpoints.decoded(checkpoints.open_source(tmp_path / "hf"), "0.weight")
    assert torch.equal(found.to(torch.bfloat16), layer[0].weight.dequantize())


def data(**changes):
    return lambda said, parts: said["_data"].update(changes)


def kind(name):
    return lambda said, parts: said.update(_type=name)


DAMAGE = [
    (lambda said, parts: parts.pop("qdata"), r"but m\.q\._weight_qdata is missing"),
    (lambda said, parts: parts.pop("scale"), r"but m\.q\._weight_scale is missing"),
    (put("qdata", lambda a: a.float()), r"'m\.q\._weight_qdata' is f32\[24, 64\], expected i8"),
    (put("qdata", lambda a: a + 64), r"_weight_qdata' holds codes that do not fit: a code is \d+, beyond 4 bits"),
    (put("scale", lambda a: a[:, :1]), r"'m\.q\._weight_scale' has shape \[24, 1\], expected \[24, 2\]"),
    (put("scale", lambda a: a * float("nan")), r"'m\.q\._weight_scale' a scale is not finite"),
    (put("zero_point", lambda a: a[:5]), r"'m\.q\._weight_zero_point' has shape \[5, 2\], expected \[24, 2\]"),
    (put("zero_point", lambda a: a * 0 + 99), r"'m\.q\._weight_zero_point' holds zero points beyond 4 bits"),
    (data(block_size=[1, 16]), r"'m\.q\._weight_scale' has shape \[24, 2\], expected \[24, 4\]"),
    (data(block_size=[2, 32]), r"has a block_size of 2 rows"),
    (put("qdata", lambda a: a[0]), r"_weight_qdata' has shape \[64\], expected rows and columns"),
    (data(block_size=[32]), r"has block_size \[32\] for shape \[24, 64\]"),
    (data(block_size=None), r"has block_size None"),
    (data(target_dtype={"_data": "float4"}), r"has target_dtype .*, expected int1 to int8"),
    (kind("Int4TilePackedTo4dTensor"), r"Int4TilePackedTo4dTensor, which is laid out for one kind of GPU"),
    (kind("Int4PlainInt32Tensor"), r"Int4PlainInt32Tensor, which is laid out for one kind of GPU"),
    (kind("Unheard"), r"belongs to 'Unheard', known: Int8Tensor"),
    (lambda said, parts: said.pop("_data"), r"belongs to 'm\.q\.weight', whose metadata are"),
    (lambda said, parts: parts.update(act_pre_scale=torch.ones(64)), r"act_pre_scale' scales the inputs of its layer"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[text[:30] for _, text in DAMAGE])
def test_what_contradicts_itself_is_refused(damage, message, tmp_path):
    said, parts = CASES["int4"]
    said, parts = json.loads(json.dumps(said)), dict(parts)
    damage(said, parts)
    with pytest.raises(checkpoints.AibitError, match=message) as caught:
        write(tmp_path / "bad", said, parts).planes("m.q.weight")
    assert str(tmp_path / "bad") in str(caught.value)


def test_a_weight_of_which_the_metadata_say_nothing_is_refused(tmp_path):
    tensors = {f"m.q._weight_{end}": part for end, part in CASES["int4"][1].items()}
    checkpoints.write(tmp_path / "hf", tensors, {"quantization_config": SAID})
    with pytest.raises(checkpoints.AibitError, match=r"'m\.q\.weight', of which the file's metadata say nothing"):
        checkpoints.open_source(tmp_path / "hf")


def nibbles(dtype: torch.dtype = torch.bfloat16, shape: tuple[int, ...] = (ROWS, COLUMNS)) -> tuple[dict, dict]:
    """The JSON and the parts of an ``Int4Tensor``."""
    random, (*lead, rows, columns) = Random(11), shape
    scale = random.scales(*lead, columns // 32, rows, dtype=dtype)
    zero = (scale.float() * (random.below(160, *scale.shape).float() - 80) / 10).to(dtype)
    said = {"block_size": [1] * (len(shape) - 1) + [32], "shape": list(shape)}
    parts = {"qdata": random.words(*lead, rows, columns // 2, dtype=torch.uint8).view(torch.int8), "scale": scale,
             "zero_point": zero}  # fmt: skip
    return {"_type": "Int4Tensor", "_data": said, "_tensor_data_names": list(parts)}, parts


def of_nibbles(parts: dict) -> torch.Tensor:
    """Signed code * scale + zero_point in float32, the inverse of ``int4_row_quantize_zp``."""
    packed = parts["qdata"].view(torch.uint8)
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).to(torch.int8)
    codes = torch.where(codes > 7, codes - 16, codes).float()
    scale, zero = (parts[end].float().mT.repeat_interleave(32, -1) for end in ("scale", "zero_point"))
    return codes * scale + zero


@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (3, ROWS, COLUMNS)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nibbles_are_held_exactly(dtype, shape, tmp_path):
    said, parts = nibbles(dtype, shape)
    source = write(tmp_path / "hf", said, parts)
    assert source.tensors["m.q.weight"].stored.text == "int-group,group=32,scale=f32,zero=bias"
    assert torch.equal(checkpoints.decoded(source), of_nibbles(parts))
    parts["zero_point"] *= 0  # as for activations in 8-bit floats
    source = write(tmp_path / "even", said, parts)
    assert "zero=bias" not in source.tensors["m.q.weight"].stored.text
    assert torch.equal(checkpoints.decoded(source), of_nibbles(parts))


def test_nibbles_that_the_library_saved(tmp_path):
    pytest.importorskip("torchao", reason=MISSING)
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int4Tensor

    parts = nibbles()[1]
    tensors, metadata = flatten_tensor_state_dict({"0.weight": Int4Tensor(**parts, block_size=[1, 32], shape=(24, 64))})
    checkpoints.write(tmp_path / "hf", {}, {"dtype": "bfloat16", "quantization_config": SAID})
    save_file(tensors, tmp_path / "hf/model.safetensors", metadata)
    found = checkpoints.decoded(checkpoints.open_source(tmp_path / "hf"), "0.weight")
    assert torch.equal(found, of_nibbles(parts))


OF_NIBBLES = [
    (put("zero_point", lambda a: a * 0 + 2.0**-30),
     r"_weight_zero_point' is, in group 0 of row 0, too far from its scale"),
    (put("zero_point", lambda a: a.float()), r"_weight_zero_point' is f32\[2, 24\], expected bf16"),
    (put("zero_point", lambda a: a.mT.contiguous()), r"_weight_zero_point' has shape \[24, 2\], expected \[2, 24\]"),
    (put("scale", lambda a: a.mT.contiguous()), r"_weight_scale' has shape \[24, 2\], expected \[2, 24\]"),
    (put("scale", lambda a: a * float("inf")), r"_weight_scale' a scale is not finite"),
    (put("zero_point", lambda a: a * float("nan")), r"_weight_zero_point' .* not finite"),
    (data(block_size=[2, 32]), r"has block_size \[2, 32\], expected whole groups"),
    (data(block_size=[1, 48]), r"has block_size \[1, 48\], expected whole groups of the 64 columns"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), OF_NIBBLES, ids=[text[:30] for _, text in OF_NIBBLES])
def test_nibbles_that_contradict_themselves_are_refused(damage, message, tmp_path):
    said, parts = nibbles()
    damage(said, parts)
    with pytest.raises(checkpoints.AibitError, match=message) as caught:
        write(tmp_path / "bad", said, parts).planes("m.q.weight")
    assert str(tmp_path / "bad") in str(caught.value)


def test_a_module_that_is_not_to_be_converted_is_refused(tmp_path):
    write(tmp_path / "hf", *CASES["int4"])
    said = SAID | {"modules_to_not_convert": ["q"]}
    (tmp_path / "hf/config.json").write_text(json.dumps({"dtype": "bfloat16", "quantization_config": said}))
    with pytest.raises(checkpoints.AibitError, match=r"is quantized, but modules_to_not_convert names 'q'"):
        checkpoints.open_source(tmp_path / "hf")
