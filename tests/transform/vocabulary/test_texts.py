"""What tokenizers make of texts: counts, chat templates, and comparisons."""

import numpy as np
import pytest

from aibit_format.container.vocabulary import Kept
from aibit_format.errors import SourceError
from aibit_format.transform.vocabulary import texts
from aibit_format.transform.vocabulary.texts import Figures, check_same, compared, counted, of_template


class Words:
    """A tokenizer of characters."""

    def __init__(self, alphabet, template=None):
        self.alphabet, self.chat_template = alphabet, template

    def __call__(self, text, **_):
        return {"input_ids": [self.alphabet.find(char) for char in text if char in self.alphabet]}

    def convert_ids_to_tokens(self, ids):
        return [self.alphabet[i] for i in ids]

    def apply_chat_template(self, messages, chat_template, **_):
        if messages[0]["role"] == "system":
            raise ValueError("no system")
        return "".join(message["role"][0] for message in messages)


def test_tokens_are_counted_in_pieces_of_a_text(monkeypatch):
    monkeypatch.setattr(texts, "_PIECE", 3)
    found = list(texts._pieces("ab\ncd\n\nef\ngh"))
    assert found == ["ab\ncd\n\n", "ef\ngh"] and "".join(found) == "ab\ncd\n\nef\ngh"
    assert counted(Words("abc"), ["abba", "c\nab"], 2).tolist() == [3, 3]  # c is beyond the rows


def test_tokens_of_templates():
    template = "x{% if m['role'] == 'p\\n' %}{{ \"q\" }}{# no #}{% endif %}"
    assert of_template(Words("abcxpqmr\nu", template)) == set(map("abcxpqmr\nu".find, "xpq\nrua")) | {7}
    assert of_template(Words("abc")) == set()
    assert of_template(Words("abcu", {"one": "b", "two": "{% broken"})) == {0, 1, 3}


def test_texts_are_lines():
    kept = Kept(np.array([0, 2], np.uint32), 3)
    found = compared(Words("abc"), Words("ac"), kept, ["ac a\n\n  \nab", "c"])
    assert found == Figures(words=4, tokens_before=6, tokens_after=5, texts=3, changed=1)


def test_tokens_with_other_ids_than_the_document_says():
    kept = Kept(np.array([0, 2], np.uint32), 3)
    check_same(Words("abc"), Words("ac"), kept, "m")
    with pytest.raises(SourceError, match="m: the tokenizer cannot be cut: token 'c' with id 2 would become 'b'"):
        check_same(Words("abc"), Words("ab"), kept, "m")
