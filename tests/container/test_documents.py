"""Documents, and which are refused."""

from __future__ import annotations

import json

import pytest

from aibit_format.container import documents
from aibit_format.errors import FormatError


@pytest.mark.parametrize(
    "text", [b"{", b'{"a": 1, "a": 2}', b"\xff", b"[" * 99_999, b'{"a": NaN}', b"[" * 70 + b"]" * 70]
)
def test_a_document_that_is_not_json_is_refused(text):
    with pytest.raises(FormatError) as caught:
        documents.check("config.json", text)
    assert caught.value.code == "AIB-E705"


def test_vocabularies_may_hold_any_word():
    tokens = json.dumps({"auto_map": 5}).encode()
    documents.check("vocab.json", tokens)
    assert documents.clean("vocab.json", tokens) == (tokens, [])
