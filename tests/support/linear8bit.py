"""Make layers of eight bits, and inputs for them."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from tests.support import architectures

# Wide enough that each weight's codes are whole pages: smaller ones are padded, and lie apart.
WIDE = architectures._LLAMA | {"hidden_size": 128}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True)
def _wide_models(monkeypatch):
    monkeypatch.setitem(architectures.MODELS, "llama", (tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**WIDE)))
    monkeypatch.setitem(architectures.MODELS, "qwen2", (tf.Qwen2ForCausalLM, lambda: tf.Qwen2Config(**WIDE)))
