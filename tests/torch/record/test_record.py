"""Recording decoders: families whose graphs compute what the model does, and those that cannot be had."""

from __future__ import annotations

import pytest
import torch

import aibit_format as aibit
from aibit_format.errors import GraphError
from aibit_format.torch.record.record import record
from tests.support import architectures
from tests.support.graphs import IDS, converted, recorded

# Families that differ in norms, biases, gates, rotary embeddings, windows, caps and positions.
FAMILIES = [
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "olmo2", "gpt_neox", "nemotron",
    "opt", "starcoder2",
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_computes_what_the_model_does(family, tmp_path):
    path = recorded(family, tmp_path)
    graph, model = aibit.load_graph(path), aibit.load_model(path, weight_only=True)
    with torch.inference_mode():
        assert architectures.close(graph(IDS).logits, model(IDS).logits)
    expected = model.generate(IDS, max_new_tokens=16, do_sample=False, eos_token_id=159, pad_token_id=0)
    assert torch.equal(graph.generate(IDS, 16, eos_token_id=159), expected)


@pytest.mark.parametrize("scheme", ["int8", "gguf:q4_k", "bf16", "f8_e4m3"])
def test_schemes(scheme, tmp_path):
    path = recorded("llama", tmp_path, scheme)
    graph, model = aibit.load_graph(path), aibit.load_model(path, weight_only=True)
    with torch.inference_mode():
        assert architectures.close(graph(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("scheme", ["int4-group,group=32", "nf4", "nf4,nested=1", "fp4", "nf4-cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_and_four_bits(scheme, dtype, tmp_path):
    path = recorded("llama", tmp_path, scheme, dtype)
    graph, model = aibit.load_graph(path), aibit.load_model(path, weight_only=True)
    with torch.inference_mode():
        apart = (graph(IDS).logits - model(IDS).logits).abs().max()
    exact = dtype == torch.float32 and scheme.startswith("int4")  # sums of norms in float32 have orders of their own
    assert apart < (1e-5 if exact else 0.03)  # bitsandbytes rounds inputs to bf16 on processors that multiply those
    expected = model.generate(IDS, max_new_tokens=8, do_sample=False, eos_token_id=159, pad_token_id=0)
    assert torch.equal(graph.generate(IDS, 8, eos_token_id=159), expected)


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("mixtral", "MixtralForCausalLM has experts, which are chosen by numbers and not by shapes"),
        ("mamba", "MambaForCausalLM"),
        ("cohere", "CohereForCausalLM|stack|operator"),
    ],
)
def test_a_model_that_cannot_be_recorded_says_why_and_stays_as_it_was(family, says, tmp_path):
    model = aibit.load_model(converted(family, tmp_path), weight_only=True)
    before = {name: type(module) for name, module in model.named_modules()}
    attention = model.config._attn_implementation
    with torch.inference_mode():
        logits = model(IDS).logits
    with pytest.raises(GraphError, match=says):
        record(model)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert model.config._attn_implementation == attention
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, logits)


def test_a_recorded_model_stays_as_it_was(tmp_path):
    model = aibit.load_model(converted("llama", tmp_path), weight_only=True)
    modules = dict(model.named_modules())
    with torch.inference_mode():
        logits = model(IDS).logits
    program = record(model, 48)
    assert program.positions == 48 and set(program.made_with) == {"aibit-format", "torch", "transformers"}
    assert dict(model.named_modules()) == modules
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, logits)
