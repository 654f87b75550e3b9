"""Tokenizers go out as GGUF."""

from __future__ import annotations

import json
import shutil

import pytest
import transformers

import aibit_format as aibit
from aibit_format.errors import WriteError
from aibit_format.formats.gguf.file import GGUFFile
from tests.support.gguf_models import SPM, merged, written
from tests.support.gguf_models import models as models
from tests.support.gguf_models import spm as spm

transformers.utils.logging.disable_progress_bar()
TEXTS = [
    "If the queue is not required, it is returned.",
    "  two spaces,\n\n\t a tab and l'\u00e9t\u00e9 \u4f60\u597d \U0001f999 12345 don't",
    "<|user|>hi<|assistant|></s> <s>x <|endoftext|>",
    "",
]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_a_real_tokenizer_comes_back(name, fixtures, tmp_path):
    folder = fixtures / "models" / name
    aibit.convert(folder, tmp_path / "m.aibit")
    file = written(tmp_path / "m.aibit", tmp_path / "m.gguf", type="f16")
    assert file.metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert file.metadata["tokenizer.ggml.add_bos_token"] == (name == "tiny-llama")
    aibit.convert(tmp_path / "m.gguf", tmp_path / "b.aibit")
    found, original = aibit.load_tokenizer(tmp_path / "b.aibit"), aibit.load_tokenizer(tmp_path / "m.aibit")
    library = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        ids = original(text)["input_ids"]
        assert found(text)["input_ids"] == ids and found.decode(ids) == original.decode(ids)
        assert found.decode(ids, skip_special_tokens=True) == original.decode(ids, skip_special_tokens=True)
    assert library(TEXTS[1])["input_ids"] == found(TEXTS[1])["input_ids"]
    assert found.special_tokens_map == original.special_tokens_map and len(found) == len(original)
    assert found.chat_template == original.chat_template
    end = original.eos_token
    assert (tmp_path / "Modelfile").read_text() == f'FROM ./m.gguf\nPARAMETER stop "{end}"\n'


def test_a_list_of_chat_templates_goes_out_whole(fixtures, tmp_path):
    """Older configs hold it; transformers, and gguf-py, know the templates by name."""
    folder = shutil.copytree(fixtures / "models" / "tiny-llama", tmp_path / "hf")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": "{{ 1 }}"}, {"name": "tool_use", "template": "{{ 2 }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    aibit.convert(folder, tmp_path / "m.aibit")
    found = written(tmp_path / "m.aibit", tmp_path / "m.gguf", type="f16").metadata
    templates = aibit.load_tokenizer(tmp_path / "m.aibit").chat_template
    assert found["tokenizer.chat_template"] == templates["default"] == "{{ 1 }}"
    assert found["tokenizer.chat_template.tool_use"] == templates["tool_use"] == "{{ 2 }}"
    assert found["tokenizer.chat_templates"] == ["tool_use"]


def test_the_chat_template_of_a_processor_goes_out(fixtures, tmp_path):
    folder = shutil.copytree(fixtures / "models" / "tiny-gpt2", tmp_path / "hf")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 3 }}"}))
    aibit.convert(folder, tmp_path / "m.aibit")
    found = written(tmp_path / "m.aibit", tmp_path / "m.gguf", type="f16").metadata
    assert found["tokenizer.chat_template"] == "{{ 3 }}"


def test_a_tokenizer_that_cannot_go_out_is_an_error_and_the_message_says_how_it_can(fixtures, tmp_path):
    folder = shutil.copytree(fixtures / "models" / "tiny-gpt2", tmp_path / "hf")
    rules = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(rules["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in rules["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    aibit.convert(folder, tmp_path / "m.aibit")
    with pytest.raises(WriteError, match=r"vocab\.json, .*aibit edit") as caught:
        written(tmp_path / "m.aibit", tmp_path / "m.gguf", type="f16")
    assert "save_pretrained" in str(caught.value) and not (tmp_path / "m.gguf").exists()
    slow = aibit.load_tokenizer(tmp_path / "m.aibit")  # and now as the message says
    slow.save_pretrained(tmp_path / "again")
    document = {"tokenizer.json": tmp_path / "again" / "tokenizer.json"}
    aibit.edit(tmp_path / "m.aibit", tmp_path / "e.aibit", documents={n: p.read_bytes() for n, p in document.items()})
    tokens = written(tmp_path / "e.aibit", tmp_path / "m.gguf", type="f16").metadata["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in slow("the queue")["input_ids"]] == slow.tokenize("the queue")


def test_sentencepiece_special_tokens_templates_and_the_way_back(spm, tmp_path):
    path, scores, tokenizer = spm
    library = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in ("abc abc de", "a cde\u00e9fgh", "abcd  abc"):
        assert tokenizer(text)["input_ids"] == library(text)["input_ids"]
    # A space before each piece of text between special tokens, as llama.cpp has it.
    assert tokenizer("a<|x|>b</s>")["input_ids"] == [1, *merged("\u2581a", scores), 268, *merged("\u2581b", scores), 2]
    assert tokenizer.chat_template == {"default": "{{ a }}", "tool_use": "{{ b }}"}
    file, before = written(path.with_suffix(".aibit"), tmp_path / "b.gguf"), GGUFFile(str(path))
    size = len(SPM)
    for key in ("tokens", "token_type"):
        assert list(file.metadata[f"tokenizer.ggml.{key}"])[:size] == list(before.metadata[f"tokenizer.ggml.{key}"])
    assert file.metadata["tokenizer.ggml.tokens"][size:] == [f"[PAD{i}]" for i in range(size, size + 3)]
    for key in ("ggml.model", "ggml.bos_token_id", "ggml.unknown_token_id", "chat_template", "chat_template.tool_use"):
        assert file.metadata[f"tokenizer.{key}"] == before.metadata[f"tokenizer.{key}"], key
    aibit.convert(tmp_path / "b.gguf", tmp_path / "b.aibit", scheme="keep")
    again = aibit.load_tokenizer(tmp_path / "b.aibit")
    for text in [*TEXTS, "abcde fgh ab"]:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
