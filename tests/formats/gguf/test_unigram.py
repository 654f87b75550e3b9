"""Unigram tokenizers come in from GGUF and go out: texts are normalized, and cut where the scores are best."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import aibit_format as aibit
from aibit_format.errors import SourceError
from aibit_format.formats.gguf import unigram
from aibit_format.formats.gguf.file import GGUFFile
from aibit_format.formats.gguf.vocabulary import Vocabulary
from tests.support.gguf_conversion import convert, embedding, model_of, server
from tests.support.gguf_models import written

SPACE = "\u2581"
PIECES = {
    SPACE: -3.0, "a": -5.0, "b": -5.5, "c": -6.0, "d": -6.5, "f": -6.0, "i": -6.0, "ab": -7.0, "abc": -8.0,
    f"{SPACE}a": -4.5, f"{SPACE}ab": -6.5, "bc": -9.0, "cd": -9.5, "fi": -7.5, f"{SPACE}fi": -8.5, "bcd": -14.0,
}  # fmt: skip
TOKENS = ["<pad>", "</s>", "<unk>", *PIECES, "<x>", "[PAD20]", "[PAD21]"]
KINDS = [3, 3, 2, *[1] * len(PIECES), 4, 5, 5]
SCORES = [0.0, 0.0, 0.0, *PIECES.values(), -1000.0, -10000.0, -10000.0]
REPLACED = {"\uff21": "a", "\ufb01": "fi", "\t": " ", "\u3000": " "}


def compiled(replaced: dict[str, str]) -> bytes:
    """SentencePiece's map of characters: the size of a trie, a double array of u32, and the texts, each with a zero."""
    texts, array = b"", {}
    trie: dict = {}
    for key, value in replaced.items():
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[None] = len(texts)
        texts += value.encode() + b"\0"
    waiting, taken = [(0, trie, 0)], {0}
    while waiting:
        place, node, label = waiting.pop()
        # Children lie at an offset combined with their bytes, a value at the offset itself.
        offset = next(i for i in range(1, 1 << 20) if not {place ^ i ^ (byte or 0) for byte in node} & taken)
        array[place] = offset << 10 | (None in node) << 8 | label
        for byte, child in node.items():
            at = place ^ offset ^ (byte or 0)
            taken.add(at)
            if byte is None:
                array[at] = 1 << 31 | child
            else:
                waiting.append((at, child, byte))
    units = [array.get(i, 0) for i in range((max(array) | 255) + 1)]
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + texts


def tokenizer(writer) -> None:
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_scores(SCORES)
    writer.add_token_types(KINDS)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(True)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_precompiled_charsmap(compiled(REPLACED))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The GGUF file of an encoder with this tokenizer, and the file that it becomes, in one directory."""
    folder = tmp_path_factory.mktemp("unigram")
    convert(model_of("t5encoder", vocab_size=len(TOKENS)), "t5encoder", folder / "m.gguf", tokenizer=tokenizer)
    aibit.convert(folder / "m.gguf", folder / "m.aibit", scheme="keep")
    return folder


def best(text: str) -> float:
    """The greatest sum of scores of pieces that make a text; what is in no piece costs 10 more than the worst."""
    sums = [0.0]
    for end in range(1, len(text) + 1):
        ways = [sums[start] + PIECES[piece] for start in range(end) if (piece := text[start:end]) in PIECES]
        sums.append(max(ways) if text[end - 1] in PIECES else max([*ways, sums[end - 1] + min(PIECES.values()) - 10]))
    return sums[-1]


def normalized(text: str) -> str:
    for key, value in REPLACED.items():
        text = text.replace(key, value)
    return "".join(SPACE + word for word in text.split(" ") if word)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from([*"abcdfi z", *REPLACED]), max_size=12))
def test_a_text_is_cut_where_the_scores_are_best(files, text):
    found = aibit.load_tokenizer(files / "m.aibit")(text)["input_ids"]
    assert found[-1] == 1
    wanted, unknown, total = normalized(text), min(PIECES.values()) - 10, 0.0
    for piece in (TOKENS[i] for i in found[:-1]):
        if piece == "<unk>":  # of all characters up to the next piece
            while wanted and wanted[0] not in PIECES:
                wanted, total = wanted[1:], total + unknown
        else:
            assert wanted.startswith(piece)
            wanted, total = wanted[len(piece) :], total + PIECES[piece]
    assert not wanted and total == pytest.approx(best(normalized(text)))


@pytest.mark.parametrize("text", ["abc  abcd ", "\uff21b\t\ufb01 z z", "a<x>b", ""])
def test_llama_cpp_and_the_way_back_agree(files, text, tmp_path):
    ids = aibit.load_tokenizer(files / "m.aibit")(text)["input_ids"]
    after = written(files / "m.aibit", tmp_path / "b.gguf").metadata
    before = GGUFFile(str(files / "m.gguf")).metadata
    for key in (key for key in before if key.startswith("tokenizer.")):
        if key == "tokenizer.ggml.scores":  # that of the token which is matched as it is says nothing
            assert np.array_equal(np.delete(after[key], KINDS.index(4)), np.delete(before[key], KINDS.index(4)))
        else:
            assert np.array_equal(after[key], before[key]), key
    for path in (files / "m.gguf", tmp_path / "b.gguf"):
        running = server(path, encoder=True)
        if text:
            assert torch.equal(embedding(running, text), embedding(running, ids))


def test_a_map_that_is_no_bytes_is_refused():
    metadata = {
        "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.scores": np.array(SCORES, np.float32),
        "tokenizer.ggml.precompiled_charsmap": np.array([1, 2], np.int32),
    }  # fmt: skip
    with pytest.raises(SourceError, match="holds int32, bytes are needed"):
        unigram.to_tokenizer(Vocabulary(metadata, len(TOKENS)))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"normalizer": {"type": "NFKC"}}, "normalizer NFKC"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "is not base64"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "no such pre-tokenizer"),
        ({"pre_tokenizer": None}, "no such pre-tokenizer"),
    ],
)
def test_what_llama_cpp_has_not_is_refused(parts, message):
    plain = {"model": {"vocab": [["a", -1.0]]}, "pre_tokenizer": {"type": "Metaspace"}}
    assert unigram.to_metadata(plain, ["a"], [1])["ggml.scores"] == [-1.0]
    with pytest.raises(SourceError, match=message):
        unigram.to_metadata(plain | parts, ["a"], [1])


def test_the_way_that_t5_writes_its_tokenizer_is_known(files):
    """Its documents cut words at any space; the map makes spaces of all of them."""
    with aibit.open(files / "m.aibit") as file:
        document = json.loads(bytes(file.documents["tokenizer.json"]))
    (chars, *_) = document["normalizer"]["normalizers"]
    assert base64.b64decode(chars["precompiled_charsmap"]) == compiled(REPLACED)
    words = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, document["pre_tokenizer"]]}
    kinds = list(KINDS)
    values = unigram.to_metadata(document | {"normalizer": chars, "pre_tokenizer": words}, TOKENS, kinds)
    assert values["ggml.remove_extra_whitespaces"] and values["ggml.precompiled_charsmap"] == compiled(REPLACED)
    assert kinds == KINDS
