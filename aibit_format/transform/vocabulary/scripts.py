"""Tells in which scripts a text is written, and which scripts languages are written in.

Python knows of a character only its name, which begins with its script: LATIN SMALL LETTER A. Only letters and marks
have one here; digits, punctuation, symbols and spaces belong to all.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from ...errors import RecipeError

# Names of scripts as users write them -> first words of the names of their characters.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "arabic": ("ARABIC",), "armenian": ("ARMENIAN",), "bengali": ("BENGALI",), "cyrillic": ("CYRILLIC",),
    "devanagari": ("DEVANAGARI",), "ethiopic": ("ETHIOPIC",), "georgian": ("GEORGIAN",), "greek": ("GREEK",),
    "gujarati": ("GUJARATI",), "gurmukhi": ("GURMUKHI",), "han": ("CJK", "IDEOGRAPHIC", "KANGXI", "BOPOMOFO"),
    "hangul": ("HANGUL",), "hebrew": ("HEBREW",), "hiragana": ("HIRAGANA",), "kannada": ("KANNADA",),
    "katakana": ("KATAKANA", "KATAKANA-HIRAGANA"), "khmer": ("KHMER",), "lao": ("LAO",),
    "latin": ("LATIN", "FEMININE", "MASCULINE"), "malayalam": ("MALAYALAM",), "mongolian": ("MONGOLIAN",),
    "myanmar": ("MYANMAR",), "oriya": ("ORIYA",), "sinhala": ("SINHALA",), "tamil": ("TAMIL",),
    "telugu": ("TELUGU",), "thai": ("THAI",), "tibetan": ("TIBETAN",),
}  # fmt: skip
# Codes of ISO 639-1, by the scripts that the languages are written in.
_WRITTEN = {
    "latin": "af az bs ca cs cy da de en eo es et eu fi fr ga gl ha hr hu id is it la lt lv ms mt nl no pl pt ro sk sl "
             "so sq sv sw tl tr uz vi yo zu",
    "cyrillic": "be bg kk ky mk mn ru sr tg uk", "arabic": "ar fa ku ps ur", "devanagari": "hi mr ne sa",
    "hebrew": "he yi", "greek": "el", "armenian": "hy", "georgian": "ka", "bengali": "as bn", "gurmukhi": "pa",
    "gujarati": "gu", "oriya": "or", "tamil": "ta", "telugu": "te", "kannada": "kn", "malayalam": "ml",
    "sinhala": "si", "thai": "th", "lao": "lo", "tibetan": "bo dz", "myanmar": "my", "khmer": "km", "ethiopic": "am ti",
    "han": "zh", "hiragana katakana han": "ja", "hangul han": "ko",
}  # fmt: skip
LANGUAGES = {code: tuple(scripts.split()) for scripts, codes in _WRITTEN.items() for code in codes.split()}
_OF_WORD = {word: script for script, words in SCRIPTS.items() for word in words}


def chosen(scripts: Sequence[str], languages: Sequence[str] = ()) -> frozenset[str]:
    """Return the scripts that users name, themselves or by languages.

    Raises:
        RecipeError: one is unknown.
    """
    for what, names, known in (("script", scripts, SCRIPTS), ("language", languages, LANGUAGES)):
        for name in names:
            if name.lower() not in known:
                raise RecipeError(f"unknown {what} {name!r}; known: {', '.join(sorted(known))}")
    by_language = (script for name in languages for script in LANGUAGES[name.lower()])
    return frozenset([*(name.lower() for name in scripts), *by_language])


def is_written_in(text: str, scripts: frozenset[str]) -> bool:
    """Tell whether all letters and marks of a text are of these scripts; characters without one are of all."""
    return all(script is None or script in scripts for script in map(script_of, text))


@lru_cache(maxsize=1 << 17)
def script_of(char: str) -> str | None:
    """Return the script of a letter or mark, ``"other"`` for one without a name here; None for other characters."""
    if unicodedata.category(char)[0] not in "LM":
        return None
    words = unicodedata.name(char, "").split(" ")
    if words[0] in ("COMBINING", "MODIFIER", "VARIATION"):  # used with any script
        return None
    kinds = ("FULLWIDTH", "HALFWIDTH", "SMALL")
    return _OF_WORD.get(words[1] if words[0] in kinds and len(words) > 1 else words[0], "other")
