"""Models of SentencePiece without some pieces; where the library is installed, read by it."""

import numpy as np
import pytest

from aibit_format.container.vocabulary import Kept
from aibit_format.errors import SourceError
from aibit_format.formats.protobuf import fields
from aibit_format.transform.vocabulary.choose import Wanted, choose
from aibit_format.transform.vocabulary.sentencepiece import SentencePiece
from tests.support import pieces
from tests.support.pieces import SPACE


def kept_of(data, texts):
    model = SentencePiece("tokenizer.model", data)
    wanted = Wanted(ids=np.array([model.tokens[text] for text in texts], np.int64))
    return model, choose(model, len(model.tokens), wanted, (), 1).kept


def left(data):
    return list(SentencePiece("tokenizer.model", data).tokens)


def test_pieces_go_and_the_rest_stays_byte_for_byte():
    data = pieces.unigram()
    model, kept = kept_of(data, ["ab"])
    found = model.cut(kept)
    assert left(found) == ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", SPACE, "z"]  # spelled; z has the least score
    whole = [bytes(field.raw) for field in fields(data)]
    assert all(bytes(field.raw) in whole for field in fields(found) if field.number != 2)
    assert model.cut(Kept(np.arange(11, dtype=np.uint32), 11)) == data
    trainer = next(field.value for field in fields(found) if field.number == 2)
    assert {field.number: field.value for field in fields(trainer)} == {3: 1, 4: 9}


def test_what_a_piece_is_joined_from_is_kept():
    model, kept = kept_of(pieces.bpe(), [SPACE + "abc"])
    assert set(model.parts(SPACE + "abc")) == {SPACE, "a", "b", "c", "ab", "abc", SPACE + "abc"}
    assert left(model.cut(kept))[259:] == ["ab", "abc", SPACE + "abc", SPACE, "a", "b", "c"]
    assert not list(model.spelling(frozenset({"a"}))) and not list(model.parts("<0x41>"))


def test_special_ids_are_told_anew():
    data = pieces.model([("a", -1.0, 1), ("b", -2.0, 1), *pieces.SPECIAL], 1, _40=2, _41=3, _42=4)
    model = SentencePiece("m.model", data)
    trainer = next(
        field.value for field in fields(model.cut(Kept(np.arange(1, 5, dtype=np.uint32), 5))) if field.number == 2
    )
    assert {field.number: field.value for field in fields(trainer)} == {3: 1, 4: 4, 40: 1, 41: 2, 42: 3}


@pytest.mark.parametrize(("data", "message"), [
    (b"\x0a\x05ab", "no model of SentencePiece, or truncated"), (b"", "0 pieces of SentencePiece's type 1"),
    (pieces.model(pieces.SPECIAL, 3), "3 pieces of SentencePiece's type 3; Unigram .1. and BPE .2. are cut"),
])  # fmt: skip
def test_what_is_not_cut(data, message):
    with pytest.raises(SourceError, match=message):
        SentencePiece("tokenizer.model", data)


@pytest.mark.parametrize(
    ("data", "wanted"), [(pieces.unigram(), ["ab", SPACE + "a"]), (pieces.bpe(), [SPACE + "abc", "bc"])]
)
def test_the_library_makes_the_same_pieces_of_texts_whose_pieces_are_kept(data, wanted):
    library = pytest.importorskip("sentencepiece")
    before = library.SentencePieceProcessor(model_proto=data)
    for text in ("abc ab", "a b c", "cab abcbc", "ab ba zz", "bcab x\u00e9"):
        ids = before.encode(text)
        model, kept = kept_of(data, [*wanted, *(before.id_to_piece(i) for i in ids)])
        after = library.SentencePieceProcessor(model_proto=model.cut(kept))
        assert after.encode(text) == kept.new(ids).tolist()
        assert after.decode(after.encode(text)) == before.decode(ids)
