"""What a run works with: the files it measures, made when a row first asks, and processes in pairs."""

from __future__ import annotations

import filecmp
import os
import re
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tools.bench import models, probe


@dataclass
class Bench:
    """What a run was asked for. Files are made when a row first asks for them."""

    model: str
    runs: int
    work: Path
    memory: Path  # a file system in memory
    formats: re.Pattern[str] = re.compile("")  # in which of the row ``formats`` it has a match
    facts: dict[str, Any] = field(default_factory=dict)  # of the row that runs: what is not a sample
    _made: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def source(self) -> Path:
        return models.checkpoint(self.model, self.work)

    @cached_property
    def tiny(self) -> Path:
        """What a process warms up with: lazy imports and thread pools are nobody's loading time."""
        return models.checkpoint("tiny", self.work)

    @cached_property
    def file(self) -> Path:
        return self._converted(self.source, "model")

    @cached_property
    def tiny_file(self) -> Path:
        return self._converted(self.tiny, "warm")

    @cached_property
    def saved(self) -> Path:
        return self._saved(self.model, self.source)

    @cached_property
    def tiny_saved(self) -> Path:
        return self._saved("tiny", self.tiny)

    @cached_property
    def saved_4bit(self) -> Path:
        return self._saved(self.model, self.source, 4)

    @cached_property
    def tiny_saved_4bit(self) -> Path:
        return self._saved("tiny", self.tiny, 4)

    def converted(self, scheme: str) -> Path:
        """The model in another scheme than int8, made anew by each run."""
        return self._once(self.source, scheme)

    def tiny_converted(self, scheme: str) -> Path:
        """What a process warms up with that loads ``converted``."""
        return self._once(self.tiny, scheme)

    def _once(self, source: Path, scheme: str) -> Path:
        key = f"{scheme} {source}"
        if key not in self._made:
            self._made[key] = self._converted(source, scheme, scheme)
        return self._made[key]

    def _converted(self, source: Path, name: str, scheme: str | None = None) -> Path:
        path = self.work / f"{name}-{source.name}.aibit"
        models.remove(path)
        models.need(self.work, models.size_of(source))
        probe.run("convert_aibit", source=str(source), tiny=str(self.tiny), target=str(path), scheme=scheme)
        return path

    def _saved(self, model: str, source: Path, bits: int = 8) -> Path:
        path = self.work / f"{model}-{'int8' if bits == 8 else 'nf4'}-transformers"
        if not (path / "config.json").is_file():
            models.need(self.work, models.size_of(source))
            probe.run("save_transformers", source=str(source), target=str(path), bits=bits)
        return path

    def same_with_jobs(self, **arguments: Any) -> bool:
        """Whether a conversion by one thread and one by two give the same bytes."""
        targets = [self.work / f"converted-{jobs}.aibit" for jobs in (1, 2)]
        for jobs, target in enumerate(targets, 1):
            models.remove(target)
            probe.run("convert_aibit", **arguments | {"target": str(target), "jobs": jobs})
        same = filecmp.cmp(*targets, shallow=False)
        for target in targets:
            models.remove(target)
        return same

    def shown(self, command: Iterable[object]) -> str:
        """A command line without the paths of this machine."""
        text = " ".join(str(part) for part in command)
        for found, shown in ((sys.executable, "python"), (str(self.work), "WORK"), (str(probe.ROOT) + os.sep, "")):
            text = text.replace(found, shown)
        return text

    def paired(
        self,
        ways: dict[str, tuple[str, dict[str, Any]]],
        *,
        runs: int | None = None,
        once: Collection[str] = (),
        warm: bool = True,
    ) -> dict[str, list[probe.Result]]:
        """Each way (label -> job and arguments) in fresh processes, A B A B, from a warm page cache.

        Args:
            runs: rounds, if not as many as the run was asked for.
            once: ways that take too long for more than the first round.
            warm: whether files are read into the page cache first.
        """
        found: dict[str, list[probe.Result]] = {label: [] for label in ways}
        for i in range(self.runs if runs is None else runs):
            for label, (job, arguments) in ways.items():
                if i and label in once:
                    continue
                for key in ("source", "path"):
                    if warm and key in arguments:
                        models.read_through(Path(arguments[key]))
                if "target" in arguments:
                    models.remove(Path(arguments["target"]))
                os.sync()  # nobody waits for what the one before has left to be written
                found[label].append(probe.run(job, **arguments))
        return found
