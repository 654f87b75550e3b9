"""What ``fuzz.py`` can fuzz: one class a target. This package's modules import no more than they must at the top: what
is to be instrumented is first imported when a target is made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

LONGEST = 1 << 15  # bytes of an input: several times the largest fixture, few enough for hundreds of them a second

# Name -> "module:class".
TARGETS = {
    "reader": "fuzzing.reader:Reader",
    "signatures": "fuzzing.signatures:Signatures",
    "shards": "fuzzing.shards:Shards",
    "safetensors": "fuzzing.sources:Safetensors",
    "gguf": "fuzzing.sources:GGUF",
    "pickle": "fuzzing.sources:Pickle",
    "archive": "fuzzing.sources:Archive",
    "checkpoint": "fuzzing.sources:Checkpoint",
}

# libFuzzer's own mutation of bytes, to so many at most; it also draws on the constants that the code compares with.
Mutate = Callable[[bytes, int], bytes]


class Target(Protocol):
    """Something that reads what others wrote."""

    def seeds(self) -> dict[str, bytes]:
        """Inputs to begin with, by name."""
        ...

    def run(self, data: bytes) -> str:
        """What an input comes to, as a short text. Anything that is raised is a finding."""
        ...

    def mutator(self, mutate: Mutate) -> Callable[[bytes, int, int], bytes]:
        """What makes another input of one, of so many bytes at most, with random numbers of this seed."""
        ...


def make(name: str) -> Target:
    """The target of this name."""
    module, attribute = TARGETS[name].split(":")
    return vars(import_module(module))[attribute]()
