"""What is computed between products, against torch's and transformers' own code."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from aibit_format.torch.kernels import operators

pytestmark = pytest.mark.skipif(not operators.COMPILED, reason="the compiled code is not here")
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
FEW = st.integers(1, 4)
calm = settings(max_examples=60, deadline=None)
STEPS = {torch.float32: 2.0**-21, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def random(seed, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@calm
@given(DTYPES, FEW, st.sampled_from([1, 7, 8, 64, 77, 576]), st.booleans(), st.sampled_from([0.0, 1.0]), st.booleans(),
       st.integers(0, 99))  # fmt: skip
def test_norms_are_those_of_models(dtype, rows, columns, has_weight, offset, rounds, seed):
    x, weight = random(seed, 2, rows, columns, dtype=dtype), random(seed + 1, columns, dtype=dtype)
    found = operators.rms_norm(x, weight if has_weight else None, 1e-5, offset, rounds)
    wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
    if rounds:
        wide = wide.to(dtype).float()
    expected = (wide * (offset + weight.float()) if has_weight else wide).to(dtype)
    torch.testing.assert_close(found, expected, rtol=2 * STEPS[dtype], atol=1e-30)
    assert found.shape == x.shape and found.dtype == dtype


def test_norms_in_16_bits_are_equal_to_the_bit():
    x, weight = random(0, 50, 576, dtype=torch.bfloat16), random(1, 576, dtype=torch.bfloat16)
    wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
    assert torch.equal(operators.rms_norm(x, weight, 1e-5), weight * wide.to(torch.bfloat16))


def half_rotated(x):
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


@calm
@given(DTYPES, FEW, FEW, FEW, st.sampled_from([(16, 16), (64, 64), (80, 32), (8, 0), (24, 16)]), st.integers(0, 3),
       st.booleans(), st.integers(0, 99))  # fmt: skip
def test_rotary_embeddings_are_equal_to_the_bit(dtype, batch, positions, heads, sizes, first, shared, seed):
    size, turned = sizes
    x = random(seed, batch, positions, heads, size, dtype=dtype)
    angles = [random(seed + i, 1 if shared else batch, positions, turned, dtype=dtype) for i in (1, 2)]
    out = torch.full((batch, heads, first + positions + 2, size), 7.0, dtype=dtype)
    operators.rotary(x, *(angles if turned else (None, None)), out, first)
    moved = x.transpose(1, 2)
    part = moved[..., :turned]
    cosines, sines = (each[:, None] for each in angles)
    expected = torch.cat((part * cosines + half_rotated(part) * sines, moved[..., turned:]), -1)
    assert torch.equal(out[:, :, first : first + positions], expected)
    assert (out[:, :, :first] == 7).all() and (out[:, :, first + positions :] == 7).all()


@calm
@given(DTYPES, FEW, FEW, FEW, st.integers(1, 6), st.integers(0, 40), st.integers(0, 3), st.sampled_from([8, 24, 64]),
       st.sampled_from([8, 16, 40]), st.sampled_from([0.0, 20.0]), st.sampled_from([0, 1, 5]), st.integers(0, 99),
       )  # fmt: skip
def test_attention_is_that_of_float64(
    dtype, batch, heads, group, queries, before, after, size, value_size, cap, window, seed
):
    keys = before + queries
    capacity = keys + after
    query = random(seed, batch, heads * group, queries, size, dtype=dtype)
    key, value = (random(seed + i, batch, heads, capacity, n, dtype=dtype) for i, n in ((1, size), (2, value_size)))
    key[:, :, keys:] = value[:, :, keys:] = float("nan")  # what is not there yet
    assert operators.attends(query, key, value)
    found = operators.attend(query, key, value, 0.3, keys, cap, window)
    wide = [each[:, :, :keys].double().repeat_interleave(group, 1) for each in (key, value)]
    scores = query.double() @ wide[0].transpose(-1, -2) * 0.3
    scores = cap * torch.tanh(scores / cap) if cap else scores
    own, other = torch.arange(keys - queries, keys)[:, None], torch.arange(keys)
    seen = (other <= own) & (other > own - window if window else True)
    expected = (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ wide[1]).transpose(1, 2)
    assert found.shape == expected.shape and found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=STEPS[dtype], atol=4e-6)


def test_attention_does_not_depend_on_threads():
    query, key, value = (random(i, 1, heads, length, 64) for i, heads, length in ((0, 8, 1), (1, 4, 700), (2, 4, 700)))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(operators.attend(query, key, value, 0.1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_an_input_that_is_no_number_is_not_hidden():
    query, key, value = (random(i, 1, 2, 3, 16) for i in range(3))
    key[0, 1, 1, 3] = float("nan")
    found = operators.attend(query, key, value, 0.1)
    assert found[0, 0].isfinite().all() and found[0, 1, 1].isnan().all()  # of one head, from the second query on
    assert operators.gated("silu", torch.tensor([float("nan"), 1.0])).isnan().tolist() == [True, False]
    assert operators.rms_norm(torch.tensor([[float("nan"), 1.0]]), None, 1e-5).isnan().all()


OWN = {"silu": functional.silu, "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"), "relu": torch.relu}


@calm
@given(DTYPES, st.sampled_from(operators.ACTIVATIONS), st.sampled_from([0, 1, 7, 8, 9, 1000]), st.booleans(),
       st.floats(0.01, 60), st.integers(0, 99))  # fmt: skip
def test_gates_are_those_of_torch(dtype, activation, count, has_up, width, seed):
    gate, up = (random(seed + i, count, dtype=dtype) * width for i in range(2))
    found = operators.gated(activation, gate, up if has_up else None)
    expected = OWN[activation](gate) * (up if has_up else 1)
    bound = 2 * STEPS[dtype]
    torch.testing.assert_close(found, expected, rtol=bound, atol=width * bound * (width if has_up else 1) / 8)


def test_what_is_computed_elsewhere():
    x = random(0, 1, 2, 1, 16)
    assert operators.computes(x) and not operators.computes(x, x.double()) and not operators.computes(x.to("meta"))
    assert not operators.computes(x.clone().requires_grad_())
    key = random(1, 1, 2, 5, 16)
    assert operators.attends(x, key, key)
    assert not operators.attends(x, key.transpose(2, 3), key) and not operators.attends(x, key[..., :12], key)
    assert not operators.attends(random(0, 1, 3, 1, 16), key, key)
    assert not operators.attends(random(0, 1, 2, 6, 16), key, key)
