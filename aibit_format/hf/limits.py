"""Bounds what a configuration may ask for by what its file has, so that building a model cannot exhaust the machine.

A number in ``config.json`` costs a few bytes and becomes modules, tensors and lists. So numbers are bounded before a
configuration is built from them; and while a model is, its tensors are counted and its time is measured, because a
constructor may loop over the square of a number without making a tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import LoadError

# The first expression that is found in a key says how large its numbers may be, unless the file has more tensors (for
# what becomes modules) or a larger one (for what becomes a size of tensors). The numbers are above what any model has
# whose tensors are smaller.
_BOUNDS = tuple(
    (re.compile(expression), most, of)
    for expression, most, of in (
        (r"num_labels|num_classes", 1 << 17, "largest"),  # each has a name in a list
        (r"layers?$|depths?$|blocks?$|stages?$", 1000, "tensors"),
        (r"_ids?$|_token$|_index$|theta|rate|pixels|pinpoints|seed", 1 << 31, "largest"),
        (r"position|length|context|ctx|window|chunk|sample|audio", 1 << 24, "largest"),  # become buffers
        (r"image|num_frames", 1024, "side"),  # whose square some constructors go through
        (r"vocab|token", 1 << 20, "largest"),
        (r"hidden|dim|emb", 1 << 16, "side"),
        (r"size|patch|frame|inner|channel|feature|bins|mels|fft|codes|points", 1 << 16, "largest"),
        (r"^n_|^num_|_num_|layer|depth|block|stage|level|group|codebook|repeat|steps", 1 << 16, "tensors"),
        (r"", 1 << 31, "largest"),
    )
)  # fmt: skip

_FREE_BYTES = 1 << 28  # of buffers, whatever the size of the file
_FREE_TENSORS = 1000  # that a model may have, whatever the file has
_TENSORS_FOR_EACH = 8  # of the file: a checkpoint may hold fused what a model has apart
_FREE_SECONDS = 10.0  # of a processor, in which a model may be built whatever the file has: the largest take two
_SECONDS_FOR_EACH = 0.01  # tensor of the file


@dataclass(frozen=True, slots=True)
class Limits:
    """Hold what the file of a model has: its number of tensors, and the elements of the largest."""

    tensors: int
    largest: int

    @classmethod
    def of(cls, sizes: Iterable[int]) -> Limits:
        """Return the limits for a file whose tensors have so many elements each."""
        found = list(sizes)
        return cls(len(found), max(found, default=0))

    @property
    def side(self) -> int:
        """Return the side of a square matrix of as many elements as the largest tensor has."""
        return math.isqrt(self.largest)

    @property
    def most_tensors(self) -> int:
        """Return how many tensors may be made while the model is built."""
        return _FREE_TENSORS + _TENSORS_FOR_EACH * self.tensors

    @property
    def most_bytes(self) -> int:
        """Return how large all the buffers of the model may be together."""
        return max(_FREE_BYTES, 8 * self.largest)

    @property
    def most_seconds(self) -> float:
        """Return for how many seconds of a processor the model may be built."""
        return _FREE_SECONDS + _SECONDS_FOR_EACH * self.tensors

    def check(self, config: Mapping[str, Any]) -> None:
        """Check every integer of a parsed ``config.json``, in lists and inner objects too.

        Raises:
            LoadError: names the key, the number, and the largest that is believed.
        """
        stack: list[tuple[str, str, Any]] = [("", "", config)]
        while stack:
            path, key, value = stack.pop()
            if isinstance(value, Mapping):
                stack += [(f"{path}.{name}" if path else name, str(name), inner) for name, inner in value.items()]
            elif isinstance(value, list):
                stack += [(f"{path}.{i}", key, inner) for i, inner in enumerate(value)]
            elif isinstance(value, int) and value > (most := self.most(key)):
                raise LoadError(
                    f"config.json: {path} is {value if value < 1 << 64 else 'beyond 2^64'}, and at most {most} is "
                    f"believed of a file with {self.tensors} tensors, the largest of {self.largest} elements"
                )

    def most(self, key: str) -> int:
        """Return the largest number that is believed under a key."""
        return next(max(most, getattr(self, of)) for expression, most, of in _BOUNDS if expression.search(key))
