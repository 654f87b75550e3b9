"""NF4 and FP4, against bitsandbytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bitsandbytes import functional as F  # noqa: N812

from aibit_format import interop, schemes
from aibit_format.convert import encoders
from aibit_format.errors import SchemeError
from aibit_format.schemes import fourbit
from tests.support.four_bit import DTYPES


def weights(kind: str, dtype: str, shape) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    x = {"tiny": x * 1e-6, "huge": x * 1e4, "subnormal": x * 1e-39, "ties": (x * 4).round() / 4}.get(kind, x)
    if kind == "zeros":
        x[::3] = 0
        x[: len(x) // 2] = 0
    return x.clamp(-6e4, 6e4).to(DTYPES[dtype])


def test_codebooks_are_those_of_bitsandbytes():
    for name in ("nf4", "fp4"):
        assert np.array_equal(fourbit.CODEBOOKS[name].values, F.get_4bit_type(name, "cpu").numpy())
    assert np.array_equal(fourbit.dynamic_map(), F.create_dynamic_map().numpy())


@pytest.mark.usefixtures("encoders")
@pytest.mark.parametrize("shape", [(64, 64), (7, 33), (1, 1), (300, 192), (5, 5000), (1000, 129), (70000, 3)])
@pytest.mark.parametrize("kind", ["random", "tiny", "huge", "zeros", "ties", "subnormal"])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_codes_and_scales_equal_bitsandbytes_bit_for_bit(name, kind, shape):
    for dtype, block_size in (("f16", 64), ("bf16", 128), ("f32", 32), ("f32", 4096)):
        x = weights(kind, dtype, shape)
        codes, state = F.quantize_4bit(x, blocksize=block_size, compress_statistics=False, quant_type=name)
        scheme, array = schemes.make(name, 1, (block_size, 0)), interop.to_numpy(x)[0]
        for planes in (scheme.encode(array, dtype), encoders.encode(scheme, array, dtype)):
            assert np.array_equal(planes["codes"], codes.numpy().ravel())
            assert np.array_equal(planes["absmax"], state.absmax.numpy())


@pytest.mark.parametrize("shape", [(64, 64), (7, 33), (300, 192), (1000, 129), (1, 1)])
@pytest.mark.parametrize("kind", ["random", "tiny", "zeros", "ties", "subnormal"])
def test_nested_scales_equal_bitsandbytes_given_the_offset(kind, shape):
    x = weights(kind, "f32", shape)
    planes = schemes.make("nf4", 1, (64, 1)).encode(x.numpy(), "f32")
    _, state = F.quantize_4bit(x, compress_statistics=False, quant_type="nf4")
    offset = planes["nested_offset"][0]
    assert offset == np.float32(state.absmax.numpy().astype(np.float64).sum() / state.absmax.numel())
    assert offset == pytest.approx(float(state.absmax.mean()), rel=1e-6)  # torch adds in float32, in its own order
    codes, nested = F.quantize_blockwise(state.absmax - torch.tensor(offset), blocksize=256)
    assert np.array_equal(planes["absmax"], codes.numpy())
    assert np.array_equal(planes["nested_absmax"], nested.absmax.numpy())


@pytest.mark.usefixtures("encoders")
@pytest.mark.parametrize("nested", [0, 1])
@pytest.mark.parametrize(("columns", "block_size"), [(128, 64), (33, 64), (256, 256)])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_decoded_values_equal_bitsandbytes(name, columns, block_size, nested):
    x = weights("random", "f32", (50, columns))
    scheme = schemes.make(name, 1, (block_size, nested))
    planes = scheme.encode(x.numpy(), "f32")
    codes, state = F.quantize_4bit(x, blocksize=block_size, compress_statistics=bool(nested), quant_type=name)
    if nested:
        state.offset = torch.tensor(planes["nested_offset"][0])
        state.absmax, state.state2.absmax = map(torch.from_numpy, (planes["absmax"], planes["nested_absmax"]))
    decoded = scheme.decode(planes, x.shape, "f32")
    assert np.array_equal(decoded, F.dequantize_4bit(codes, state).numpy())
    widest = np.diff(np.sort(scheme_values(name))).max() / 2
    absmax = scheme.absmax(planes, slice(None)).max() if not nested else np.abs(x.numpy()).max() * 1.1
    assert np.abs(decoded - x.numpy()).max() <= absmax * widest * 1.001 + (0.1 if nested else 0)


def scheme_values(name):
    return fourbit.CODEBOOKS[name].values


@pytest.mark.usefixtures("encoders")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("text", ["nf4", "fp4", "nf4,nested=1", "nf4-cpu"])
def test_values_that_are_not_finite_are_refused(text, bad):
    x = np.ones((64, 64), np.float32)
    x[17, 3] = bad
    for encode in (encoders.encode, lambda s, a, d: s.encode(a, d)):
        with pytest.raises(SchemeError, match="not finite"):
            encode(schemes.parse(text), x, "f32")


@pytest.mark.parametrize("parameters", [(0, 0), (48, 0), (8192, 0), (64, 2), (1 << 31, 0)])
def test_parameters_outside_the_list_are_refused(parameters):
    for name in ("nf4", "fp4", "nf4-cpu"):
        with pytest.raises(SchemeError) as caught:
            schemes.make(name, 1, parameters)
        assert caught.value.code == "AIB-E407"
