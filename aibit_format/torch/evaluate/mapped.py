"""Compares a model whose vocabulary was cut with its original, through the map that its file holds.

Both read the same tokens: those that the smaller tokenizer makes of a text, which the original has too, under other
ids. The original's predictions are taken as they are for tokens that are kept; what it gives to others is shared out
among these, as the softmax is taken of what is left.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...container.vocabulary import Kept, kept
from ...errors import LoadError
from ...file import sharded_reader
from .operands import is_gguf
from .predictions import Predictions, Text
from .saved_logits import SavedLogits


def kept_of(path: str) -> Kept | None:
    """Return which tokens of an original the model at a path has kept; ``None`` if it has all, or is no file of ours.

    Raises:
        FormatError: AIB-E707: the map is damaged.
    """
    if os.path.isdir(path) or is_gguf(path):
        return None
    with sharded_reader.open(path) as file:
        return kept(file.metadata, file.documents)


def common(paths: Sequence[str]) -> str | None:
    """Return the first model whose vocabulary was cut, whose tokens all of them can read; ``None`` if there is none.

    Raises:
        LoadError: others were cut otherwise.
    """
    maps = {path: kept_of(path) for path in paths}
    cut = {path: found for path, found in maps.items() if found is not None}
    first = next(iter(cut), None)
    for path, found in maps.items():
        if first is not None and (found is None or not np.array_equal(found.ids, cut[first].ids)):
            raise LoadError(
                f"{path}: has kept other tokens than {first}, and makes others of a text; judge them one by one"
            )
    return first


@dataclass(frozen=True)
class Mapped:
    """Predict as a reference does, for a model that has kept some of its tokens."""

    reference: SavedLogits
    kept: Kept

    def text(self, text: Text) -> Text:
        """Return a text of the model with the reference's ids."""
        return replace(text, ids=torch.from_numpy(self.kept.old(text.ids.cpu().numpy())))

    def predict(self, text: Text) -> Predictions:
        """Yield the reference's predictions of each window, [predicted tokens, kept tokens].

        Raises:
            LoadError: as ``SavedLogits.predict``.
        """
        columns = torch.from_numpy(self.kept.ids.astype(np.int64))
        for targets, logits in self.reference.predict(self.text(text)):
            yield targets, logits[:, columns]


def mapped(reference: SavedLogits, path: str) -> Mapped | None:
    """Return the reference as a model at a path sees it, if it is of the original of which that one was cut.

    Raises:
        LoadError: the reference has another number of tokens than the original.
    """
    found = kept_of(path)
    if found is None or reference.width == len(found.ids):
        return None
    if reference.width != found.size:
        raise LoadError(
            f"{path}: was cut from a vocabulary of {found.size} tokens, and the reference has {reference.width}"
        )
    return Mapped(reference, found)
