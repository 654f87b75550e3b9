"""Fuzz what reads files that others wrote: one class a target; ``python -m tools.fuzz`` runs one.

The modules import no more than they must at the top: what is to be instrumented is imported when a target is made.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol

LONGEST = 1 << 15  # bytes of an input: several times the largest fixture, few enough for hundreds of them a second

# Name -> "module:class".
TARGETS = {
    "reader": "tools.fuzz.reader:Reader",
    "signatures": "tools.fuzz.signatures:Signatures",
    "shards": "tools.fuzz.shards:Shards",
    "safetensors": "tools.fuzz.sources:Safetensors",
    "gguf": "tools.fuzz.sources:GGUF",
    "pickle": "tools.fuzz.sources:Pickle",
    "archive": "tools.fuzz.sources:Archive",
    "checkpoint": "tools.fuzz.sources:Checkpoint",
    "quantized": "tools.fuzz.sources:Quantized",
    "makers": "tools.fuzz.sources:Makers",
    "calibrations": "tools.fuzz.calibrations:Calibrations",
    "graphs": "tools.fuzz.graphs:Graphs",
}

# libFuzzer's own mutation of bytes, to so many at most; it also draws on the constants that the code compares with.
Mutate = Callable[[bytes, int], bytes]


class Target(Protocol):
    """Something that reads what others wrote."""

    def seeds(self) -> dict[str, bytes]:
        """Return inputs to begin with, by name."""
        ...

    def run(self, data: bytes) -> str:
        """Read an input and return what it comes to, as a short text. Anything that is raised is a finding."""
        ...

    def mutator(self, mutate: Mutate) -> Callable[[bytes, int, int], bytes]:
        """Return a function that makes another input from (input, most bytes, seed)."""
        ...


def make(name: str) -> Target:
    """Make the target of this name."""
    module, attribute = TARGETS[name].split(":")
    return vars(import_module(module))[attribute]()
