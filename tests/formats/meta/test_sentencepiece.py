"""SentencePiece models, written by hand and by the library."""

from __future__ import annotations

import io
import json

import pytest
import tokenizers

from aibit_format.errors import SourceError
from aibit_format.formats.meta.sentencepiece import sentencepiece_documents
from tests.support.makers import field, sentencepiece

SPACE = "\u2581"
PIECES = ["he", "ll", "hell", "hello", f"{SPACE}t", f"{SPACE}the", f"{SPACE}th", SPACE, *"helo tmpés", "in"]
SENTENCES = ["hello the thing is here and there", "in hell the café has things", "日本語 hello"] * 50
TEXTS = ["hello the thing", "  in  hell, the café's 12345 things\n\n", "", " he", "日本語 hello\t there"]


def made(data: bytes, rows: int = 1000) -> tuple[tokenizers.Tokenizer, dict, dict]:
    documents, ends = sentencepiece_documents(data, rows, "x/tokenizer.model")
    found = tokenizers.Tokenizer.from_str(documents["tokenizer.json"].decode())
    return found, json.loads(documents["tokenizer_config.json"]), ends


def test_pieces_are_joined_in_the_order_of_their_scores():
    found, config, ends = made(sentencepiece(PIECES))
    assert found.encode("hello the").tokens == ["<s>", f"{SPACE}", "hello", f"{SPACE}the"]
    assert found.encode("\u00fc").tokens == ["<s>", SPACE, "<0xC3>", "<0xBC>"]
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert ends == {"bos_token_id": 1, "eos_token_id": 2}


def test_settings_of_the_model_are_followed():
    found, config, ends = made(sentencepiece(PIECES, 2, field(3, 0) + field(4, 0), field(41, -1) + field(42, 1)))
    assert found.encode("hello").tokens == ["hello"]
    assert ends == {"eos_token_id": 1}
    assert (config["eos_token"], config["unk_token"]) == ("<s>", "<unk>")


def test_ids_are_those_of_the_library():
    library = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed (pip install sentencepiece)")
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=320, model_type="bpe", byte_fallback=True,
        remove_extra_whitespaces=False, normalization_rule_name="identity", hard_vocab_limit=False, minloglevel=9,
    )  # fmt: skip
    theirs, (found, _, _) = library.SentencePieceProcessor(model_proto=model.getvalue()), made(model.getvalue())
    for text in TEXTS:
        assert found.encode(text).ids == [1, *theirs.encode(text)]


GOOD = sentencepiece(PIECES)
DAMAGE = [
    (GOOD[:-3], "no SentencePiece model, or truncated"),
    (b"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "a number at byte 1 without end"),
    (b"\n\xff\xff\xff\xff\x7f", "field 1 of kind 2"),
    (b"\x0b", "field 1 of kind 3"),
    (b"", "0 pieces"),
    (field(1, 5), "a number in the place of a message"),
    (field(1, field(1, 1 << 60)), "a number in the place of text"),
    (field(1, field(2, 1.0)), "no SentencePiece model"),
    (field(1, field(1, b"\xff")), "can't decode byte 0xff"),
    (field(1, field(1, b"a" * 2000)), "too long"),
    (field(1, field(1, b"a") + field(3, 1 << 62)), "unknown kind"),
    (sentencepiece(PIECES, 1), r"SentencePiece of type 1 that changes text"),
    (sentencepiece(PIECES, 2, field(4, 1)), "changes text before it cuts it"),
    (sentencepiece(PIECES, 2, field(2, b"map") + field(4, 0)), "changes text before it cuts it"),
    (sentencepiece(PIECES, 2, field(4, 0), field(41, 1 << 40)), r"bos_token_id is 1099511627776, there are 278 tokens"),
    (sentencepiece(PIECES * 60), r"has 1399 tokens, the embeddings 1000 rows"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), DAMAGE, ids=[message[:30] for _, message in DAMAGE])
def test_what_is_damaged_is_refused(data, message):
    with pytest.raises(SourceError, match=message) as caught:
        made(data)
    assert "x/tokenizer.model" in str(caught.value)
