"""Products of packed weights: every format against the schemes' numpy code, for every kind of processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.dlpack import to_dlpack

from aibit_format import native, schemes
from aibit_format.interop import to_torch
from aibit_format.schemes.ggml import GGML, LAYOUTS
from aibit_format.schemes.int_group import IntGroup
from aibit_format.torch.kernels import functional, packed
from aibit_format.torch.kernels.functional import Weight
from aibit_format.torch.layers.dequantized import QuantizedLinear

needs_native = pytest.mark.skipif(not packed.COMPILED, reason="the compiled code is not here")

BLOCKS = [f"gguf:{name}" for name in sorted(packed._BLOCKS)]
GROUPS = [(1, 16), (2, 32), (3, 48), (4, 64), (5, 256), (6, 512), (8, "row")]
EXACT = [
    "int4-group,symmetric=1", "int4-group,group=16,symmetric=1", "int4-group,group=row,symmetric=1",
    *(f"int-group,bits={bits},group={group}" for bits, group in GROUPS),
    "mxfp4", "mxfp8", "mxfp8,element=f8_e5m2", "nvfp4", "nvfp4,reciprocal=1", "fp8-e4m3", "fp8-e4m3,group=tensor",
    "fp8-block", "fp8-block,rows=16,columns=32,scale=f8_e8m0", "fp8-block,rows=1,columns=all,scale=bf16",
    "fp8-block,rows=all,columns=all,scale=f16", "ternary", "int8-absmax,group=64", "int8-absmax,group=tensor",
    *(f"cluster,bits={bits}" for bits in range(2, 9)),
]  # fmt: skip
WITH_ZEROS = [
    "int4-group", "int4-group,group=16", "int8-zp", "int8-zp,group=48", "int8-zp,group=tensor",
    *(f"int-group,bits={bits},zero={zero},scale={scale},group={group}"
      for bits, group in GROUPS
      for zero, scale in (("code", "f16"), ("float", "bf16"), ("bias", "f32"))),
]  # fmt: skip
LEVELS = {"float32": np.inf, "int16": 32767, "int8": 127}


def blocks(scheme: GGML, rows: int, columns: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Make blocks of any codes whose scales are finite."""
    layout = LAYOUTS[scheme.name]
    found = random.integers(0, 256, (rows * columns // layout.block, layout.size)).astype(np.uint8)
    start = 0
    for field, size in layout.fields.items():
        if field in ("d", "dmin", "m") and size == 2:
            found[:, start : start + 2] = random.normal(size=(len(found), 1)).astype("<f2").view(np.uint8)
        elif field in layout.scales:
            found[:, start : start + size] = random.integers(0, 0x7F, (len(found), size))
        start += size
    return {"blocks": found.reshape(rows, -1)}


def made(text: str, rows: int, columns: int, random: np.random.Generator) -> tuple[Weight, np.ndarray]:
    """Return a random weight and its values by the numpy code."""
    scheme = schemes.parse(text)
    if isinstance(scheme, GGML):
        columns = max(1, columns // 64) * LAYOUTS[text].block
        planes = blocks(scheme, rows, columns, random)
    else:
        planes = scheme.encode(random.normal(size=(rows, columns)).astype(np.float32), "f32")
    specs = scheme.planes((rows, columns), "f32")
    tensors = {spec.role: to_torch(moved(planes[spec.role], random), spec.dtype) for spec in specs}
    return Weight(scheme, tensors, (rows, columns), "f32"), scheme.decode(planes, (rows, columns), "f32")


def moved(plane: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a copy at an address of no alignment but its elements', which torch wants."""
    memory = np.empty(plane.nbytes + 64, np.uint8)
    start = int(random.integers(0, 8)) * plane.itemsize
    memory[start : start + plane.nbytes] = plane.reshape(-1).view(np.uint8)
    return memory[start : start + plane.nbytes].view(plane.dtype).reshape(plane.shape)


def weight_of(weight: Weight) -> object:
    found = packed.format_of(weight.scheme)
    assert found is not None
    return found.weight(weight.planes, weight.shape).kept


def multiply(
    x: np.ndarray, weight: Weight, bias: np.ndarray | None, out: np.ndarray, activations: str, target: str,
    dtype: str = "f32",
) -> None:  # fmt: skip
    native.packed_product((weight_of(weight),), len(x), x, dtype, (bias,), "f32", (out,), activations, target)


def allowed(x: np.ndarray, values: np.ndarray, weight: Weight, activations: str) -> np.ndarray:
    """Return how far a product may be from that in float64: what is stated, and float32's roundings of its terms."""
    x, values = np.abs(x.astype(np.float64)), np.abs(values.astype(np.float64))
    reach = values.max(initial=0)
    if isinstance(weight.scheme, IntGroup):  # codes and zero points may cancel
        reach = max(reach, float(weight.planes["scale"].float().abs().max()) * 2**weight.scheme.bits)
    bound = 2.0**-18 * np.outer(x.sum(1), np.full(len(values), reach))
    step = 32 if activations == "int8" else 256
    for start in range(0, x.shape[1], step):
        part = slice(start, start + step)
        bound += np.outer(x[:, part].max(1), values[:, part].sum(1)) / LEVELS[activations] * 0.501
    return bound + 1e-37


@needs_native
@pytest.mark.parametrize("text", BLOCKS + EXACT + WITH_ZEROS)
@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([1, 15, 16, 31, 32, 33, 100, 250, 256, 257, 600]), st.sampled_from([1, 1, 2, 3, 8, 11, 17]),
    st.sampled_from([1, 3, 40]), st.sampled_from([*LEVELS]), st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_products_are_those_of_the_values(text, columns, count, rows, activations, with_bias, seed):
    random = np.random.default_rng(seed)
    weight, values = made(text, rows, columns, random)
    x = random.normal(size=(count, weight.shape[1])).astype(np.float32)
    bias = random.normal(size=rows).astype(np.float32) if with_bias else None
    exact = x.astype(np.float64) @ values.astype(np.float64).T + (0 if bias is None else bias)
    bound = allowed(x, values, weight, activations) + 2.0**-22 * np.abs(exact)
    for target in native.packed_targets():
        out = np.full((count, rows), np.nan, np.float32)
        multiply(x, weight, bias, out, activations, target)
        assert (np.abs(out - exact) <= bound).all(), target


@needs_native
@pytest.mark.parametrize("text", BLOCKS + EXACT + WITH_ZEROS)
def test_decoded_rows_are_those_of_numpy(text):
    random = np.random.default_rng(1)
    for rows, columns in ((1, 1), (5, 33), (19, 256), (3, 600)):
        weight, values = made(text, rows, columns, random)
        part = range(rows // 3, rows)
        for target in native.packed_targets():
            out = np.full((len(part), weight.shape[1]), np.nan, np.float32)
            native.packed_values(weight_of(weight), part, "f32", out, target)
            if text in WITH_ZEROS:
                np.testing.assert_allclose(out, values[part.start :], rtol=0, atol=np.abs(values).max() * 2.0**-20)
            else:
                assert np.array_equal(out, values[part.start :]), target


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", ["gguf:q4_1", "int4-group", "mxfp8"])
def test_results_of_16_bits_are_rounded_to_nearest(text, dtype):
    random = np.random.default_rng(2)
    weight, values = made(text, 40, 512, random)
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)
    name = "bf16" if dtype == torch.bfloat16 else "f16"
    bits, wide = x.view(torch.uint16).numpy(), np.empty((3, 40), np.float32)
    for target in native.packed_targets():
        short, decoded = np.empty((3, 40), np.uint16), np.empty((40, weight.shape[1]), np.uint16)
        multiply(bits, weight, None, short, "float32", target, name)
        multiply(x.float().numpy(), weight, None, wide, "float32", target)
        assert torch.equal(torch.from_numpy(short).view(dtype), torch.from_numpy(wide).to(dtype))
        native.packed_values(weight_of(weight), range(40), name, decoded, target)
        given = torch.from_numpy(decoded).view(dtype).float()
        torch.testing.assert_close(given, torch.from_numpy(values).to(dtype).float(), rtol=2.0**-7, atol=1e-6)


@needs_native
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activations", [*LEVELS])
def test_an_input_that_is_not_finite_leaves_nothing_finite(activations, bad):
    weight, _ = made("gguf:q4_0", 5, 640, np.random.default_rng(3))
    x = np.ones((2, weight.shape[1]), np.float32)
    x[1, 300] = bad
    for target in native.packed_targets():
        out = np.empty((2, 5), np.float32)
        multiply(x, weight, None, out, activations, target)
        assert np.isfinite(out[0]).all() and not np.isfinite(out[1]).all()


@needs_native
@pytest.mark.parametrize("text", ["gguf:q6_k", "int4-group", "nvfp4", "cluster,bits=3"])
def test_targets_agree(text):
    random = np.random.default_rng(4)
    weight, _ = made(text, 33, 700, random)
    x = random.normal(size=(9, weight.shape[1])).astype(np.float32)
    for activations in LEVELS:
        found = []
        for target in native.packed_targets():
            found.append(np.empty((9, 33), np.float32))
            multiply(x, weight, None, found[-1], activations, target)
        for each in found[1:]:  # the order of sums is the same; some processors round products on their own
            np.testing.assert_allclose(each, found[0], rtol=0, atol=float(np.abs(found[0]).max()) * 2.0**-18)


@needs_native
def test_what_does_not_fit_is_refused():
    weight, _ = made("int4-group", 4, 64, np.random.default_rng(5))
    found = packed.format_of(weight.scheme)
    assert found is not None
    parts = found.parts(weight.planes, 4)
    x, out = np.zeros((1, 64), np.float32), np.zeros((1, 4), np.float32)

    def product(kept=None, rows=1, x=x, out=out, **others):
        weight = kept or native.packed_weight(4, 64, *parts)
        native.packed_product((weight,), rows, x, "f32", (None,), "f32", (out,), **others)

    product()
    for place, value in ((0, "q9_9"), (6, 24), (6, -16), (7, 0), (8, "i64"), (12, -1), (12, 300), (1, parts[1][1:])):
        with pytest.raises((ValueError, TypeError)):
            native.packed_weight(4, 64, *parts[:place], value, *parts[place + 1 :])
    for rows, columns in ((3, 64), (4, 32), (-4, 64), (4, -64), (2**40, 2**40)):
        with pytest.raises((ValueError, OverflowError)):
            native.packed_weight(rows, columns, *parts)
    with pytest.raises(ValueError, match="no target none on this processor"):
        product(target="none")
    with pytest.raises(ValueError, match="no kind of activations: int4"):
        product(activations="int4")
    with pytest.raises(TypeError, match="which packed_weight has not returned"):
        product(kept=parts)
    for wrong in ({"rows": 2}, {"rows": -1}, {"x": x[:, :63]}, {"out": out[:, :3]}):
        with pytest.raises((ValueError, BufferError)):
            product(**wrong)
    with pytest.raises(ValueError, match="3 rows from 2 on, of 4"):
        native.packed_values(native.packed_weight(4, 64, *parts), range(2, 5), "f32", np.zeros((3, 64), np.float32))


@needs_native
@pytest.mark.parametrize("activations", [*LEVELS])
@pytest.mark.parametrize("texts", [("gguf:q4_k", "gguf:q6_k", "int4-group"), ("fp8-e4m3", "cluster,bits=4")])
def test_products_with_the_same_inputs_are_those_of_each_alone(texts, activations):
    random = np.random.default_rng(6)
    columns = {text: 128 if text.startswith("gguf:") else 512 for text in texts}  # of which GGML's blocks have four
    weights = [made(text, rows, columns[text], random)[0] for text, rows in zip(texts, (33, 1, 48), strict=False)]
    for count in (1, 2, 7, 17):
        x = random.normal(size=(count, 512)).astype(np.float32)
        alone = [np.empty((count, weight.shape[0]), np.float32) for weight in weights]
        biases = [random.normal(size=weights[0].shape[0]).astype(np.float32), *[None] * (len(weights) - 1)]
        for weight, bias, out in zip(weights, biases, alone, strict=True):
            multiply(x, weight, bias, out, activations, native.packed_targets()[0])
        for threads in (1, 2):
            together = [np.full_like(out, np.nan) for out in alone]
            native.packed_product(
                tuple(weight_of(weight) for weight in weights), count, x, "f32", tuple(biases), "f32", tuple(together),
                activations, threads=threads, parallel=packed.parallel(),
            )  # fmt: skip
            assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@needs_native
def test_weights_that_cannot_be_multiplied_together_are_refused():
    random, out = np.random.default_rng(7), np.zeros((1, 4), np.float32)
    codes, narrow = (weight_of(made("int4-group", 4, columns, random)[0]) for columns in (64, 32))
    floats, x = weight_of(made("fp8-e4m3", 4, 64, random)[0]), np.zeros((1, 64), np.float32)
    for weights in ((codes, narrow), (codes, floats), (), (codes,) * 9, (codes,)):
        with pytest.raises(ValueError, match=r"together|1 to 8 of each"):
            count = 2 if len(weights) == 1 else len(weights)
            native.packed_product(weights, 1, x, "f32", (None,) * count, "f32", (out,) * count)
    with pytest.raises(TypeError, match="must be tuple"):
        native.packed_product([codes], 1, x, "f32", (None,), "f32", (out,))


@needs_native
def test_tensors_are_taken_as_they_lie_in_memory():
    weight, values = made("gguf:q8_0", 16, 64, np.random.default_rng(9))
    kept, wide = weight_of(weight), torch.randn(2, 2 * weight.shape[1])
    out = torch.empty(2, 16)

    def product(x, out):
        native.packed_product((kept,), 2, to_dlpack(x), "f32", (None,), "f32", (to_dlpack(out),))

    part = wide[:, weight.shape[1] :]
    product(part.contiguous(), out)
    torch.testing.assert_close(out, part @ torch.from_numpy(values).T, rtol=1e-4, atol=1e-3)
    for x, result in ((part, out), (part.contiguous(), out.T.contiguous().T)):
        with pytest.raises(ValueError, match="a tensor that is not contiguous in the memory of a CPU"):
            product(x, result)
    for x, result in ((wide, out), (part.contiguous(), out[:1])):
        with pytest.raises(ValueError, match="bytes, where"):
            product(x, result)
    assert torch.equal(packed.product(weight.scheme).times(part, packed.PackedWeight(kept, weight.shape), None), out)


def test_schemes_without_a_format_have_no_product():
    for text in ("int4-group,ordered=1", "gguf:iq2_xs", "int-group,group=24"):
        assert packed.product(schemes.parse(text)) is None


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", ["gguf:q4_k", "int4-group", "fp8-block", "ternary"])
def test_layers_multiply_few_rows_and_many_and_pass_gradients(text, dtype):
    weight, values = made(text, 48, 512, np.random.default_rng(6))
    bias = torch.randn(48)
    layer = QuantizedLinear(weight.scheme, weight.planes, weight.shape, "f32", bias)
    expected = torch.from_numpy(values)
    rtol = 1e-4 if dtype == torch.float32 else 2e-2
    for rows in (1, 16, 17, 40):
        x = torch.randn(2, rows, weight.shape[1], generator=torch.Generator().manual_seed(rows)).to(dtype)[:1]
        found = layer(x)
        assert found.dtype == dtype and found.shape == (1, rows, 48)
        wanted = x.float() @ expected.T + bias
        torch.testing.assert_close(found.float(), wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))
    x = torch.ones(3, weight.shape[1], requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, expected.sum(0).expand(3, -1), rtol=1e-4, atol=1e-3)
    assert not functional.uses_codes(layer._product, x, None)


@needs_native
def test_a_layer_multiplies_with_the_planes_that_it_has_now():
    weight, _ = made("gguf:q8_0", 16, 64, np.random.default_rng(7))
    layer = QuantizedLinear(weight.scheme, weight.planes, weight.shape, "f32")
    x = torch.ones(1, weight.shape[1])
    before = layer(x)
    other, others = made("gguf:q8_0", 16, 64, np.random.default_rng(8))
    layer.blocks = other.planes["blocks"]
    torch.testing.assert_close(layer(x)[0], torch.from_numpy(others).sum(1), rtol=1e-4, atol=1e-4)
    assert not torch.equal(layer(x), before)
    layer.activations = "int8"
    torch.testing.assert_close(layer(x)[0], torch.from_numpy(others).sum(1), rtol=1e-2, atol=0.5)
