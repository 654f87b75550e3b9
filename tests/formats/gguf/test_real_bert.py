"""MiniLM, a package by name, goes out as GGUF and comes in again: the same embeddings, here and in llama.cpp."""

from __future__ import annotations

import pytest
import torch
import transformers

import aibit_format as aibit
from tests.support.gguf_conversion import embedding, server
from tests.support.gguf_models import written
from tools.spec import scheme_table

pytestmark = pytest.mark.slow
transformers.utils.logging.disable_progress_bar()

TEXTS = ("The quick brown fox jumps over the lazy dog.", "Caf\u00e9 na\u00efve \u4f60\u597d, don't [MASK] 1234 ABC!")


@pytest.mark.parametrize(("kind", "allowed"), [("f32", 0.0), ("q8_0", 0.04)])
def test_minilm_makes_the_same_embeddings_as_before(kind, allowed, tmp_path):
    folder = scheme_table.checkpoint()
    aibit.convert(folder, tmp_path / "m.aibit", scheme="keep")
    written(tmp_path / "m.aibit", tmp_path / "m.gguf", type=kind)
    aibit.convert(tmp_path / "m.gguf", tmp_path / "again.aibit")
    model, tokenizer = aibit.load(tmp_path / "again.aibit")
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    running = server(tmp_path / "m.gguf", encoder=True)
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")
        assert ids["input_ids"].tolist()[0] == transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
        with torch.no_grad():
            found, wanted = (each(ids["input_ids"]).last_hidden_state[0].mean(0) for each in (model, theirs))
        assert torch.dist(found, wanted) <= allowed * wanted.norm()
        # llama.cpp computes GELU by its approximation with tanh.
        assert torch.dist(found / found.norm(), embedding(running, text)) < max(allowed, 0.01)
