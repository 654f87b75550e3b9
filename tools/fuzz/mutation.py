"""Choose among changes of inputs that have a structure."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from . import Mutate

Way = Callable[[bytes, random.Random], bytes]


class OneOf:
    """Changes an input in one of several ways, or in two or three; if it cannot be taken apart, changes bytes."""

    def __init__(self, mutate: Mutate, ways: Sequence[Way]) -> None:
        self._mutate, self._ways = mutate, ways

    def __call__(self, data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = bytes(data)
        try:
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                changed = rng.choice(self._ways)(changed, rng)
        except Exception:
            changed = bytes(self._mutate(data, max_size))
        return changed[:max_size]
