"""Gemma 4's tokenizer: merges as listed, of characters, with a symbol for spaces and tokens for bytes."""

from __future__ import annotations

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.formats.gguf.file import GGUFFile
from tests.support.gguf_conversion import convert, llama_cpp, model_of, server
from tests.support.gguf_models import written

SPACE = "\u2581"
TOKENS = [
    "<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256)), SPACE, *"abc\n", "\n\n", "ab",
    f"{SPACE}a", f"{SPACE}ab", "bc", "<|x>",
]  # fmt: skip
MERGES = ["\n \n", "b c", "a b", f"{SPACE} a", f"{SPACE} ab", f"{SPACE}a b"]
WANTED = {
    "abc ab": ["a", "bc", f"{SPACE}ab"], "b\n\na<|x> bc": ["b", "\n\n", "a", "<|x>", SPACE, "bc"],
    "\u00e9  a": ["<0xC3>", "<0xA9>", SPACE, f"{SPACE}a"],
}  # fmt: skip


def tokenizer(writer) -> None:
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types([3, 3, 3, 2, *[6] * 256, *[1] * 10, 4])
    writer.add_token_merges(MERGES)
    adders = (writer.add_pad_token_id, writer.add_eos_token_id, writer.add_bos_token_id, writer.add_unk_token_id)
    for i, add in enumerate(adders):
        add(i)
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma4")
    model = model_of("gemma4", vocab_size=len(TOKENS), vocab_size_per_layer_input=len(TOKENS))
    convert(model, "gemma4", folder / "m.gguf", tokenizer=tokenizer)
    aibit.convert(folder / "m.gguf", folder / "m.aibit", scheme="keep")
    return folder


def test_texts_are_cut_by_the_merges_and_the_tokenizer_goes_out_as_it_came(files, tmp_path):
    found = aibit.load_tokenizer(files / "m.aibit")
    for text, pieces in WANTED.items():
        assert found.convert_ids_to_tokens(found(text)["input_ids"]) == ["<bos>", *pieces]
    after = written(files / "m.aibit", tmp_path / "b.gguf").metadata
    for key, value in GGUFFile(str(files / "m.gguf")).metadata.items():
        if key.startswith("tokenizer.") and key != "tokenizer.ggml.scores":
            assert np.array_equal(after[key], value), key


@pytest.mark.parametrize("text", WANTED)
def test_llama_cpp_cuts_them_so(files, text):
    running, ids = server(files / "m.gguf"), aibit.load_tokenizer(files / "m.aibit")(text)["input_ids"]
    assert llama_cpp(running, text, 1) == llama_cpp(running, ids, 1)
