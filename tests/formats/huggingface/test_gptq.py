"""GPTQ checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import aibit_format as aibit
from aibit_format.errors import SourceError
from aibit_format.formats.sources import open_source
from tests.support.int4_checkpoints import (
    CHECKPOINTS,
    GPTQ_SAID,
    nibbles,
    packed,
    reference,
)
from tests.support.int4_checkpoints import plain as plain
from tests.support.int4_modules import one_module


def test_conv1d_weights_of_gpt2_are_the_other_way_round(plain, tmp_path):
    tensors, config = plain["gpt2"]
    said, name = CHECKPOINTS["gptq-act-order"][0], "transformer.h.0.mlp.c_fc"
    tensors = dict(tensors)
    columns, rows = tensors.pop(f"{name}.weight").shape
    parts = packed(said, rows, columns)
    (tmp_path / "hf").mkdir()
    save_file(tensors | {f"{name}.{part}": value for part, value in parts.items()}, tmp_path / "hf/model.safetensors")
    (tmp_path / "hf/config.json").write_text(json.dumps(config | {"quantization_config": said}))
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as file:
        info = file.info(f"{name}.weight")
        assert info.transposed and info.shape == (rows, columns) and info.dtype == "f16"
        assert np.array_equal(file.dequantize(info.name), reference(said, parts))


def test_zero_points_that_gptqmodel_borrowed_for(tmp_path):
    parts = packed(GPTQ_SAID, 16, 64)
    parts["qzeros"][0, 0] &= ~15  # a zero, for which the subtraction borrows from the next nibble
    zeros = nibbles(parts["qzeros"]).flatten(1).numpy()  # what they were before 0x11111111 was taken from the words
    stored = parts | {"qzeros": (parts["qzeros"].view(np.uint32) - np.uint32(0x11111111)).view(np.int32)}
    said = GPTQ_SAID | {"meta": {"quantizer": ["gptqmodel:2.0.0"]}}
    assert np.array_equal(one_module(tmp_path / "a", said, stored).planes("m.q.weight")["zero_point"], zeros.T)
    other = one_module(tmp_path / "b", GPTQ_SAID, stored).planes("m.q.weight")["zero_point"]
    assert other.max() == 16 and not np.array_equal(other, zeros.T)


def test_a_quantize_config_beside_is_read(tmp_path):
    parts = packed(GPTQ_SAID, 8, 32)
    one_module(tmp_path / "hf", GPTQ_SAID, parts)
    (tmp_path / "hf/config.json").write_text("{}")
    assert open_source(tmp_path / "hf").kind == "huggingface"
    said = {key: value for key, value in GPTQ_SAID.items() if key != "quant_method"}
    (tmp_path / "hf/quantize_config.json").write_text(json.dumps(said))
    source = open_source(tmp_path / "hf")
    assert source.kind == "gptq" and source.tensors["m.q.weight"].dtype == "f32"  # transformers' default


def test_scales_of_another_float_are_taken_if_they_are_exact(tmp_path):
    parts = packed(GPTQ_SAID, 8, 64)
    wide = parts | {"scales": parts["scales"].astype(np.float32)}
    planes = one_module(tmp_path / "hf", GPTQ_SAID, wide).planes("m.q.weight")
    assert np.array_equal(planes["scale"], parts["scales"].T) and planes["scale"].dtype == np.float16
    wide["scales"][1, 2] = 0.1
    with pytest.raises(SourceError, match=r"m\.q\.scales' has 0\.1\d* for group 1, row 2"):
        one_module(tmp_path / "hf", GPTQ_SAID, wide).planes("m.q.weight")


def test_a_missing_g_idx_means_the_plain_order(tmp_path):
    parts = packed(GPTQ_SAID, 8, 64)
    index = parts.pop("g_idx")
    source = one_module(tmp_path / "hf", GPTQ_SAID, parts)
    decoded = source.tensors["m.q.weight"].stored.decode(source.planes("m.q.weight"), (8, 64), "f32")
    assert np.array_equal(decoded, reference(GPTQ_SAID, parts | {"g_idx": index}))


def test_modules_that_dynamic_leaves_out_or_says_again_are_no_contradiction(tmp_path):
    said = GPTQ_SAID | {"dynamic": {r"-:.*lm_head.*": {}, r".*\.q": {"bits": 4}}}
    assert one_module(tmp_path / "hf", said, packed(said, 8, 32)).planes("m.q.weight")


def streams(words: np.ndarray, bits: int) -> np.ndarray:
    """Codes [rows, n] of rows of words, by Python's own integers."""
    rows = [sum(int(word) << (32 * place) for place, word in enumerate(row)) for row in words.view(np.uint32)]
    count = words.shape[1] * 32 // bits
    return np.array([[(row >> (bits * place)) & ((1 << bits) - 1) for place in range(count)] for row in rows])


WIDE = [(bits, form, sym) for bits in (2, 3, 8) for form in ("gptq", "gptq_v2") for sym in (False, True)]


@pytest.mark.parametrize(("bits", "form", "sym"), WIDE)
def test_codes_of_other_widths(bits, form, sym, tmp_path):
    random, rows, columns = np.random.RandomState(bits), 32, 64
    qweight = random.randint(-(2**31), 2**31, (columns * bits // 32, rows)).astype(np.int32)
    zeros = random.randint(0, (1 << bits) - 1, (2, rows))  # the largest is another in each of the formats
    if sym:
        zeros[:] = (1 << (bits - 1)) - (form == "gptq")
    packed_zeros = [sum(int(zero) << (bits * place) for place, zero in enumerate(row)) for row in zeros]
    qzeros = np.array([[row >> (32 * i) & 0xFFFFFFFF for i in range(rows * bits // 32)] for row in packed_zeros])
    scales = (random.rand(2, rows) / 64).astype(np.float16)
    said = GPTQ_SAID | {"bits": bits, "checkpoint_format": form, "sym": sym}
    parts = {"qweight": qweight, "qzeros": qzeros.astype(np.uint32).view(np.int32), "scales": scales,
             "g_idx": np.arange(columns, dtype=np.int32) // 32}  # fmt: skip
    source = one_module(tmp_path / "hf", said, parts)
    tensor, planes = source.tensors["m.q.weight"], source.planes("m.q.weight")
    assert tensor.stored.text.startswith(f"int-group,bits={bits},group=32")
    codes = streams(np.ascontiguousarray(qweight.T), bits)
    zero = np.repeat((zeros + (form == "gptq")).T, 32, axis=1)
    expected = (codes - zero).astype(np.float32) * np.repeat(scales.astype(np.float32).T, 32, axis=1)
    assert np.array_equal(tensor.stored.decode(planes, tensor.shape, "bf16"), expected)
    assert not list(tensor.stored.bad_codes(planes, tensor.shape))


@pytest.mark.parametrize(("layout", "form"), [("auto_round:auto_gptq", "gptq"), ("auto_round", "gptq_v2")])
def test_what_autoround_writes(layout, form, tmp_path):
    parts = packed(GPTQ_SAID, 16, 64)
    said = {"quant_method": "auto-round", "packing_format": layout, "bits": 4, "group_size": 32, "sym": False}
    found = one_module(tmp_path / "a", said, parts)
    plain = one_module(tmp_path / "b", GPTQ_SAID | {"checkpoint_format": form}, parts)
    assert found.kind == "gptq"
    for role, plane in plain.planes("m.q.weight").items():
        assert np.array_equal(found.planes("m.q.weight")[role], plane)
    with pytest.raises(SourceError, match=r"'auto-round', which is not read: its packing_format is neither"):
        one_module(tmp_path / "c", said | {"packing_format": "auto_round:nv_fp"}, parts)
