"""Floats with scales of blocks: fp8-block, mxfp4, mxfp8, nvfp4, against the libraries such weights come from."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format import schemes
from aibit_format.dtypes import DTYPES, to_float32
from aibit_format.errors import SchemeError
from aibit_format.interop import to_torch
from aibit_format.schemes.base import bad_tails
from tests.support.random_planes import random_planes

FP8 = [
    "fp8-block", "fp8-block,scale=f8_e8m0", "fp8-block,rows=4,columns=8,scale=bf16", "fp8-block,rows=8,scale=f16",
    "fp8-block,rows=1,columns=all,scale=bf16", "fp8-block,rows=all,columns=all", "fp8-block,rows=1,columns=16",
]  # fmt: skip
MX = ["mxfp4", "mxfp8", "mxfp8,element=f8_e5m2"]
NV = ["nvfp4", "nvfp4,reciprocal=1"]
ALL = [*FP8, *MX, *NV]
SHAPES = [(37, 130), (3, 20, 65), (128, 128), (2, 3, 5, 33)]
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def same(found, expected):
    """Equal, bit for bit: signs of zeros count."""
    return np.array_equal(*(np.atleast_1d(each).copy().view(np.uint32) for each in (found, expected)))


def tensors(scheme, planes, shape):
    return {spec.role: to_torch(planes[spec.role], spec.dtype) for spec in scheme.planes(shape, "f32")}


def nibbles(packed):
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


# Decoding.


@pytest.mark.parametrize("text", FP8)
def test_fp8_blocks_decode_as_transformers_does(text):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    scheme, shape = schemes.parse(text), (3, 256, 384)
    planes = random_planes(scheme, shape)
    parts = tensors(scheme, planes, shape)
    expected = Fp8Dequantize(None)._dequantize_one(parts["codes"], parts["scale"], torch.float32)
    found = scheme.decode(planes, shape, "f32")
    real = ~np.isnan(found)
    assert same(found[real], expected.numpy()[real]) and np.isnan(expected.numpy()[~real]).all()


def test_fp4_experts_of_transformers_are_mxfp4():
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    scheme, shape = schemes.make("mxfp4"), (2, 8, 128)
    planes = random_planes(scheme, shape)
    expected = Fp8Dequantize(None)._dequantize_one(
        torch.from_numpy(planes["codes"].view(np.int8)), torch.from_numpy(planes["scale"]), torch.float32
    )
    assert same(scheme.decode(planes, shape, "f32"), expected.numpy())


def test_mxfp4_decodes_as_gpt_oss_does():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    scheme, shape = schemes.make("mxfp4"), (3, 12, 96)
    planes = random_planes(scheme, shape)
    # torch.ldexp raises 2 to the exponent in float32, where 2^-127 is not zero; scales above are those of checkpoints.
    blocks = torch.from_numpy(planes["codes"].reshape(3, 12, 3, 16))
    found = convert_moe_packed_tensors(blocks, torch.from_numpy(planes["scale"]), dtype=torch.float32)
    assert same(scheme.decode(planes, shape, "f32"), found.transpose(1, 2).contiguous().numpy())


@pytest.mark.parametrize("text", MX)
def test_microscaled_floats_decode_as_torchao_does(text):
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    scheme, shape = schemes.parse(text), (12, 96)
    planes = random_planes(scheme, shape)
    parts = tensors(scheme, planes, shape)
    element = torch.float4_e2m1fn_x2 if text == "mxfp4" else parts["codes"].dtype
    expected = mx.to_dtype(parts["codes"], parts["scale"], element, 32, torch.float32)
    assert same(scheme.decode(planes, shape, "f32"), expected.numpy())


def test_nvfp4_decodes_as_torchao_does():
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    scheme, shape = schemes.make("nvfp4"), (12, 96)
    planes = random_planes(scheme, shape) | {"global_scale": np.array([0.00123], np.float32)}
    parts = tensors(scheme, planes, shape)
    tensor = nv.NVFP4Tensor(
        parts["codes"], parts["scale"], 16, torch.float32, per_tensor_scale=parts["global_scale"][0]
    )
    assert same(scheme.decode(planes, shape, "f32"), tensor.dequantize().numpy())


@pytest.mark.parametrize("overall", [1.0, 3.3e-39, 1234.5, 2.0**-149, 3.7e35])
def test_nvfp4_rounds_its_two_scales_first(overall):
    """modelopt multiplies by scale * global_scale, compressed-tensors by scale / global_scale, both float32."""
    shape = (8, 64)
    for text in NV:
        scheme = schemes.parse(text)
        planes = random_planes(scheme, shape) | {"global_scale": np.array([overall], np.float32)}
        scale = to_torch(planes["scale"], "f8_e4m3").float()
        scale = scale / torch.tensor(overall) if scheme.reciprocal else scale * torch.tensor(overall)
        expected = E2M1[nibbles(torch.from_numpy(planes["codes"])).long()] * scale.repeat_interleave(16, 1)
        if not list(scheme.bad_values(planes)):
            assert same(scheme.decode(planes, shape, "f32"), expected.numpy())
        else:
            assert not scale.isfinite().all()


ARGUMENTS = {
    "fp8-block,rows=4,columns=8,scale=bf16": {"num_bits": 8, "strategy": "block", "block_structure": [4, 8]},
    "fp8-block,rows=1,columns=all": {"num_bits": 8, "strategy": "channel"},
    "fp8-block,rows=all,columns=all": {"num_bits": 8, "strategy": "tensor"},
    "mxfp4": {"num_bits": 4, "strategy": "group", "group_size": 32},
    "mxfp8": {"num_bits": 8, "strategy": "group", "group_size": 32},
    "nvfp4,reciprocal=1": {"num_bits": 4, "strategy": "tensor_group", "group_size": 16},
}


@pytest.mark.parametrize("text", ARGUMENTS)
def test_values_are_those_of_compressed_tensors(text):
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    scheme, shape = schemes.parse(text), (32, 64)
    arguments = quantization.QuantizationArgs(type="float", symmetric=True, **ARGUMENTS[text])
    planes = random_planes(scheme, shape)
    if "global_scale" in planes:
        planes["global_scale"] = np.array([777.7], np.float32)
    parts = tensors(scheme, planes, shape)
    codes = parts["codes"]
    values = codes.float() if codes.is_floating_point() else E2M1[nibbles(codes).long()]
    overall = parts.get("global_scale")
    expected = dequantize(values, parts["scale"].float(), None, arguments, torch.float32, overall)
    assert same(scheme.decode(planes, shape, "f32"), expected.numpy())


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("shape", SHAPES)
def test_elements_are_where_the_page_says(text, shape):
    """One element at a time: its code, its block, and the product."""
    scheme = schemes.parse(text)
    planes = random_planes(scheme, shape) | (
        {"global_scale": np.ones((*shape[:-2], 1), np.float32)} if text in NV else {}
    )
    specs = {spec.role: spec for spec in scheme.planes(shape, "f32")}
    rows, columns = (size or whole for size, whole in zip(scheme.block, shape[-2:], strict=True))
    found = scheme.decode(planes, shape, "f32")
    rng = np.random.default_rng(1)
    for _ in range(200):
        *outer, n, k = (int(rng.integers(size)) for size in shape)
        row = planes["codes"][(*outer, n)]
        code = row[k] if DTYPES[scheme.codes].bits == 8 else row[k // 2] >> 4 * (k % 2) & 15
        code = to_float32(np.array([code], np.uint8), scheme.codes)
        scale = planes["scale"][(*outer, n // rows, k // columns)]
        with np.errstate(over="ignore"):
            value = code * to_float32(np.array([scale]), specs["scale"].dtype)
        assert same(found[(*outer, n, k)], value[0]) or np.isnan(value[0])


# Encoding.


def weights(shape, seed=0, scale=0.02):
    x = (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
    x[..., 0, :7] = 0
    return x


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_encoded_planes_are_near_and_break_no_rule(text, dtype):
    from aibit_format.dtypes import from_float32

    scheme = schemes.parse(text)
    for shape in (*SHAPES, (1, 1), (2, 0), (0, 5), (2, 0, 5), (0, 3, 5), (3, 2, 0)):
        x = weights(shape) if np.prod(shape) > 9 else np.full(shape, 0.1, np.float32)
        source = from_float32(x, dtype)
        planes = scheme.encode(source, dtype)
        specs = scheme.planes(shape, dtype)
        assert [(role, plane.shape, plane.dtype) for role, plane in planes.items()] == [
            (spec.role, spec.stored, DTYPES[spec.dtype].numpy) for spec in specs
        ]
        problems = (scheme.bad_values(planes), scheme.bad_codes(planes, shape), scheme.other_forms(planes, shape))
        assert not [problem for found in (*problems, bad_tails(specs, planes)) for problem in found]
        found = scheme.decode(planes, shape, dtype)
        true = to_float32(source, dtype)
        limit = {"f8_e4m3": 0.04, "f8_e5m2": 0.07, "f4_e2m1": 0.14}[scheme.codes]
        assert np.linalg.norm(found - true) <= limit * np.linalg.norm(true)
        assert (found[true == 0] == 0).all()


@pytest.mark.parametrize("text", ["fp8-block,rows=4,columns=8,scale=bf16", "mxfp4", "mxfp8", "nvfp4,reciprocal=1"])
def test_codes_are_those_of_compressed_tensors(text):
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme, x = schemes.parse(text), weights((32, 64))
    x[:, 0] = 0.01  # no block of zeros, whose scale is another there
    more = {"scale_dtype": torch.uint8} if text in MX else {}
    arguments = quantization.QuantizationArgs(type="float", symmetric=True, **ARGUMENTS[text], **more)
    rows, columns = scheme.block
    blocks = torch.from_numpy(x).view(32 // rows, rows, 64 // columns, columns)
    planes = scheme.encode(x, "f32")
    overall = to_torch(planes["global_scale"], "f32") if "global_scale" in planes else None
    if overall is not None:
        assert overall.item() == np.float32(6 * 448) / np.abs(x).max()
        arguments.scale_dtype = torch.float8_e4m3fn
    kind = torch.bfloat16 if "bf16" in text else torch.float32
    scale, _ = calculate_qparams(blocks.amin((1, 3)), blocks.amax((1, 3)), arguments, overall)
    scale = scale.to(kind)
    parts = tensors(scheme, planes, x.shape)
    assert torch.equal(parts["scale"].float(), scale.float())
    codes = quantize(torch.from_numpy(x), scale.float(), None, arguments, None, overall).float()
    stored = parts["codes"]
    values = stored.float() if stored.is_floating_point() else E2M1[nibbles(stored).long()]
    assert torch.equal(values, codes)


def test_scales_that_are_powers_of_two_are_those_of_transformers():
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    scheme, x = schemes.parse("fp8-block,scale=f8_e8m0"), weights((256, 384))
    config = SimpleNamespace(weight_block_size=(128, 128), scale_fmt="ue8m0")
    found = Fp8Quantize(SimpleNamespace(quantization_config=config))._quantize_one("w.weight", torch.from_numpy(x))
    planes = tensors(scheme, scheme.encode(x, "f32"), x.shape)
    assert torch.equal(planes["scale"].float(), found["w.weight_scale_inv"].float())
    assert torch.equal(planes["codes"].float(), found["w.weight"].float())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ALL), st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 70), st.integers(-160, 115))
def test_any_finite_values_are_encoded_to_finite_ones(text, seed, height, width, exponent):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((height, width)) * 2.0 ** rng.integers(-14, 3, (height, width))
    x = np.ldexp(x, exponent).astype(np.float32)
    scheme = schemes.parse(text)
    if "scale=f16" in text and np.abs(x).max() / 448 > 65500:
        with pytest.raises(SchemeError, match="too large"):
            scheme.encode(x, "f32")
        return
    planes = scheme.encode(x, "f32")
    found = scheme.decode(planes, x.shape, "f32")
    assert np.isfinite(found).all() and not list(scheme.bad_values(planes))
    assert not list(scheme.bad_codes(planes, x.shape)) and not list(scheme.other_forms(planes, x.shape))
    if exponent > -80 and "f16" not in text:
        assert np.abs(found - x).max() <= 0.26 * np.abs(x).max()


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**121])
def test_values_that_do_not_fit_are_refused(text, value):
    x = weights((4, 40))
    x[3, 39] = value
    with pytest.raises(SchemeError):
        schemes.parse(text).encode(x, "f32")


# Rules.


@pytest.mark.parametrize("text", ALL)
def test_bad_scales_and_codes_are_found(text):
    scheme, shape = schemes.parse(text), (16, 64)
    good = scheme.encode(weights(shape), "f32")
    kind = scheme.steps["scale"]
    bad = {"f32": [np.nan, np.inf, -1.0], "f16": [np.nan, np.inf, -1.0], "bf16": [0x7FC0, 0x7F80, 0x8000],
           "f8_e8m0": [0xFF], "f8_e4m3": [0x7F, 0xFF, 0x81, 0x80]}[kind]  # fmt: skip
    for value in bad:
        scale = good["scale"].copy()
        scale[-1, -1] = value
        assert next(role for role, _ in scheme.bad_values(good | {"scale": scale})) == "scale"
    for value in {"f8_e4m3": [0x7F, 0xFF], "f8_e5m2": [0x7C, 0xFC, 0x7D, 0xFF], "f4_e2m1": []}[scheme.codes]:
        codes = good["codes"].copy()
        codes[-1, -1] = value
        assert [role for role, _ in scheme.bad_codes(good | {"codes": codes}, shape)] == ["codes"]


@pytest.mark.parametrize("text", NV)
def test_bad_global_scales_are_found(text):
    scheme = schemes.parse(text)
    good = scheme.encode(weights((4, 64)), "f32")
    bad = [np.nan, np.inf, -1.0, -0.0, *([0.0, 2.0**-149] if scheme.reciprocal else [3e38])]
    for value in bad:
        found = list(scheme.bad_values(good | {"global_scale": np.array([value], np.float32)}))
        assert found and found[0][0] == "global_scale", value
    if not scheme.reciprocal:
        assert not list(scheme.bad_values(good | {"global_scale": np.zeros(1, np.float32)}))


@pytest.mark.parametrize("text", ALL)
def test_a_block_of_zeros_has_scale_1(text):
    scheme, shape = schemes.parse(text), (4, 64)
    planes = scheme.encode(np.zeros(shape, np.float32), "f32")
    assert (to_float32(planes["scale"], scheme.steps["scale"]) == 1).all()
    scale = planes["scale"].copy()
    scale.reshape(-1)[0] -= 1
    assert [role for role, _ in scheme.other_forms(planes | {"scale": scale}, shape)] == ["scale"]
