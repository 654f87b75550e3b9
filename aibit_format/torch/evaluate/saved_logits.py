"""Keeps what a model predicts of a text in a file, so that others are compared with it later, one at a time in memory.

The file is one of safetensors: ``ids`` i64 [n], the text; and for each window ``logits.0``, ``logits.1``, ...,
[predicted tokens, vocabulary], in the dtype in which the model computes them, so that nothing is rounded. Metadata:
``format`` is "aibit-logits", ``model`` names the model, and ``context`` and ``stride`` say how the text was cut.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import AibitError, LoadError, WriteError
from ...formats.safetensors.reader import SafetensorsFile as Reader
from ...formats.safetensors.writer import Entry
from ...formats.safetensors.writer import SafetensorsFile as Writer
from ...interop import dtype_name, to_torch, values_of_torch
from ...io.atomic import AtomicFile
from .predictions import Predictions, Text, predict

_FORMAT = "aibit-logits"
_FLOATS = ("f16", "bf16", "f32", "f64")


def save_logits(
    model: Any, text: Text, path: str | Path, *, name: str = "", overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> SavedLogits:  # fmt: skip
    """Write a model's predictions of a text to ``path``, under the ``name`` of the model; returns the opened file.

    Raises:
        WriteError: the file exists and ``overwrite`` is off, or the disk has too little room.
    """
    path, windows, found = os.fspath(path), text.windows, predict(model, text)
    first = next(found)
    dtype, width = dtype_name(first[1].dtype), first[1].shape[1]
    entries = [Entry("ids", "i64", tuple(text.ids.shape))]
    entries += [Entry(f"logits.{i}", dtype, (end - first, width)) for i, (_, first, end) in enumerate(windows)]
    needed, free = sum(entry.nbytes for entry in entries), shutil.disk_usage(os.path.dirname(path) or ".").free
    if needed > free:
        raise WriteError(
            f"{path}: {text.predicted:,} predictions of {width:,} tokens in {dtype} take {needed:,} bytes, and "
            f"{free:,} are free; predict fewer tokens (--limit), or name another place (--save-logits)"
        )
    about = {"format": _FORMAT, "model": name, "context": str(text.context), "stride": str(text.stride)}
    with AtomicFile(path, overwrite) as file:
        with Writer(path, entries, about, file.file) as out:
            out.write("ids", text.ids.numpy(force=True))
            done = 0
            for i, (targets, logits) in enumerate(itertools.chain([first], found)):
                out.write(f"logits.{i}", values_of_torch(logits.detach().cpu().contiguous())[0])
                done += len(targets)
                if on_progress is not None:
                    on_progress(done, text.predicted)
        file.publish()
    return SavedLogits(path)


class SavedLogits:
    """Opens a file of predictions.

    Raises:
        LoadError: it is no such file, or its parts contradict each other.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)
        try:
            self._file = Reader(self.path)
        except AibitError as error:
            raise LoadError(f"{error}; predictions are saved with aibit eval --save-logits") from error
        about, tensors = self._file.metadata, self._file.tensors
        if about.get("format") != _FORMAT or "ids" not in tensors:
            raise LoadError(f"{self.path}: holds no predictions; they are saved with aibit eval --save-logits")
        try:
            ids, cut = self._file.read("ids"), (int(about["context"]), int(about["stride"]))
        except (KeyError, ValueError) as error:
            raise LoadError(f"{self.path}: does not say how its text was cut: {error}") from error
        if ids.dtype != np.int64 or ids.ndim != 1:
            raise LoadError(f"{self.path}: ids are {tensors['ids'].dtype}{list(ids.shape)}, i64[n] is needed")
        self.model, self.text = about.get("model", ""), Text(torch.from_numpy(ids.copy()), *cut)
        self._check()

    def _check(self) -> None:
        """Check that each window has as many predictions as it predicts tokens, all alike."""
        tensors, width = self._file.tensors, None
        for i, (_, first, end) in enumerate(self.text.windows):
            found = tensors.get(f"logits.{i}")
            if found is None or len(found.shape) != 2 or found.shape[0] != end - first or found.dtype not in _FLOATS:
                stated = "missing" if found is None else f"{found.dtype}{list(found.shape)}"
                raise LoadError(f"{self.path}: logits.{i} is {stated}, floats [{end - first}, vocabulary] are needed")
            width = found.shape[1] if width is None else width
            if found.shape[1] != width:
                raise LoadError(f"{self.path}: logits.{i} has {found.shape[1]} columns, the first window {width}")

    @property
    def width(self) -> int:
        """Return how many tokens have a prediction."""
        return self._file.tensors["logits.0"].shape[1]

    def predict(self, text: Text) -> Predictions:
        """Yield the predictions of each window, as ``predictions.predict`` does of the model.

        Raises:
            LoadError: they are those of another text, or of one that was cut otherwise.
        """
        mine = self.text
        if (text.context, text.stride) != (mine.context, mine.stride) or not torch.equal(text.ids.cpu(), mine.ids):
            raise LoadError(
                f"{self.path}: predictions of {len(mine.ids)} tokens in windows of {mine.context}, {mine.stride} apart "
                f"and not of these {len(text.ids)} tokens in windows of {text.context}, {text.stride} apart"
            )
        for i, (_, first, end) in enumerate(mine.windows):
            name = f"logits.{i}"
            yield mine.ids[first:end], to_torch(self._file.read(name), self._file.tensors[name].dtype)
