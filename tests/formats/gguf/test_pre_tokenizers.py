"""Every named way to cut text, as llama.cpp does it: it computes the same after a text as after our tokens of it."""

from __future__ import annotations

import json

import gguf
import pytest
import torch
import transformers

import aibit_format as aibit
from aibit_format.errors import SourceError
from aibit_format.formats.gguf.pre_tokenizers import PRE
from aibit_format.formats.gguf.tokenizer_in import documents_of
from tests.support.gguf_conversion import SMALL, llama_cpp, server, tensors_of
from tests.support.gguf_models import finish, written

TEXTS = (
    "Hello world! It's 1234567 o'clock, and they'LL say: don't.\n\n  Two lines\t and a tab. ",
    "caf\u00e9 na\u00efve \u4f60\u597d\u4e16\u754c 12345 \u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4",
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 x=1+2; $9.99 (a|b) `code` ~^<>",
    "HTTPServer camelCase snake_case\r\n\r\n    indented(); // 007\n!!!??? ...",
)
NAMES = [pre.names[0] for pre in PRE]


@pytest.fixture(scope="module")
def vocabulary(fixtures) -> dict:
    return json.loads((fixtures / "models" / "tiny-gpt2" / "tokenizer.json").read_text())


def file(path, vocabulary: dict, pre: str) -> None:
    """A small Llama with byte-level BPE, cut as ``pre`` says."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL | {"max_position_embeddings": 512}))
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (
        ("context_length", 512), ("embedding_length", 64), ("block_count", 2), ("feed_forward_length", 96),
        ("attention.head_count", 4), ("attention.head_count_kv", 2),
    ):  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-6)
    ids = vocabulary["model"]["vocab"] | {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    special = {token["id"] for token in vocabulary["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(ids, key=lambda token: ids[token]))
    writer.add_token_types([3 if i in special else 1 for i in range(len(ids))])
    merges = vocabulary["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    for name, x in tensors_of(model, "llama"):
        writer.add_tensor(name, x.detach().contiguous().numpy())
    finish(writer)


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_cuts_text_the_same(name, vocabulary, tmp_path):
    pytest.importorskip("xllamacpp", reason="llama.cpp comes with xllamacpp, which is not installed")
    file(tmp_path / "m.gguf", vocabulary, name)
    aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit", scheme="keep")
    tokenizer, running = aibit.load_tokenizer(tmp_path / "m.aibit"), server(tmp_path / "m.gguf")
    for text in TEXTS:
        assert llama_cpp(running, text, 1)[1] == llama_cpp(running, tokenizer(text)["input_ids"], 1)[1], text


@pytest.mark.parametrize("name", NAMES)
def test_the_name_goes_out_again(name, vocabulary, tmp_path):
    file(tmp_path / "m.gguf", vocabulary, name)
    aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit", scheme="keep")
    assert written(tmp_path / "m.aibit", tmp_path / "b.gguf").metadata["tokenizer.ggml.pre"] == name


def test_a_name_that_is_not_known_is_refused_by_name(vocabulary, tmp_path):
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.pre": "kimi-k2"}
    with pytest.raises(SourceError, match=r"tokenizer\.ggml\.pre 'kimi-k2' is unknown here"):
        documents_of(metadata, 1, None)


def test_no_name_is_listed_twice():
    names = [name for pre in PRE for name in pre.names]
    assert len(names) == len(set(names))
