"""Cuts texts into samples of tokens, with the tokenizer of the model that they are for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
import xxhash

from ..container import documents
from ..errors import LoadError, SourceError
from ..formats.files import read_file
from ..formats.source import Source
from ..hf.tokenizer import build_tokenizer

SAMPLES, LENGTH = 100, 512
_MAX_TEXT = 1 << 30  # bytes of one file
_DEFAULT = "default_text.txt"


@dataclass(frozen=True)
class Text:
    """Hold texts: their names, what they say, and the digest of it, 32 hex digits."""

    names: tuple[str, ...]
    parts: tuple[str, ...]
    digest: str
    is_default: bool = False


def read(paths: Sequence[str]) -> Text:
    """Read files of text in UTF-8; without any, the text that ships with this package.

    Raises:
        SourceError: a file cannot be read, or is not UTF-8.
    """
    if not paths:
        data = [files(__name__.rpartition(".")[0]).joinpath(_DEFAULT).read_bytes()]
        names: tuple[str, ...] = (_DEFAULT,)
    else:
        data = [read_file(path, _MAX_TEXT) for path in paths]
        names = tuple(os.path.basename(path) for path in paths)
    parts = []
    for name, each in zip(paths or names, data, strict=True):
        try:
            parts.append(each.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise SourceError(f"{name}: no UTF-8 at byte {error.start}") from error
    state = xxhash.xxh3_128()
    for each in data:
        state.update(len(each).to_bytes(8, "little") + each)
    return Text(names, tuple(parts), state.hexdigest(), not paths)


@dataclass(frozen=True)
class Samples:
    """Hold the samples of a text, i64 [samples, length], in the order of the text."""

    ids: np.ndarray

    @property
    def tokens(self) -> int:
        """Return how many tokens there are in all."""
        return self.ids.size


def samples(
    source: Source, text: Text, count: int | None = None, length: int | None = None, seed: int = 0,
    longest: int | None = None,
) -> Samples:  # fmt: skip
    """Cut a text into pieces of ``length`` tokens that do not overlap, and choose ``count`` of them.

    What the tokenizer puts before and after a text (such as the token that begins one) is in every sample.

    Args:
        source: whose tokenizer is used.
        text: the text.
        count: of samples; by default ``SAMPLES``, or as many as there are in the text that ships with this package.
        length: of a sample; by default ``LENGTH``, or as many as the model takes.
        seed: of the choice.
        longest: how many tokens the model takes; ``None`` for any number.

    Raises:
        SourceError: the text is too short; the samples are too long for the model; the source has no tokenizer.
    """
    if length is None:
        length = min(LENGTH, longest or LENGTH)
    elif longest is not None and length > longest:
        raise SourceError(
            f"{source.path}: samples of {length} tokens, and the model takes {longest}: --length {longest}"
        )
    tokenizer = tokenizer_of(source, ", or give statistics made elsewhere")
    before, after = _around(tokenizer)
    inner = length - len(before) - len(after)
    if inner < 1:
        raise SourceError(f"samples of {length} tokens, of which {len(before) + len(after)} begin and end every text")
    found = [_pieces(tokenizer, part, inner) for part in text.parts]
    pieces = np.concatenate([each for each, _ in found])
    tokens = sum(total for _, total in found)
    wanted = count or SAMPLES
    if not len(pieces) or (len(pieces) < wanted and not (count is None and text.is_default)):
        say = (
            f"give more text, or statistics of less of it: aibit calibrate --samples {len(pieces)} -o STATISTICS"
            if len(pieces)
            else f"give more text, or --length below {length}"
        )
        raise SourceError(
            f"{', '.join(text.names)}: too short: {tokens} tokens are {len(pieces)} samples of {length} tokens, and "
            f"{wanted} are wanted: {say}"
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pieces))[:wanted])
    ids = np.empty((len(chosen), length), np.int64)
    ids[:, : len(before)], ids[:, length - len(after) :] = before, after
    ids[:, len(before) : length - len(after)] = pieces[chosen]
    return Samples(ids)


def tokenizer_of(source: Source, what: str) -> Any:
    """Return the tokenizer of a source, as transformers builds it.

    Args:
        source: a model.
        what: to do without one, for the message.

    Raises:
        SourceError: it has none, or one that transformers refuses.
    """
    texts = {}
    try:
        for name, data in source.documents.items():
            texts[name] = documents.clean(name, data)[0]
        return build_tokenizer(texts, lambda name: documents.check(name, texts[name]), source.path)
    except LoadError as error:
        files = "put a tokenizer.json or another of transformers' files beside the model"
        raise SourceError(f"{error}: text cannot be cut into tokens: {files}{what}") from error


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that the tokenizer puts before and after a text."""
    encode = partial(tokenizer, verbose=False)
    whole, inner = encode("a")["input_ids"], encode("a", add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    return [], []


def _pieces(tokenizer: Any, text: str, length: int) -> tuple[np.ndarray, int]:
    """Return pieces of so many tokens of a text, i64 [pieces, length], and how many tokens there are."""
    ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int64)
    whole = len(ids) // length
    return ids[: whole * length].reshape(whole, length), len(ids)
