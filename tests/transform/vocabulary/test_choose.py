"""Which tokens are kept: what is wanted and what has to stay, up to a multiple of rows."""

import numpy as np
import pytest

from aibit_format.errors import RecipeError
from aibit_format.transform.vocabulary.choose import Wanted, choose
from aibit_format.transform.vocabulary.tokenizer_json import TokenizerJson
from tests.support import vocabularies
from tests.support.vocabularies import ROWS, TOKENS


@pytest.fixture(scope="module")
def tokenizer():
    return TokenizerJson(vocabularies.document("byte-level").encode())


def counts(**numbers):
    found = np.zeros(ROWS, np.int64)
    for key, number in numbers.items():
        found[int(key[1:])] = number
    return found


def test_counts_and_coverage(tokenizer):
    some = counts(_300=50, _301=40, _302=9, _303=1)
    always = set(tokenizer.always)

    def wanted(**arguments):
        return set(choose(tokenizer, ROWS, Wanted(some, **arguments), (), 1).kept.ids.tolist()) & {300, 301, 302, 303}

    assert wanted() == {300, 301, 302, 303} and wanted(min_count=2) == {300, 301, 302}
    assert (
        wanted(coverage=0.5) == {300}
        and wanted(coverage=0.51) == {300, 301}
        and wanted(coverage=0.99) == {300, 301, 302}
    )
    assert not {300, 301, 302, 303} & always


def test_what_always_stays(tokenizer):
    chosen = choose(tokenizer, ROWS, Wanted(ids=np.array([300])), [310], 1)
    kept = set(chosen.kept.ids.tolist())
    assert {0, 1, 2, 300, 310, TOKENS - 1} < kept and len(kept) >= 256 + 6
    assert chosen.reasons["special"] == 3 + 256 + 1 + 1 and chosen.reasons["ids"] == 1
    assert sum(chosen.reasons.values()) == len(kept) and chosen.kept.size == ROWS


def test_rows_are_filled_up_with_frequent_tokens_then_the_lowest_then_those_without_a_token(tokenizer):
    some = counts(_300=50, _301=3)
    chosen = choose(tokenizer, ROWS, Wanted(some, min_count=9), (), 64)
    kept = chosen.kept.ids.tolist()
    assert len(kept) == 320 and 301 in kept and chosen.reasons["padding"] == 320 - len(kept) + chosen.reasons["padding"]
    rest = [i for i in range(TOKENS) if i not in kept]
    assert max(kept) == TOKENS - 1 and min(rest) > 259
    everything = choose(tokenizer, ROWS, Wanted(ids=np.arange(TOKENS)), (), 64)
    assert everything.kept.ids.tolist() == list(range(ROWS))
    assert len(choose(tokenizer, TOKENS + 1, Wanted(ids=np.arange(TOKENS)), (), 64).kept.ids) == TOKENS + 1


def test_every_token_that_fills_up_can_be_made(tokenizer):
    kept = choose(tokenizer, ROWS, Wanted(ids=np.array([300])), (), 64).kept.ids.tolist()
    names = {i: token for token, i in tokenizer.tokens.items()}
    assert all(tokenizer.tokens[part] in kept for i in kept for part in tokenizer.parts(names[i]))


def test_scripts(tokenizer):
    chosen = choose(tokenizer, ROWS, Wanted(scripts=frozenset({"latin"})), (), 1)
    assert TOKENS - 20 < len(chosen.kept.ids) <= TOKENS  # the text is English
    fewer = choose(tokenizer, ROWS, Wanted(scripts=frozenset({"greek"})), (), 1)
    assert len(fewer.kept.ids) < 300


def test_ids_beyond(tokenizer):
    for bad in (-1, ROWS):
        with pytest.raises(RecipeError, match=f"id {bad} is beyond the table of {ROWS} rows, 0 to {ROWS - 1}"):
            choose(tokenizer, ROWS, Wanted(ids=np.array([3, bad])))


def test_bounds():
    for arguments in ({"min_count": 0}, {"coverage": 0.0}, {"coverage": 1.1}):
        with pytest.raises(RecipeError, match="a least count of"):
            Wanted(ids=np.array([1]), **arguments)
