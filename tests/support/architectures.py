"""Small models of every family, built from configurations and saved as checkpoints."""

from __future__ import annotations

import torch
import transformers as tf

_TEXT = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_LLAMA = dict(**_TEXT, num_key_value_heads=2, max_position_embeddings=64)


def _t5() -> tf.T5Config:
    return tf.T5Config(
        vocab_size=160, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )  # fmt: skip


# Name -> (class, configuration). Each is built in float32 and in the dtype that a test asks for.
MODELS = {
    "llama-untied": (tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**_LLAMA, tie_word_embeddings=False)),
    "llama-tied": (tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**_LLAMA, tie_word_embeddings=True)),
    "gpt2": (tf.GPT2LMHeadModel, lambda: tf.GPT2Config(vocab_size=160, n_embd=64, n_layer=2, n_head=4, n_positions=64)),
    "opt": (tf.OPTForCausalLM, lambda: tf.OPTConfig(
        vocab_size=160, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=64)),
    "qwen2": (tf.Qwen2ForCausalLM, lambda: tf.Qwen2Config(**_LLAMA)),
    "bert": (tf.BertModel, lambda: tf.BertConfig(**_TEXT, max_position_embeddings=64)),
    "bert-classifier": (tf.BertForSequenceClassification, lambda: tf.BertConfig(
        **_TEXT, max_position_embeddings=64, num_labels=3)),
    "t5": (tf.T5ForConditionalGeneration, _t5),
    "mixtral": (tf.MixtralForCausalLM, lambda: tf.MixtralConfig(**_LLAMA, num_local_experts=4, num_experts_per_tok=2)),
}  # fmt: skip


def save(
    name: str, folder, dtype: torch.dtype = torch.float32, seed: int = 0, intermediate_size: int = 128,
    changes: dict | None = None, **arguments,
) -> None:  # fmt: skip
    """Save a model with random weights, outlier columns among them, as ``save_pretrained`` writes it."""
    family, make_config = MODELS[name]
    torch.manual_seed(seed)
    config = make_config()
    if intermediate_size != 128:
        config.intermediate_size = intermediate_size
    for key, value in (changes or {}).items():
        setattr(config, key, value)
    model = family(config)
    with torch.no_grad():
        for _key, value in model.named_parameters():
            if value.ndim >= 2:
                value.mul_(1 if name == "t5" else 3)  # T5's own initial weights are as large as float16 bears
                value[..., 1] *= 8  # some columns stand out, so that LLM.int8 finds outliers
    model.to(dtype).save_pretrained(folder, **arguments)


def load(name: str, folder):
    """The saved model, not quantized."""
    return MODELS[name][0].from_pretrained(folder).eval()


def inputs(name: str) -> dict[str, torch.Tensor]:
    """A batch the model takes, without padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 160, (2, 13), generator=generator)
    return {"input_ids": ids, "decoder_input_ids": ids[:, :5]} if name == "t5" else {"input_ids": ids}


def output(model, name: str) -> torch.Tensor:
    """Logits, or the last hidden state of a model without a head."""
    with torch.no_grad():
        result = model(**inputs(name))
    return result.logits if "logits" in result else result.last_hidden_state


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether outputs of the same weights are the same, up to what rounding in another order makes of them.

    Kernels add in an order that depends on the processor and on how a matrix lies in memory; and in 16 bits a processor
    without such products is given float32 (``matmul.fast_dtype``). Weights are what is compared to the bit.
    """
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    roundings = 64 if found.dtype == torch.float32 else 8
    most = roundings * torch.finfo(found.dtype).eps * expected.float().abs().max()
    return bool((found.float() - expected.float()).abs().max() <= most)
