"""Scripts of texts and languages."""

import unicodedata

import pytest

from aibit_format.errors import RecipeError
from aibit_format.transform.vocabulary.scripts import LANGUAGES, SCRIPTS, chosen, is_written_in, script_of


@pytest.mark.parametrize(("char", "script"), [
    ("a", "latin"), ("\u00e9", "latin"), ("\u0416", "cyrillic"), ("\u6f22", "han"), ("\u3042", "hiragana"),
    ("\u30a2", "katakana"), ("\ud55c", "hangul"), ("\u05d0", "hebrew"), ("\u0639", "arabic"), ("\u0e01", "thai"),
    ("\uff41", "latin"), ("\uff71", "katakana"), ("\u16a0", "other"), ("1", None), (" ", None), ("\U0001f600", None),
    ("\u0301", None), ("\u2581", None), ("\u1780", "khmer"),
])  # fmt: skip
def test_scripts_of_characters(char, script):
    assert script_of(char) == script


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_letters(script):
    assert any(script_of(chr(code)) == script for code in range(0x20000) if unicodedata.category(chr(code))[0] == "L")


def test_texts():
    latin = frozenset({"latin"})
    assert is_written_in("a b, 12!", latin) and is_written_in("", latin) and not is_written_in("a\u0416", latin)
    assert is_written_in("a\u0416", frozenset({"latin", "cyrillic"}))


def test_languages_stand_for_their_scripts():
    assert chosen(["Latin"], ["ja", "RU"]) == {"latin", "hiragana", "katakana", "han", "cyrillic"}
    assert all(script in SCRIPTS for scripts in LANGUAGES.values() for script in scripts)
    with pytest.raises(RecipeError, match="unknown language 'klingon'; known: af, am"):
        chosen([], ["klingon"])
    with pytest.raises(RecipeError, match="unknown script 'runes'"):
        chosen(["runes"])
