"""Samples of texts: which tokens they have, and what is said when there are too few."""

from __future__ import annotations

import numpy as np
import pytest
import transformers

from aibit_format.calibrate import text
from aibit_format.errors import SourceError
from aibit_format.formats.sources import open_source

HELDOUT = "heldout.txt"


@pytest.fixture
def llama(fixtures):
    return open_source(fixtures / "models" / "tiny-llama")


@pytest.fixture
def tokens(fixtures):
    """All tokens of the text, without those around it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(fixtures / "models" / "tiny-llama")
    return tokenizer((fixtures / "models" / HELDOUT).read_text("utf-8"), add_special_tokens=False)["input_ids"]


def test_samples_are_pieces_of_the_text_that_do_not_overlap(llama, fixtures, tokens):
    read = text.read([str(fixtures / "models" / HELDOUT)])
    found = text.samples(llama, read, 10, 50)
    before, _ = text._around(text.tokenizer_of(llama, ""))
    inner = 50 - len(before)
    pieces = [tokens[i : i + inner] for i in range(0, len(tokens), inner)]
    places = [pieces.index(row[len(before) :].tolist()) for row in found.ids]
    assert places == sorted(set(places)) and found.tokens == 500
    assert all(row[: len(before)].tolist() == before for row in found.ids)
    assert not np.array_equal(found.ids, text.samples(llama, read, 10, 50, seed=1).ids)
    assert np.array_equal(found.ids, text.samples(llama, read, 10, 50, seed=0).ids)


def test_a_text_that_is_too_short_is_an_error_with_numbers(llama, tmp_path):
    (tmp_path / "t.txt").write_text("A few words only. " * 40)
    read = text.read([str(tmp_path / "t.txt")])
    with pytest.raises(SourceError, match=r"t\.txt: too short: \d+ tokens are \d samples of 50 tokens, and 100 are"):
        text.samples(llama, read, None, 50)
    with pytest.raises(SourceError, match="0 samples of 256 tokens, and 3 are wanted: give more text, or --length"):
        text.samples(llama, text.Text(("t.txt",), ("word",), ""), 3, 256)


def test_samples_that_the_model_does_not_take(llama):
    with pytest.raises(SourceError, match="samples of 300 tokens, and the model takes 256: --length 256"):
        text.samples(llama, text.read([]), 3, 300, longest=256)
    assert text.samples(llama, text.read([]), 3, longest=256).ids.shape == (3, 256)


def test_the_default_text_gives_as_many_samples_as_it_has(llama):
    read = text.read([])
    assert read.is_default and read.names == ("default_text.txt",)
    assert len(text.samples(llama, read, length=64).ids) == 100
    assert 10 < len(text.samples(llama, read, length=256).ids) < 100
    with pytest.raises(SourceError, match="too short"):
        text.samples(llama, read, 100, 256)


def test_the_default_text_is_not_what_models_are_judged_by(fixtures):
    ours, theirs = text.read([]).parts[0], (fixtures / "models" / HELDOUT).read_text("utf-8")
    assert not set(filter(lambda line: len(line) > 20, ours.splitlines())) & set(theirs.splitlines())


def test_digests_are_of_all_texts_in_their_order(tmp_path):
    for name, words in (("a", "one"), ("b", "two"), ("c", "onetwo")):
        (tmp_path / name).write_text(words)
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert len({text.read(paths).digest for paths in ([a, b], [b, a], [c], [a])}) == 4


def test_a_text_that_is_no_utf8_or_not_there(tmp_path):
    (tmp_path / "t").write_bytes(b"abc\xff")
    with pytest.raises(SourceError, match="no UTF-8 at byte 3"):
        text.read([str(tmp_path / "t")])
    with pytest.raises(SourceError):
        text.read([str(tmp_path / "none")])


def test_what_the_tokenizer_puts_around_a_text_is_around_every_sample(tmp_path):
    words = {f"w{i}": i + 4 for i in range(20)} | {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 24}
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    assert text._around(tokenizer) == ([2], [3])
