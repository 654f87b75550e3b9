"""WordPiece tokenizers come in from GGUF and go out, as BERT's tokenizer and llama.cpp cut texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import aibit_format as aibit
from aibit_format.errors import SourceError, WriteError
from aibit_format.formats.gguf import wordpiece
from aibit_format.formats.gguf.file import GGUFFile
from aibit_format.formats.gguf.vocabulary import Vocabulary
from tests.support.gguf_conversion import convert, embedding, model_of, server
from tests.support.gguf_models import written

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*"abcde.,", "##a", "##b", "##c", "##d", "##e", "ab", "abc", "##bc", "##cde", "\u4f60", "\u597d", "e", "1"]
VOCABULARY = [*SPECIAL, *dict.fromkeys(WORDS)]


def marked(token: str) -> str:
    """A token as GGUF has it: those that begin a word are marked."""
    return token if token in SPECIAL else token[2:] if token.startswith("##") else "\u2581" + token


def tokenizer(writer) -> None:
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([marked(token) for token in VOCABULARY])
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(VOCABULARY) - len(SPECIAL)))
    for add, token in (
        (writer.add_pad_token_id, "[PAD]"), (writer.add_unk_token_id, "[UNK]"), (writer.add_bos_token_id, "[CLS]"),
        (writer.add_sep_token_id, "[SEP]"), (writer.add_mask_token_id, "[MASK]"),
    ):  # fmt: skip
        add(VOCABULARY.index(token))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder: the GGUF file of a BERT with this tokenizer, the file that it becomes, and transformers' tokenizer."""
    folder = tmp_path_factory.mktemp("wordpiece")
    convert(model_of("bert", vocab_size=len(VOCABULARY)), "bert", folder / "m.gguf", tokenizer=tokenizer)
    aibit.convert(folder / "m.gguf", folder / "m.aibit", scheme="keep")
    (folder / "hf").mkdir()
    (folder / "hf" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return folder


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("abcde AB.,\u00e9\u4f60\u597d1\t"), max_size=12))
def test_a_text_is_cut_as_berts_tokenizer_cuts_it(files, text):
    theirs = transformers.BertTokenizer.from_pretrained(files / "hf")
    ours = aibit.load_tokenizer(files / "m.aibit")
    for pair in ((text,), (text, "ab")):
        assert dict(ours(*pair, return_token_type_ids=True)) == dict(theirs(*pair, return_token_type_ids=True))
    assert ours.decode(ours(text)["input_ids"]) == theirs.decode(theirs(text)["input_ids"])


@pytest.mark.parametrize("text", ["abcde ABC, a.", "\u4f60\u597d x caf\u00e9", "[MASK] ab"])
def test_llama_cpp_and_the_way_back_agree(files, text, tmp_path):
    ids = aibit.load_tokenizer(files / "m.aibit")(text)["input_ids"]
    after = written(files / "m.aibit", tmp_path / "b.gguf").metadata
    before = GGUFFile(str(files / "m.gguf")).metadata
    for key in before:
        assert np.array_equal(after[key], before[key]), key
    assert after["tokenizer.ggml.cls_token_id"] == after["tokenizer.ggml.bos_token_id"] == 2
    for path in (files / "m.gguf", tmp_path / "b.gguf"):
        running = server(path, encoder=True)
        assert torch.equal(embedding(running, text), embedding(running, ids))


def test_case_is_kept_where_the_file_says_so():
    metadata = {
        "tokenizer.ggml.tokens": [marked(token) for token in VOCABULARY], "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.normalizer.lowercase": False,
    }  # fmt: skip
    parts, _ = wordpiece.to_tokenizer(Vocabulary(metadata, len(VOCABULARY)))
    assert parts["normalizer"]["lowercase"] is False
    kinds = [3] * len(SPECIAL) + [1] * (len(VOCABULARY) - len(SPECIAL))
    values = wordpiece.to_metadata(parts, list(VOCABULARY), kinds)
    assert values["ggml.normalizer.lowercase"] is False and values["ggml.normalizer.strip_accents"] is False


def test_without_a_token_for_unknown_words_it_is_refused():
    with pytest.raises(SourceError, match="needs a token for unknown words"):
        wordpiece.to_tokenizer(Vocabulary({"tokenizer.ggml.tokens": ["a"]}, 1))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"normalizer": {"type": "NFKC"}}, "no such normalizer"),
        ({"pre_tokenizer": None}, "no such normalizer or pre-tokenizer"),
        ({"normalizer": {"type": "BertNormalizer", "clean_text": False}}, "normalizer without clean_text"),
        ({"model": {"continuing_subword_prefix": "@@"}}, "begin with '@@'"),
    ],
)
def test_what_llama_cpp_has_not_is_refused(parts, message):
    plain = {
        "model": {}, "normalizer": {"type": "BertNormalizer"}, "pre_tokenizer": {"type": "BertPreTokenizer"},
    }  # fmt: skip
    assert wordpiece.to_metadata(plain, ["a"], [1]) == {"ggml.model": "bert", "ggml.pre": "default"}
    with pytest.raises(SourceError, match=message):
        wordpiece.to_metadata(plain | parts, ["a"], [1])


@pytest.mark.parametrize("to", ["huggingface", "safetensors"])
def test_no_directory_is_written_whose_pooler_would_be_random(to, tmp_path):
    """GGUF has no pooler, and a directory cannot say that its class has none."""
    convert(model_of("bert"), "bert", tmp_path / "m.gguf")
    aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit")
    with pytest.raises(WriteError, match=r"BertModel has 2 weights that the file lacks.*pooler\.dense.*--to gguf"):
        aibit.export(tmp_path / "m.aibit", to, tmp_path / "out")
    assert not (tmp_path / "out").exists()
