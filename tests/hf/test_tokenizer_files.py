"""Documents that make a tokenizer."""

from __future__ import annotations

import ast
import json
import pathlib

import transformers

from aibit_format.container.documents import WANTED
from aibit_format.hf.tokenizer_files import WITHOUT_VOCABULARY, vocabularies, why_no_tokenizer

MODELS = pathlib.Path(transformers.__file__).parent / "models"


def _named_by_transformers() -> set[str]:
    """File names in transformers' tables, from its source: many of its classes need libraries to be imported."""
    found: set[str] = set()
    for path in MODELS.glob("*/tokenization_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                names = {getattr(target, "id", "") for target in node.targets}
                if names & {"VOCAB_FILES_NAMES", "vocab_files_names"}:
                    values = [value for value in node.value.values if isinstance(value, ast.Constant)]
                    found |= {str(value.value) for value in values}
    return found


def test_every_file_that_a_tokenizer_of_transformers_reads_is_a_document():
    names = _named_by_transformers()
    assert {"source.spm", "bpe.codes", "spiece.model", "vocab.json"} <= names
    assert not [name for name in names if not WANTED.fullmatch(name)]


def test_tokenizers_without_a_file_are_known():
    for name in WITHOUT_VOCABULARY:
        family = getattr(transformers, name)
        assert not family.vocab_files_names
        assert why_no_tokenizer({"tokenizer_config.json": json.dumps({"tokenizer_class": name}).encode()}) is None
    assert why_no_tokenizer({"tokenizer_config.json": b'{"tokenizer_class": "LlamaTokenizer"}'}) is not None


def test_what_makes_a_tokenizer():
    assert vocabularies({"merges.txt": b"", "vocab.json": b"", "qwen.tiktoken": b""}) == ["vocab.json", "qwen.tiktoken"]
    assert why_no_tokenizer({"spiece.model": b""}) is None
    assert why_no_tokenizer({"config.json": b"{}"}) == "holds no tokenizer"
    assert why_no_tokenizer({"gguf.json": b'{"aibit.no_tokenizer": "x is unknown"}'}) == (
        "holds no tokenizer: x is unknown"
    )
