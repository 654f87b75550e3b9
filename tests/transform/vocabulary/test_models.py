"""Models of tokenizers with fewer tokens: texts whose tokens are all kept keep them, whatever is left out."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from aibit_format.errors import SourceError
from aibit_format.transform.vocabulary.choose import Wanted, choose
from aibit_format.transform.vocabulary.models import joined_from, model_of
from aibit_format.transform.vocabulary.tokenizer_json import TokenizerJson
from tests.support import vocabularies
from tests.support.vocabularies import KINDS, ROWS, STRANGE, TEXT

LINES = [line for line in TEXT.splitlines() if line.strip()][:200]
WORDS = sorted({word for line in LINES for word in line.split()})


def both(kind, ids, multiple=1):
    """The tokenizer of a kind, the one that is cut from it, and the map."""
    document = vocabularies.document(kind)
    tokenizer = TokenizerJson(document.encode())
    kept = choose(tokenizer, ROWS, Wanted(ids=np.array(ids, np.int64)), (), multiple).kept
    return Tokenizer.from_str(document), Tokenizer.from_str(tokenizer.cut(kept).decode()), kept


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_ids_of_texts_whose_tokens_are_kept_are_the_map_of_the_old_ones(kind, data):
    text = " ".join(data.draw(st.lists(st.sampled_from([*WORDS, STRANGE]), min_size=1, max_size=12)))
    others = data.draw(st.lists(st.integers(0, vocabularies.size(kind) - 1), max_size=40))
    before = Tokenizer.from_str(vocabularies.document(kind)).encode(text)
    old, new, kept = both(kind, [*before.ids, *others])
    after = new.encode(text)
    assert after.ids == kept.new(before.ids).tolist() and after.tokens == before.tokens
    assert new.decode(after.ids) == old.decode(before.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_are_spelled_with_what_is_left(kind):
    old, new, kept = both(kind, Tokenizer.from_str(vocabularies.document(kind)).encode("the option").ids)
    assert len(kept.ids) < 500
    unknown = new.token_to_id("<unk>")
    for line in LINES[:40]:
        found, before = new.encode(line), old.encode(line)
        assert found.ids != kept.new(before.ids).tolist() or found.tokens == before.tokens
        if kind in ("byte-level", "byte-fallback", "unigram-bytes"):
            assert unknown not in found.ids and new.decode(found.ids) == old.decode(before.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_kept_is_the_same_tokenizer(kind):
    old, new, kept = both(kind, range(vocabularies.size(kind)))
    assert json.loads(new.to_str()) == json.loads(old.to_str())
    assert kept.ids.tolist() == list(range(vocabularies.size(kind)))


def test_without_the_parts_of_a_token_its_text_would_fall_apart():
    model = model_of(json.loads(vocabularies.document("byte-level")))
    longest = max(model.tokens, key=len)
    parts = list(model.parts(longest))
    assert set(longest) < set(parts) and longest in parts and all(part in model.tokens for part in parts)
    ids = {model.tokens[longest]}
    left = model.cut({i: place for place, i in enumerate(sorted(ids))})
    assert left["vocab"] == {longest: 0} and left["merges"] == []


def test_pairs_are_joined_by_rank_and_the_leftmost_first():
    ranks = {("a", "a"): 1, ("aa", "aa"): 2, ("a", "b"): 0}
    assert set(joined_from(list("aaaa"), ranks.get, "".join, "aaaa")) == {"a", "aa", "aaaa"}
    assert joined_from(list("aaab"), ranks.get, "".join, "aaab") == ()  # aa and ab are never joined
    assert set(joined_from(["a"], ranks.get, "".join, "a")) == {"a"}


def test_prefixes_and_suffixes_of_words_belong_to_characters():
    words = {"l": 0, "o</w>": 1, "lo</w>": 2, "##l": 3, "##o": 4, "##lo": 5, "llo": 6}
    clip = model_of(
        {"model": {"type": "BPE", "vocab": words, "merges": [["l", "o</w>"]], "end_of_word_suffix": "</w>"}}
    )
    assert set(clip.parts("lo</w>")) == {"l", "o</w>", "lo</w>"}
    merges = ["##l ##o", "l ##lo"]
    inner = model_of({"model": {"vocab": words, "merges": merges, "continuing_subword_prefix": "##"}})
    assert set(inner.parts("##lo")) == {"##l", "##o", "##lo"} and set(inner.parts("llo")) == {
        "l",
        "##l",
        "##o",
        "##lo",
        "llo",
    }
    assert inner.cut({3: 0, 4: 1, 5: 2})["merges"] == ["##l ##o"]  # as older files write them


def test_the_least_score_of_unigram_stays_as_it_is_what_unknown_costs():
    model = model_of({"model": {"type": "Unigram", "unk_id": 1, "vocab": [["a", -1.0], ["<unk>", 0.0], ["b", -9.0]]}})
    assert sorted(model.always) == [1, 2]
    assert model.cut({1: 0, 2: 1}) == {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["b", -9.0]]}
    with pytest.raises(SourceError, match="does not come first"):
        model.cut({1: 0, 2: 5})


@pytest.mark.parametrize(("document", "message"), [
    ({"model": {"type": "Strange"}}, "a model of kind 'Strange' cannot be cut; BPE, Unigram, WordPiece, WordLevel can"),
    ([], "a model of kind None cannot be cut"),
    ({"model": {"type": "BPE", "vocab": [1]}}, "no object of tokens and ids"),
    ({"model": {"type": "Unigram", "vocab": {"a": 1}}}, "no list of pieces and scores"),
])  # fmt: skip
def test_what_is_no_model(document, message):
    with pytest.raises(SourceError, match=message):
        model_of(document).tokens  # noqa: B018


def test_what_is_no_merge():
    with pytest.raises(SourceError, match="a merge is no pair"):
        model_of({"model": {"type": "BPE", "vocab": {}, "merges": [["a"]]}}).merges  # noqa: B018
