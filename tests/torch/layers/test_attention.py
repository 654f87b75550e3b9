"""Attention in float32: closer to the true one than in 16 bits, for every model that lets itself be told."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import aibit_format as aibit
from aibit_format.torch.kernels import operators, packed
from aibit_format.torch.layers import attention
from aibit_format.torch.layers.norms import RMSNorm
from tests.support import architectures

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True)
def _short_products_are_slow(monkeypatch):
    monkeypatch.setattr(attention, "fast_dtype", lambda dtype: torch.float32)


def masks(queries: int, keys: int) -> dict[str, torch.Tensor | None]:
    """None: causal where there are several queries."""
    allowed = torch.ones(2, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
    allowed[1, :, :, :2] = False
    allowed[1, :, :2, 0] = True  # no query without a key
    return {"none": None, "allowed": allowed, "added": torch.zeros(allowed.shape).masked_fill(~allowed, -1e4)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["none", "allowed", "added", "bias"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 40), (7, 7), (5, 40)])
@pytest.mark.parametrize("groups", [1, 4])
def test_it_is_closer_to_the_true_attention(groups, queries, keys, kind, dtype):
    if kind == "none" and 1 < queries < keys:
        pytest.skip("transformers always has a mask there")
    generator = torch.Generator().manual_seed(0)
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = groups, True
    sizes = [(2, 8, queries, 16), (2, 8 // groups, keys, 16), (2, 8 // groups, keys, 16)]
    given = [torch.randn(size, generator=generator).to(DTYPES[dtype]) for size in sizes]
    mask, options = masks(queries, keys).get(kind), {"scaling": 0.3}
    if kind == "added":
        mask = mask.to(DTYPES[dtype])
    bias = torch.randn(1, 8, queries, keys, generator=generator).to(DTYPES[dtype]) if kind == "bias" else None
    before = [each.clone() for each in given]
    found, weights = attention.attend(module, *given, attention_mask=mask, position_bias=bias, **options)
    plain, _ = sdpa_attention_forward(module, *given, mask, position_bias=bias, **options)
    wide = [None if x is None or x.dtype == torch.bool else x.double() for x in (mask, bias)]
    true, _ = sdpa_attention_forward(
        module,
        *(each.double() for each in given),
        wide[0] if kind == "added" else mask,
        position_bias=wide[1],
        **options,
    )
    assert found.dtype == DTYPES[dtype] and found.shape == plain.shape and weights is None
    assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))
    exact = true.to(DTYPES[dtype]).double()
    assert (found.double() - exact).abs().max() <= (plain.double() - exact).abs().max()
    assert (found.double() - true).abs().max() < 8e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama-untied", "gpt2", "qwen2", "mixtral", "bert", "opt", "t5"])
def test_models_that_attend_in_float32_give_nearly_what_they_gave(name, dtype, tmp_path):
    architectures.save(name, tmp_path / "hf", DTYPES[dtype])
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    usual, wide = (aibit.load_model(tmp_path / "m.aibit", weight_only=each) for each in (False, True))
    told = usual.config._attn_implementation == "sdpa"
    assert wide.config._attn_implementation == (attention.NAME if told else usual.config._attn_implementation)
    expected = architectures.output(usual, name).float()
    assert (architectures.output(wide, name).float() - expected).abs().max() < 0.1 * expected.abs().max()
    wide.config.save_pretrained(tmp_path / "saved")
    assert attention.NAME not in (tmp_path / "saved" / "config.json").read_text()


def test_text_is_generated_with_a_cache_and_padding(tmp_path, monkeypatch):
    architectures.save("llama-untied", tmp_path / "hf", torch.float16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    calls = []
    forward = attention.sdpa_attention_forward

    def counted(module, query, key, value, mask, **options):
        calls.append((query.dtype, tuple(key.shape), mask))
        return forward(module, query, key, value, mask, **options)

    monkeypatch.setattr(attention, "sdpa_attention_forward", counted)
    model = aibit.load_model(tmp_path / "m.aibit", weight_only=True)
    ids = torch.tensor([[1, 1, 5, 6], [7, 8, 9, 10]])
    padded = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    both = model.generate(ids, attention_mask=padded, **options)
    alone = model.generate(ids[:1, 2:], **options)
    assert both.shape == (2, 9) and torch.equal(both[0, 4:], alone[0, 2:])
    assert {dtype for dtype, _, _ in calls} == {torch.float32} and max(shape[2] for _, shape, _ in calls) == 8


@pytest.mark.skipif(not packed.COMPILED, reason="the compiled code is not here")
@pytest.mark.parametrize("name", ["llama-untied", "qwen2", "mixtral"])
def test_a_model_of_packed_weights_says_with_a_cache_what_it_says_without(name, tmp_path, monkeypatch):
    """One token attends by compiled code, several by torch's; norms are compiled in both."""
    architectures.save(name, tmp_path / "hf", torch.float32)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="int4-group,group=32")
    calls, attend = [], operators.attend
    monkeypatch.setattr(operators, "attend", lambda *given: calls.append(given[1].shape[2]) or attend(*given))
    model = aibit.load_model(tmp_path / "m.aibit")
    assert model.config._attn_implementation == attention.NAME
    assert not any(type(module) is RMSNorm for module in model.modules())  # of float32, where sums show
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
        assert not calls
        steps = [model(ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits[0, 0] for i in range(5, 9)]
        assert calls
        whole = model(ids).logits[0, 5:]
    torch.testing.assert_close(torch.stack(steps), whole, rtol=1e-4, atol=1e-4)
    short = aibit.load_model(tmp_path / "m.aibit", dtype="bfloat16")
    assert any(type(module) is RMSNorm for module in short.modules())
    with torch.no_grad():
        assert (short(ids).logits[0, 5:] - whole).abs().max() < 0.1 * whole.abs().max()


@pytest.mark.parametrize("case", ["float32", "eager", "fast", "default"])
def test_other_models_are_left_alone(case, tmp_path, monkeypatch):
    architectures.save("llama-untied", tmp_path / "hf", torch.float32 if case == "float32" else torch.bfloat16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    monkeypatch.setattr(attention, "fast_dtype", lambda dtype: dtype if case == "fast" else torch.float32)
    monkeypatch.setattr(operators, "COMPILED", False)
    model = aibit.load_model(tmp_path / "m.aibit", weight_only=case in ("float32", "fast"))
    if case == "eager":
        model.set_attn_implementation("eager")
        attention.attend_faster(model)
    assert model.config._attn_implementation == ("eager" if case == "eager" else "sdpa")
