"""Fuzz one ``.aibit`` file: open, validate, decode and verify, over a mapped file and over bytes."""

from __future__ import annotations

import os
import tempfile

from tools import ROOT

from . import LONGEST, Mutate
from .records import Mutator


class Reader:
    """What a file comes to must not depend on how it is held, and what is accepted must come out the same."""

    def __init__(self) -> None:
        import aibit_format.file.writer  # noqa: F401 - imported here to be instrumented
        from aibit_format.schemes import BUILTIN, make
        from tools.fuzz import verdict

        for name in BUILTIN:  # each is a module of its own
            make(name)
        self._verdicts = verdict
        self._folder = tempfile.TemporaryDirectory(dir=verdict.memory())
        self._path = os.path.join(self._folder.name, "m.aibit")

    def seeds(self) -> dict[str, bytes]:
        paths = [path for path in (ROOT / "fixtures").glob("*/*.aibit") if path.stat().st_size <= LONGEST]
        return {f"{path.parent.name}-{path.name}": path.read_bytes() for path in paths}

    def run(self, data: bytes) -> str:
        with open(self._path, "wb") as out:
            out.write(data)
        mapped, held = self._verdicts.verdict(self._path), self._verdicts.verdict(data)
        if mapped != held:
            raise ValueError(f"mapped: {mapped}; from bytes: {held}")
        self._verdicts.check_comes_out_the_same(data)
        return mapped

    def mutator(self, mutate: Mutate) -> Mutator:
        return Mutator(mutate)
