"""Texts to ids and back by a file's tokenizer, as transformers' own gives them."""

from __future__ import annotations

import pytest

import aibit_format as aibit
from aibit_format.errors import LoadError
from aibit_format.file import rewrite
from aibit_format.torch.graph.text import Texts
from tests.support.graphs import converted


@pytest.fixture(scope="module")
def path(tmp_path_factory, fixtures):
    """The fixture Llama, converted."""
    file = tmp_path_factory.mktemp("texts") / "m.aibit"
    aibit.convert(fixtures / "models" / "tiny-llama", file)
    return file


def test_texts_are_transformers(path):
    texts, tokenizer = Texts(aibit.open(path)), aibit.load_tokenizer(path)
    for text in ("The queue is empty.", "a\n\tb", "äöü 😀", ""):
        ids = texts.encode(text)
        assert ids == tokenizer(text).input_ids
        assert texts.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_file_without_one_says_so(path, tmp_path):
    converted("llama", tmp_path)
    with pytest.raises(LoadError, match=r"holds no tokenizer\.json; run it without --graph"):
        Texts(aibit.open(tmp_path / "m.aibit"))


def test_one_that_cannot_be_read_is_an_error_of_ours(path, tmp_path):
    rewrite.edit(path, tmp_path / "n.aibit", documents={"tokenizer.json": b'{"model": 1}'})
    with pytest.raises(LoadError, match=r"tokenizer\.json cannot be read"):
        Texts(aibit.open(tmp_path / "n.aibit"))
