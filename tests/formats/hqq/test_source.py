"""HQQ's checkpoints against its library, or the digests of what hqq 0.2.8 decodes in float32."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support import block_checkpoints as checkpoints
from tests.support.recorded import Random, digest

ROWS, COLUMNS = 20, 64
SAID = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 32, "axis": 1}}}
MISSING = "hqq is not installed (pip install --no-deps hqq; pip install termcolor)"
FLAGS = {"view_as_float": 0, "quant_scale": 0, "quant_zero": 0, "encoded_state_dict": 1, "offload_meta": 0,
         "stores_quant_config": 1, "channel_wise": 1, "optimize": 1, "round_zero": 0}  # fmt: skip


def text(value: str) -> torch.Tensor:
    return torch.tensor(list(value.encode()), dtype=torch.uint8)


def number(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int32)


def layer(bits: int, group: int = 32, dtype: torch.dtype = torch.float32, rows: int = ROWS, columns: int = COLUMNS,
          seed: int = 0, axis: int = 1) -> tuple[dict, dict]:  # fmt: skip
    """Settings and parts of a layer, as a state dict of ``HQQLinear`` has them."""
    random, groups, packed = Random(bits + seed), rows * columns // group, 8 if bits > 4 else bits
    lines, width = (groups, group) if axis else (group, groups)
    height = -(-lines // {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}[packed])
    codes = random.words(height, width, dtype=torch.uint8)
    if bits == 3:
        codes = random.words(height, width) & ((1 << 30) - 1)
    if packed != bits:
        codes &= (1 << bits) - 1
    numbers = (groups, 1) if axis else (1, groups)
    return SAID, {
        "W_q": codes, "scale": random.scales(*numbers, dtype=dtype),
        "zero": (random.scales(*numbers) * (64 << bits)).to(dtype),
        "nbits": number(bits), "group_size": number(group), "axis": number(axis),
        "shape": torch.tensor([rows, columns]), "packing": text(f"{packed}bit_{'32' if bits == 3 else 'u8'}"),
        "compute_dtype": text(str(dtype)),
        "unpack_view_dtype": text("torch.uint8"),
        **{key: torch.tensor(value, dtype=torch.uint8) for key, value in FLAGS.items()},
    }  # fmt: skip


CASES = {
    **{f"{bits}-bits": layer(bits) for bits in (1, 2, 3, 4, 8)}, "4-bits-64": layer(4, 64),
    "4-bits-bf16": layer(4, dtype=torch.bfloat16), "2-bits-f16": layer(2, dtype=torch.float16),
    "5-bits": layer(5), "6-bits": layer(6),
    **{f"{bits}-bits-axis-0": layer(bits, 16, rows=48, axis=0) for bits in (1, 2, 3, 4, 8)},
    "4-bits-axis-0-one-group": layer(4, 20, axis=0), "4-bits-axis-0-bf16": layer(4, 4, torch.bfloat16, axis=0),
}  # fmt: skip

# xxh3_64 of what hqq 0.2.8 makes of the parts above in float32; where it is installed, the first test checks them.
DECODED = {
    "1-bits": "2a89dfc93f683774",
    "2-bits": "dad62abad793c749",
    "3-bits": "041371efd467cf11",
    "4-bits": "cc32c6fcc1508a39",
    "8-bits": "0bbb3f6a470e2012",
    "4-bits-64": "9a66029f429dca45",
    "4-bits-bf16": "cc32c6fcc1508a39",
    "2-bits-f16": "dad62abad793c749",
    "5-bits": "6a90f78899dd455e",
    "6-bits": "281209ae0d21771d",
    "1-bits-axis-0": "78e6d29a5fa8a671",
    "2-bits-axis-0": "deebf00fef16705c",
    "3-bits-axis-0": "b6f8d4a4ff8988c1",
    "4-bits-axis-0": "9d3d4637651edc30",
    "8-bits-axis-0": "32d6109eaa035854",
    "4-bits-axis-0-one-group": "fcd65b7c80f1a8f9",
    "4-bits-axis-0-bf16": "42ffa83800c00fb8",
}


def library(said: dict, parts: dict) -> torch.Tensor:
    """What the library decodes if it computes in float32."""
    quantize = pytest.importorskip("hqq.core.quantize", reason=MISSING)
    meta = {key: int(parts[key]) for key in ("nbits", "group_size", "axis")} | {
        "shape": parts["shape"].tolist(), "packing": bytes(parts["packing"].tolist()).decode(), "view_as_float": False,
        "compute_dtype": torch.float32, "scale": parts["scale"].float(), "zero": parts["zero"].float(),
    }  # fmt: skip
    return quantize.Quantizer.dequantize(parts["W_q"], meta)


@pytest.mark.parametrize("case", CASES)
def test_the_recorded_values_are_those_of_the_library(case):
    assert digest(library(*CASES[case])) == DECODED[case]


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_library(case, tmp_path):
    said, parts = CASES[case]
    source = checkpoints.one(tmp_path / "hf", said, parts)
    assert source.kind == "hqq" and list(source.tensors) == ["m.b", "m.q.weight"]
    found = checkpoints.decoded(source)
    assert source.tensors["m.q.weight"].transposed is (int(parts["axis"]) == 0)
    assert digest(found.T.contiguous() if source.tensors["m.q.weight"].transposed else found) == DECODED[case]


def test_what_the_library_quantized(tmp_path):
    quantize = pytest.importorskip("hqq.core.quantize", reason=MISSING)
    config = quantize.BaseQuantizeConfig(nbits=4, group_size=32, axis=1)
    linear = torch.nn.Linear(64, 32, bias=True)
    made = quantize.HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")
    parts = {key: value.detach() for key, value in made.state_dict().items()}
    source = checkpoints.one(tmp_path / "hf", SAID, parts)
    assert set(source.tensors) == {"m.b", "m.q.weight", "m.q.bias"}
    assert torch.equal(checkpoints.decoded(source), made.dequantize())


def test_a_model_is_kept_as_it_is(tmp_path):
    def parts(name, weight):
        rows, columns = weight.shape
        _, made = layer(4, rows=rows, columns=columns, seed=len(name))
        made["scale"] /= 8
        codes = torch.cat([made["W_q"] >> 4, made["W_q"] & 15]).float()
        return made, ((codes - made["zero"]) * made["scale"]).reshape(rows, columns)

    folder, values = checkpoints.model(tmp_path, SAID, parts)
    checkpoints.check_model(folder, values, "int-group,group=32,scale=f32,zero=float", goes_back=False)


def test_a_model_of_the_other_axis_is_kept_as_its_transpose(tmp_path):
    def parts(name, weight):
        rows, columns = weight.shape
        _, made = layer(4, rows=rows, columns=columns, seed=len(name), axis=0)
        made["scale"] /= 8
        codes = torch.cat([made["W_q"] >> 4, made["W_q"] & 15]).float()
        return made, ((codes - made["zero"]) * made["scale"]).reshape(rows, columns)

    folder, values = checkpoints.model(tmp_path, SAID, parts)
    scheme = "int-group,group=32,scale=f32,zero=float,ordered=1"
    checkpoints.check_model(folder, values, scheme, goes_back=False, turned=True)


DAMAGE = [
    (lambda parts: parts.pop("W_q"), r"but m\.q\.W_q is missing"),
    (lambda parts: parts.pop("nbits"), r"but m\.q\.nbits is missing"),
    (lambda parts: parts.pop("zero"), r"but m\.q\.zero is missing"),
    (lambda parts: parts.update(W_q=parts["W_q"][1:]), r"'m\.q\.W_q' is u8\[19, 32\], expected u8\[20, 32\]"),
    (lambda parts: parts.update(W_q=parts["W_q"].int()), r"'m\.q\.W_q' is i32\[20, 32\], expected u8"),
    (lambda parts: parts.update(scale=parts["scale"][1:]), r"'m\.q\.scale' has shape \[39, 1\], expected \[40, 1\]"),
    (lambda parts: parts.update(zero=parts["zero"].half()), r"'m\.q\.zero' is f16\[40, 1\], expected f32"),
    (lambda parts: parts["scale"].fill_(float("nan")), r"'m\.q\.scale' a scale is not finite"),
    (lambda parts: parts["zero"].fill_(float("inf")), r"a zero point is not finite"),
    (lambda parts: parts.update(axis=number(2)), r"'m\.q\.axis' is 2, expected 0 or 1"),
    (lambda parts: parts.update(axis=number(0)), r"'m\.q\.shape' is \[20, 64\], not columns of whole groups of 32"),
    (lambda parts: parts.update(axis=number(0), group_size=number(20)), r"is u8\[20, 32\], expected u8\[10, 64\]"),
    (lambda parts: parts.update(packing=text("8bit_u8"), nbits=number(5), W_q=parts["W_q"].repeat(2, 1) | 128),
     r"'m\.q\.W_q' holds codes that do not fit: a code is \d+, beyond 5 bits"),
    (lambda parts: parts.update(nbits=number(8)), r"'m\.q\.packing' is '4bit_u8' for 8 bits, known"),
    (lambda parts: parts.update(packing=text("5bit_u8")), r"'m\.q\.packing' is '5bit_u8'"),
    (lambda parts: parts.update(group_size=number(0)), r"'m\.q\.shape' is \[20, 64\], not rows of whole groups of 0"),
    (lambda parts: parts.update(group_size=number(48)), r"not rows of whole groups of 48"),
    (lambda parts: parts.update(shape=torch.tensor([1 << 40, 64])), r"'m\.q\.W_q' is u8\[20, 32\], expected u8\[1099"),
    (lambda parts: parts.update(shape=torch.tensor([-20, -64])), r"'m\.q\.shape' is \[-20, -64\]"),
    (lambda parts: parts.update(shape=torch.zeros(99, dtype=torch.int64)), r"'m\.q\.shape' has shape \[99\]"),
    (lambda parts: parts.update(view_as_float=number(1)), r"view_as_float' says that codes are stored as floats"),
    (lambda parts: parts.update(quant_zero=number(1)), r"quant_zero' says that scales are quantized themselves"),
]  # fmt: skip


def test_a_module_that_is_to_be_skipped_is_refused(tmp_path):
    checkpoints.refused(
        tmp_path, SAID | {"skip_modules": ["m.q"]}, layer(4)[1], "quantized, but skip_modules names 'm.q'"
    )


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[text[:30] for _, text in DAMAGE])
def test_what_contradicts_itself_is_refused(damage, message, tmp_path):
    parts = {end: part.clone() for end, part in layer(4)[1].items()}
    damage(parts)
    checkpoints.refused(tmp_path, json.loads(json.dumps(SAID)), parts, message)
