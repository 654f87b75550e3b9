"""One measurement in a process of its own: ``python -m tools.bench.probe JOB '{"argument": ...}'``.

The job's imports and a garbage collection come before the clock starts, so that seconds are those of the work alone;
``start`` measures imports. The last line of the output is JSON. ``run`` is the other end: it starts such a process
and reads that line.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from tools import ROOT

_INTERVAL = 0.005  # seconds between two looks at the memory
_KIB = 1024

Result = dict[str, Any]


def anonymous() -> int:
    """Bytes of anonymous memory of this process: what no file backs, and what the system cannot drop."""
    return _status("RssAnon")


def resident() -> tuple[int, int]:
    """Bytes of anonymous memory and of mapped files that are in memory, from one look."""
    return _status("RssAnon"), _status("RssFile")


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * _KIB
    raise RuntimeError(f"/proc/self/status has no {field}: the memory figures need Linux 4.5 or newer")


def pages(path: str | None = None) -> dict[str, int]:
    """Bytes by field of ``smaps_rollup``; with a path, summed over the mappings of that file alone."""
    fields = ("Rss", "Pss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Anonymous")
    found = dict.fromkeys(fields, 0)
    inside = path is None
    with open("/proc/self/smaps_rollup" if path is None else "/proc/self/smaps", encoding="utf-8") as file:
        for line in file:
            if path is not None and re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                inside = line.rstrip("\n").endswith(" " + path)
            field, _, rest = line.partition(":")
            if inside and field in found:
                found[field] += int(rest.split()[0]) * _KIB
    return found


class Clock:
    """Seconds of the block, and anonymous memory before it, after it and at its highest.

    ``highest`` is anonymous memory and that of mapped files, when the two together were at their highest.

    Args:
        watch: look for the highest value in a thread; off for times in which that thread would show.
    """

    def __init__(self, watch: bool = False) -> None:
        self._watch = watch
        self._over = threading.Event()

    def __enter__(self) -> Self:
        gc.collect()
        self.highest = resident()
        self.before = self.peak = self.highest[0]
        self._watcher = threading.Thread(target=self._look, daemon=True)
        if self._watch:
            self._watcher.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._over.set()
        if self._watch:
            self._watcher.join()
        self.after = self._note()

    def _look(self) -> None:
        while not self._over.wait(_INTERVAL):
            self._note()

    def _note(self) -> int:
        found = resident()
        self.peak = max(self.peak, found[0])
        self.highest = max(self.highest, found, key=sum)
        return found[0]

    def so_far(self) -> float:
        """Seconds since the block was entered."""
        return time.perf_counter() - self._start

    def figures(self) -> Result:
        return {"seconds": self.seconds, "before": self.before, "after": self.after, "peak": self.peak}


def environment() -> dict[str, str]:
    """The caller's environment with this package importable and the network out of play."""
    others = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), *([others] if others else [])])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def command(job: str, arguments: dict[str, Any]) -> list[str]:
    """The command line of one measurement."""
    return [sys.executable, "-m", "tools.bench.worker", job, json.dumps(arguments)]


def run(job: str, **arguments: Any) -> Result:
    """What a fresh process measures."""
    with started(job, **arguments) as child:
        return child.result()


class Child:
    """A measuring process whose job may stop halfway, to be told to go on."""

    def __init__(self, process: subprocess.Popen[str], job: str) -> None:
        self._process, self._job = process, job

    def result(self) -> Result:
        """The next JSON line. Libraries print too: other lines are passed over."""
        assert self._process.stdout is not None  # noqa: S101 - made with a pipe
        for line in self._process.stdout:
            if line.startswith('{"probe"'):
                return json.loads(line)["probe"]
        raise SystemExit(f"{self._job}: the process ended with {self._process.wait()} and no result")

    def go_on(self) -> None:
        assert self._process.stdin is not None  # noqa: S101 - made with a pipe
        self._process.stdin.write("\n")
        self._process.stdin.flush()


@contextmanager
def started(job: str, **arguments: Any) -> Iterator[Child]:
    """A measuring process, gone when the block is left."""
    with tempfile.TemporaryFile("w+") as messages:  # warnings of libraries: shown if the process fails
        process = subprocess.Popen(
            command(job, arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            env=environment(),
        )
        try:
            yield Child(process, job)
        finally:
            if process.stdin is not None:
                process.stdin.close()  # ends a job that waits
            if process.wait():
                messages.seek(0)
                sys.stderr.write(messages.read())


def alternate(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way, A B A B. The first round fills caches and starts threads, and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def say(result: Result) -> None:
    """Hand ``result`` to the process that started this one."""
    print(json.dumps({"probe": result}), flush=True)
