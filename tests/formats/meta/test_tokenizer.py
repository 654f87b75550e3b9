"""Llama's tokenizers: SentencePiece is kept, and ranks become what transformers and tiktoken make of them."""

from __future__ import annotations

import json

import pytest
import tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter

import aibit_format as aibit
from aibit_format.errors import AibitError
from aibit_format.formats.sources import open_source
from tests.support import makers
from tests.support.makers import LLAMA, LLAMA_SCALED, llama, llamas_own

TEXTS = ["hello the thing", "  in  hell, the café's 12345 things\n\n", "he'll go", "日本語 hello\t the", " t" * 9]
TOKENS = makers.ranks()
ROWS = len(TOKENS) + 256


class OfRanks(TikTokenConverter):
    """The converter of transformers, with ranks at hand instead of a file that only tiktoken opens."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        return {token: rank for rank, token in enumerate(TOKENS)}


def written(folder, text: bytes, params=LLAMA_SCALED, rows: int = ROWS):
    """A Llama with this ``tokenizer.model``."""
    tensors = llamas_own(llama(intermediate=256))
    for name in ("tok_embeddings.weight", "output.weight"):
        tensors[name] = tensors[name].repeat(4, 1)[:rows].clone()
    makers.write_parts(folder, [tensors], params | {"vocab_size": rows, "multiple_of": 64, "ffn_dim_multiplier": 1.3})
    (folder / "tokenizer.model").write_bytes(text)
    return folder


@pytest.mark.parametrize("params", [LLAMA, LLAMA_SCALED])
def test_ranks_become_what_transformers_makes_of_them(params, tmp_path):
    folder = written(tmp_path / "m", makers.tiktoken_file(TOKENS), params)
    (folder / "LICENSE").write_text("free")
    documents = open_source(folder).documents
    assert sorted(documents) == ["LICENSE", "config.json", "generation_config.json", "tokenizer.json",
                                 "tokenizer_config.json"]  # fmt: skip
    found, expected = tokenizers.Tokenizer.from_str(documents["tokenizer.json"].decode()), OfRanks("").converted()
    own = json.loads(found.to_str())
    assert own["pre_tokenizer"] == json.loads(expected.to_str())["pre_tokenizer"]
    assert own["model"]["merges"] == json.loads(expected.to_str())["model"]["merges"]
    for text in TEXTS:
        ids = found.encode(text).ids
        assert ids == [len(TOKENS), *expected.encode(text).ids] and found.decode(ids) == text
    names = [token["content"] for token in own["added_tokens"]]
    assert len(names) == len(set(names)) == 256 and [token["id"] for token in own["added_tokens"]][-1] == ROWS - 1
    scaled = params is LLAMA_SCALED
    assert names[:3] == ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"]
    assert names[4:11] == (
        ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
         "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
        if scaled else
        ["<|reserved_special_token_2|>", "<|reserved_special_token_3|>", "<|start_header_id|>", "<|end_header_id|>",
         "<|reserved_special_token_4|>", "<|eot_id|>", "<|reserved_special_token_5|>"]
    )  # fmt: skip
    assert names[-1] == f"<|reserved_special_token_{247 if scaled else 250}|>"
    ends = json.loads(documents["generation_config.json"])["eos_token_id"]
    assert [names[i - len(TOKENS)] for i in ends] == ["<|end_of_text|>", *["<|eom_id|>"] * scaled, "<|eot_id|>"]


def test_ids_are_those_of_tiktoken(tmp_path):
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is not installed (pip install tiktoken)")
    folder = written(tmp_path / "m", makers.tiktoken_file(TOKENS))
    found = tokenizers.Tokenizer.from_str(open_source(folder).documents["tokenizer.json"].decode())
    ranks = {token: rank for rank, token in enumerate(TOKENS)}
    library = tiktoken.Encoding("llama", pat_str=OfRanks("").pattern, mergeable_ranks=ranks, special_tokens={})
    for text in TEXTS:
        assert found.encode(text, add_special_tokens=False).ids == library.encode(text)


def test_the_tokenizer_is_loaded(tmp_path):
    aibit.convert(written(tmp_path / "m", makers.tiktoken_file(TOKENS)), tmp_path / "m.aibit")
    tokenizer = aibit.load_tokenizer(tmp_path / "m.aibit")
    assert tokenizer("hello").input_ids == [len(TOKENS), TOKENS.index(b"hello")]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|end_of_text|>")
    assert tokenizer.decode(tokenizer("the <|eot_id|>").input_ids, skip_special_tokens=True) == "the "


DAMAGE = [
    (b"", "0 lines, expected 1 to"),
    (b"hello", r"line 1 is b'hello': neither SentencePiece, nor a token and its rank"),
    (b"\n\x05\n\x03", r"no SentencePiece model, or truncated"),
    (b"YQ== 0\nYg== 2\n", r"line 2 is b'Yg== 2'"),
    (b"YQ== 0\n!! 1\n", r"line 2: b'!!' is no token in base64"),
    (b" 0\n", r"line 1: b'' is a token of no bytes"),
    (b"YQ" * 3000 + b" 0\n", r"a token of no bytes, or of more than 1024"),
    (b"YQ== 0\nYQ== 1\n", r"b'a' is there twice"),
    (makers.tiktoken_file([*TOKENS, b"the"]), rf"{len(TOKENS) + 1} tokens and 256 special ones, the embeddings have"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), DAMAGE, ids=[message[:20] for _, message in DAMAGE])
def test_what_is_damaged_is_refused(text, message, tmp_path):
    folder = written(tmp_path / "bad", text)
    with pytest.raises(AibitError, match=message) as caught:
        aibit.convert(folder, tmp_path / "m.aibit")
    assert str(folder / "tokenizer.model") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]
