"""What calibration and judging read: files of statistics, llama.cpp's imatrix in both forms, saved predictions."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

from . import Mutate, bundle, gguf_bytes, safetensors_bytes
from .mutation import OneOf

_STATISTICS, _LOGITS, _IMATRIX, _OLD = "s.safetensors", "l.safetensors", "i.gguf", "i.dat"


class Calibrations(bundle.Written):
    """One file, whose name says what it is taken for. What is accepted is the same, written and read again."""

    def __init__(self) -> None:
        import torch  # noqa: F401 - which takes seconds and memory: not the first input's

        super().__init__()
        from aibit_format.calibrate import files, statistics
        from aibit_format.formats.gguf import imatrix
        from aibit_format.torch.evaluate import saved_logits

        self._files_of, self._statistics, self._imatrix, self._logits = files, statistics, imatrix, saved_logits

    def _come_to(self, files: Mapping[str, bytes]) -> str:
        from aibit_format.errors import AibitError

        (name,) = files
        path = os.path.join(self._inside, name)
        try:
            if name == _STATISTICS:
                return self._of_statistics(path)
            if name == _LOGITS:
                saved = self._logits.SavedLogits(path)
                rows = sum(len(logits) for _, logits in saved.predict(saved.text))
                return f"{rows} predictions"
            return self._of_imatrix(path, name == _OLD)
        except AibitError as error:
            return self._verdicts.coded(error)

    def _of_statistics(self, path: str) -> str:
        found = self._files_of.load(path)
        self._statistics.importance(found)
        again = os.path.join(self._inside, "again")
        self._files_of.save(found, again)
        if self._files_of.load(again).inputs.keys() != found.inputs.keys():
            raise ValueError("other statistics when they are read again")
        return f"{len(found.inputs)} weights"

    def _of_imatrix(self, path: str, old: bool) -> str:
        found = self._imatrix.read(path)
        again = os.path.join(self._inside, "again")
        with open(again, "wb") as file:
            file.write(self._imatrix.encode(found, old))
        if self._imatrix.read(again).entries.keys() != found.entries.keys():
            raise ValueError("other entries when they are read again")
        return f"{len(found.entries)} entries"

    def _files(self, data: bytes) -> dict[str, bytes]:
        files = bundle.unpack(data)
        if len(files) != 1 or not files.keys() <= {_STATISTICS, _LOGITS, _IMATRIX, _OLD}:
            raise ValueError("not one of the files that are read here")
        return files

    def seeds(self) -> dict[str, bytes]:
        import numpy as np
        import torch

        sums = {name: self._imatrix.Sums(np.ones((n, 8)), np.full(n, 3)) for name, n in (("a", 1), ("b", 2))}
        matrix = self._imatrix.IMatrix(sums, ["text"], 1, 512)
        alone = self._imatrix.IMatrix({"a": sums["a"]}, ["text"], 1, 512)
        inputs = self._statistics.Inputs(
            np.array([3]), np.ones((1, 4)), np.ones((1, 4)), np.ones((1, 4)), np.ones((1, 4), np.float32),
            np.zeros(1, np.float32), np.ones(1, np.float32), np.zeros(9, np.float32), np.ones((1, 4, 4), np.float32),
        )  # fmt: skip
        about = self._statistics.About("LlamaForCausalLM", "0" * 32, "1" * 32, 3, 1, 3)
        path = os.path.join(self._folder.name, "statistics")
        self._files_of.save(self._statistics.Statistics(about, {"q.weight": inputs}, {}), path, overwrite=True)
        with open(path, "rb") as file:
            statistics = file.read()
        ids = torch.arange(5).numpy().tobytes()
        logits = {f"logits.{i}": ("F32", (n, 2), bytes(8 * n)) for i, n in enumerate((3, 1))}
        logits["ids"] = ("I64", (5,), ids)
        cut = {"format": "aibit-logits", "model": "m", "context": "4", "stride": "2"}
        made = {
            _STATISTICS: statistics, _LOGITS: safetensors_bytes.pack(logits, cut),
            _IMATRIX: self._imatrix.encode(matrix), _OLD: self._imatrix.encode(alone, old=True),
        }  # fmt: skip
        return {name: bundle.pack({name: data}) for name, data in made.items()}

    def mutator(self, mutate: Mutate) -> OneOf:
        def content(data: bytes, rng: random.Random) -> bytes:
            """Another content of the file."""
            ((name, old),) = bundle.unpack(data).items()
            change = _CHANGES.get(os.path.splitext(name)[1])
            new = change(old, rng, mutate) if change else bytes(mutate(old or b"a", 2 * len(old) + 8))
            return bundle.pack({name: new})

        return OneOf(mutate, [content])


_CHANGES = {".safetensors": safetensors_bytes.changed, ".gguf": gguf_bytes.changed}
