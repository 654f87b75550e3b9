"""``torch.compile``: models are one graph, with the outputs that they have without a compiler.

The graphs are run by ``aot_eager``, which traces as any compiler does, and then calls the operators themselves.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import StaticCache

import aibit_format as aibit
from aibit_format.torch.layers import custom_ops
from aibit_format.torch.load import arena
from tests.support import architectures


@pytest.fixture(autouse=True)
def no_graphs_of_others():
    yield
    torch.compiler.reset()


def make(path, weight_only: bool = False, **options):
    """A model of a few layers in some scheme."""
    architectures.save("llama-tied", path / "hf")
    aibit.convert(path / "hf", path / "m.aibit", **options)
    return aibit.load_model(path / "m.aibit", weight_only=weight_only)


def decode(model, step) -> torch.Tensor:
    """Logits of a prompt and of three tokens after it, with a cache of fixed size."""
    cache = StaticCache(config=model.config, max_cache_len=16)
    ids, at, logits = torch.arange(3, 9)[None], 0, []
    with torch.inference_mode():
        for _ in range(4):
            places = torch.arange(at, at + ids.shape[1])[None]
            logits.append(step(ids, position_ids=places, past_key_values=cache).logits)
            at += ids.shape[1]
            ids = logits[-1][:, -1:].argmax(-1)
    return torch.cat(logits, 1)


@pytest.mark.parametrize(
    ("scheme", "weight_only"),
    [("int8", True), ("int8-absmax", False), ("int8-zp,group=32", False), ("int4-group,group=32", False),
     ("gguf:q8_0", False), ("nf4", False)],
)  # fmt: skip
def test_a_model_is_one_graph_with_the_same_outputs(scheme, weight_only, tmp_path):
    model = make(tmp_path, weight_only=weight_only, scheme=scheme)
    expected = decode(model, model.forward)
    found = decode(model, torch.compile(model.forward, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", ["int8-absmax", "gguf:q8_0"])
def test_quantized_embeddings_are_in_the_graph(scheme, tmp_path):
    model = make(tmp_path, tensors={"embed|lm_head": scheme}, weight_only=True)
    expected = decode(model, model.forward)
    compiled = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(decode(model, compiled), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(IndexError, match="the table has 160"):
        compiled(torch.tensor([[160]]))


_SIZES = {"vocab_size": 160, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
@pytest.mark.parametrize("together", [True, False], ids=["one allocation", "mapped"])
def test_layers_that_lie_together_are_one_operator(family, together, tmp_path, monkeypatch):
    """Queries, keys and values; gate and up. Qwen2's have biases."""
    if together:
        monkeypatch.setitem(arena.LINKS, "cpu", arena.Memory)  # as on a GPU
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**_SIZES)
    plain = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, value in plain.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value)
    plain.save_pretrained(tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    model = aibit.load_model(tmp_path / "m.aibit", weight_only=True)
    looked, side_by_side = [], custom_ops.side_by_side
    monkeypatch.setattr(custom_ops, "side_by_side", lambda parts: looked.append(side_by_side(parts)) or looked[-1])
    called = []

    def backend(module, inputs):
        called.extend(str(node.target) for node in module.graph.nodes if "aibit" in str(node.target))
        return module

    expected = architectures.output(model, "llama-untied")
    found = architectures.output(torch.compile(model, backend=backend, fullgraph=True), "llama-untied")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    of_a_block = ["aibit.linears.default", "aibit.linear.default"] * 2
    assert [each for each in called if "linear" in each] == of_a_block * 2
    assert len(looked) == 4 and all((whole is not None) == together for whole in looked)
    parts = [module.fused for module in model.modules() if getattr(module, "fused", None) is not None]
    assert len(parts) == 10 and all(each._traced is None for each in parts)  # nothing stays when the graph is written


def test_codes_are_side_by_side_only_within_one_allocation():
    memory = torch.arange(60, dtype=torch.int8)
    a, b, c = memory[:20].view(4, 5), memory[20:35].view(3, 5), memory[35:60].view(5, 5)
    whole = custom_ops.side_by_side([a, b, c])
    assert torch.equal(whole, memory.view(12, 5)) and whole.data_ptr() == memory.data_ptr()
    assert torch.equal(custom_ops.side_by_side([b, c]), memory[20:].view(8, 5))
    for apart in ([a, c], [b, a], [a, b.clone()], [a.T, b]):
        assert custom_ops.side_by_side(apart) is None


def test_four_bit_rows_that_bitsandbytes_decodes_wrongly_are_in_the_graph(tmp_path):
    architectures.save("llama-tied", tmp_path / "hf", intermediate_size=96)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="nf4")
    model = aibit.load_model(tmp_path / "m.aibit")
    assert model.model.layers[0].mlp.down_proj.decode is not None
    expected = decode(model, model.forward)
    found = decode(model, torch.compile(model.forward, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", ["int8-absmax", "gguf:q8_0"])
def test_gradients_reach_inputs_through_a_compiler(scheme, tmp_path):
    model = make(tmp_path, scheme=scheme)
    embedded = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))

    def gradient(forward) -> torch.Tensor:
        x = embedded.clone().requires_grad_()
        forward(inputs_embeds=x).logits.square().mean().backward()
        return x.grad

    expected = gradient(model.forward)
    torch.testing.assert_close(gradient(torch.compile(model.forward, backend="aot_eager")), expected)


def test_generate_compiles_a_static_cache_where_it_would_on_a_gpu(tmp_path):
    model = make(tmp_path, weight_only=True)
    options = {"max_new_tokens": 5, "do_sample": False, "input_ids": torch.arange(3, 9)[None]}
    expected = model.generate(**options)
    config = transformers.CompileConfig(backend="aot_eager", mode=None, fullgraph=True)
    config._compile_all_devices = True
    found = model.generate(cache_implementation="static", compile_config=config, **options)
    assert torch.equal(found, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it was compiled


@pytest.mark.gpu
def test_a_cuda_graph_of_a_model_gives_the_same_tokens(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", torch.float16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    model = aibit.load_model(tmp_path / "m.aibit", device="cuda", weight_only=True)
    options = {"max_new_tokens": 8, "do_sample": False, "input_ids": torch.arange(3, 9, device="cuda")[None]}
    expected = model.generate(**options)
    assert torch.equal(model.generate(cache_implementation="static", **options), expected)
