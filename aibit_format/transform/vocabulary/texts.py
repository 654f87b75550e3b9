"""Takes texts apart with a tokenizer: counts tokens, finds those of chat templates, and compares two tokenizers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...container.vocabulary import Kept
from ...errors import SourceError

_PIECE = 1 << 20  # characters that are cut into tokens at once
# Where a text is cut: before a line that begins with a letter or digit. Tokens hardly ever reach over that.
_CUT = re.compile(r"\n(?=\w)")
_MESSAGES = [
    {"role": "system", "content": "A"}, {"role": "user", "content": "A"}, {"role": "assistant", "content": "A"},
    {"role": "user", "content": "A"},
]  # fmt: skip


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text, without what begins and ends every text."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def counted(tokenizer: Any, texts: Sequence[str], size: int) -> np.ndarray:
    """Return how often texts have each token of ``size``, i64 [size]."""
    counts = np.zeros(size, np.int64)
    for text in texts:
        for piece in _pieces(text):
            found = np.array(ids_of(tokenizer, piece), np.int64)
            counts += np.bincount(found[found < size], minlength=size)
    return counts


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        cut = _CUT.search(text, start + _PIECE)
        end = len(text) if cut is None else cut.end()
        yield text[start:end]
        start = end


def of_template(tokenizer: Any) -> set[int]:
    """Return the tokens of what chat templates put around messages: texts in them, and a conversation."""
    templates = getattr(tokenizer, "chat_template", None)
    found: set[int] = set()
    for template in templates.values() if isinstance(templates, dict) else [templates] if templates else []:
        for text in _texts_of(template):
            found.update(ids_of(tokenizer, text))
        for messages in (_MESSAGES, _MESSAGES[1:]):
            try:
                text = tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            except Exception:  # noqa: S112 - templates refuse roles and orders as they like
                continue
            found.update(ids_of(tokenizer, text))
    return found


def _texts_of(template: str) -> Iterator[str]:
    """Yield the texts in a template of Jinja: what is outside of its code, and quoted inside of it."""
    try:
        from jinja2 import Environment, TemplateSyntaxError
    except ImportError:  # then no template can be used
        return
    try:
        for _, kind, value in Environment(autoescape=True).lex(template):
            if kind == "data":
                yield value
            elif kind == "string":
                yield value[1:-1].encode("ascii", "backslashreplace").decode("unicode_escape")
    except (TemplateSyntaxError, UnicodeDecodeError):
        return


@dataclass(frozen=True)
class Figures:
    """Say what a smaller vocabulary does to texts: tokens before and after, and how many texts have other ones.

    A text is a line that is not blank.
    """

    words: int
    tokens_before: int
    tokens_after: int
    texts: int
    changed: int


def compared(before: Any, after: Any, kept: Kept, texts: Sequence[str]) -> Figures:
    """Compare what two tokenizers make of texts."""
    words = tokens_before = tokens_after = lines = changed = 0
    for line in (line for text in texts for line in text.splitlines() if line.strip()):
        old, new = ids_of(before, line), ids_of(after, line)
        words, lines = words + len(line.split()), lines + 1
        tokens_before, tokens_after = tokens_before + len(old), tokens_after + len(new)
        changed += kept.new(old).tolist() != new
    return Figures(words, tokens_before, tokens_after, lines, changed)


def check_same(before: Any, after: Any, kept: Kept, where: str) -> None:
    """Check that each token that is kept is the same one under its new id.

    Raises:
        SourceError: the tokenizer has other ids than its document, and so cannot be cut.
    """
    new = np.arange(len(kept.ids))
    pairs = zip(kept.ids.tolist(), before.convert_ids_to_tokens(kept.ids.tolist()), strict=True)
    for (i, was), now in zip(pairs, after.convert_ids_to_tokens(new.tolist()), strict=True):
        if was != now:
            raise SourceError(
                f"{where}: the tokenizer cannot be cut: token {str(was)[:80]!r} with id {i} would become "
                f"{str(now)[:80]!r}, as the tokenizer's class gives other ids than its document; save it as "
                "tokenizer.json first (AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )
