"""Embeddings and heads whose tables stay in their planes: one table in memory where both are tied, and one dtype."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

import aibit_format as aibit
from aibit_format.formats.gguf.export import export
from aibit_format.torch.bnb_compat import Linear4bit, Linear8bitLt
from aibit_format.torch.layers.dequantized import Quantized, QuantizedEmbedding, QuantizedLinear
from aibit_format.torch.load import arena
from aibit_format.torch.load.build import _Assembly
from tests.support.arenas import Late

_SIZES = {
    "vocab_size": 192, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "llama": lambda: tf.LlamaConfig(**_SIZES),
    "gemma3": lambda: tf.Gemma3TextConfig(**_SIZES, head_dim=16, query_pre_attn_scalar=16),
}
IDS = torch.tensor([[5, 90, 77, 130, 4, 8, 8, 41]])


def saved(name, folder, dtype=torch.float32):
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(FAMILIES[name](), dtype=dtype).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.05)
    model.save_pretrained(folder)
    return model


def table(module) -> int:
    """Where the codes of a packed layer lie, of bitsandbytes' too."""
    if isinstance(module, Quantized):
        return next(iter(module.planes().values())).data_ptr()
    return module.weight.data_ptr()


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def with_the_values_of(model, file):
    """A plain model with the values that the file's planes stand for."""
    with torch.no_grad():
        for key in file:
            if file.info(key).scheme.lossy:
                model.get_parameter(key).copy_(torch.from_numpy(file.dequantize(key)))
    return model


HEADS = {
    "int8": Linear8bitLt, "nf4": Linear4bit, "nf4,nested=1": Linear4bit, "nf4-cpu": Linear4bit,
    "int4-group,group=32": QuantizedLinear, "gguf:q4_1": QuantizedLinear, "int8-absmax": QuantizedLinear,
}  # fmt: skip


@pytest.mark.parametrize("where", ["mapped", "arena", "copied"])
@pytest.mark.parametrize("scheme", HEADS)
@pytest.mark.parametrize("name", FAMILIES)
def test_tied_tables_are_one_and_never_decoded(name, scheme, where, tmp_path, monkeypatch):
    plain = saved(name, tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="f32", tensors={"embed_tokens": scheme})
    if where == "arena":
        monkeypatch.setitem(arena.LINKS, "cpu", Late)
    if where == "copied":  # as on devices without an arena
        placed = _Assembly._placed

        def copied(assembly, info):
            found, planes = placed(assembly, info)
            return found, {role: plane.clone() for role, plane in planes.items()}

        monkeypatch.setattr(_Assembly, "_placed", copied)
    with aibit.open(tmp_path / "m.aibit") as file:
        model = aibit.load_model(file)
        monkeypatch.undo()
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        assert isinstance(embedding, QuantizedEmbedding) and isinstance(head, HEADS[scheme])
        assert table(embedding) == table(head) or scheme == "nf4-cpu"  # whose head has the tiles, if it has any
        expected = with_the_values_of(plain, file)
        assert torch.equal(embedding(IDS), expected.get_input_embeddings()(IDS))

        def refuse(_):
            raise AssertionError("the whole table was decoded")

        monkeypatch.setattr(Quantized, "weight", property(refuse))
        found, wanted = logits(model), logits(expected)
        assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_kept_gguf_model_computes_in_the_dtype_of_its_floats(name, dtype, tmp_path):
    """GGUF stores norms in float32 whatever they were: the smallest dtype that holds them is the model's."""
    saved(name, tmp_path / "hf", dtype)
    aibit.convert(tmp_path / "hf", tmp_path / "made.aibit", scheme="gguf:q4_1", tensors={"embed": "gguf:q4_1"})
    with aibit.open(tmp_path / "made.aibit") as file:
        export(file, str(tmp_path / "m.gguf"))
    aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as file:
        assert file.check_document("config.json")["dtype"] == str(dtype).removeprefix("torch.")
        model = aibit.load_model(file)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        assert isinstance(embedding, QuantizedEmbedding) and isinstance(head, QuantizedLinear)
        assert table(embedding) == table(head)
    packed = [module for module in model.modules() if isinstance(module, Quantized)]
    assert len(packed) == 16 and {module.weight.dtype for module in packed} == {dtype} == {model.dtype}
    assert {value.dtype for value in model.parameters()} == {dtype}
    assert embedding(IDS).dtype == dtype == logits(model).dtype
    again = aibit.load_model(tmp_path / "m.aibit", dtype="float32")
    assert again.get_input_embeddings()(IDS).dtype == torch.float32 == logits(again).dtype
    assert (logits(again) - logits(model)).abs().max() < 0.1 * logits(again).abs().max()


def test_tables_of_a_model_in_float64_are_looked_up_in_it(tmp_path):
    plain = saved("llama", tmp_path / "hf", torch.float64)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="keep", tensors={"embed_tokens": "int8-absmax"})
    with aibit.open(tmp_path / "m.aibit") as file:
        model = aibit.load_model(file)
        assert model.dtype == torch.float64 == model.get_input_embeddings()(IDS).dtype
        wanted = logits(with_the_values_of(plain, file))
    assert torch.allclose(logits(model), wanted, rtol=1e-9)


def test_scaled_tables_are_saved_and_compiled_as_they_are(tmp_path):
    saved("gemma3", tmp_path / "hf", torch.bfloat16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="bf16", tensors={"embed_tokens": "int8-absmax"})
    model = aibit.load_model(tmp_path / "m.aibit")
    assert model.get_input_embeddings().embed_scale == 8
    model.save_pretrained(tmp_path / "again")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype="auto").eval()
    assert torch.equal(again.get_input_embeddings()(IDS), model.get_input_embeddings()(IDS))
    compiled = torch.compile(model.get_input_embeddings(), fullgraph=True, backend="eager")
    assert torch.equal(compiled(IDS), model.get_input_embeddings()(IDS))


def test_a_table_that_four_modules_share_is_one(tmp_path):
    config = tf.BartConfig(
        vocab_size=192, d_model=64, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=32, scale_embedding=True,
    )  # fmt: skip
    torch.manual_seed(0)
    plain = tf.BartForConditionalGeneration(config).eval()
    plain.save_pretrained(tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="f32", tensors={"shared": "int4-group,group=32"})
    with aibit.open(tmp_path / "m.aibit") as file:
        model = aibit.load_model(file)
        body = model.model
        tables = [body.shared, body.encoder.embed_tokens, body.decoder.embed_tokens]
        assert all(isinstance(each, QuantizedEmbedding) and each.embed_scale == 8 for each in tables)
        assert len({table(each) for each in (*tables, model.lm_head)}) == 1
        expected = with_the_values_of(plain, file)
        assert torch.equal(tables[1](IDS), expected.model.encoder.embed_tokens(IDS))
        assert torch.allclose(logits(model), logits(expected), atol=1e-3)
