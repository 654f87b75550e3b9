"""Says what of a model is wanted, as users write it (``layers=20,channels=1024``), and what is kept, by number."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np

from ...container.pruning import Kept
from ...errors import RecipeError

# Of which numbers are kept: the first and the last of the whole model, the others of each layer.
KINDS = ("layers", "channels", "heads", "experts", "hidden")
BY_LAYER = KINDS[1:-1]

_NUMBER = re.compile(r"[1-9]\d{0,8}")


@dataclass(frozen=True)
class Wanted:
    """Hold what is wanted of a model: how many of its layers, of the channels, heads and experts of each, and of the
    channels of the residual stream; None: all.

    Attributes:
        layers, channels, heads, experts, hidden: numbers to keep. Heads are those of queries.
        dropped: numbers of layers to leave out, instead of a number of them.
        block: channels, also hidden ones, are kept in blocks of so many, so that codes of schemes with such blocks can
            stay.
        uneven: whether layers may have different numbers of channels, as many together, by what they contribute.
        refit: whether matrices that read what is left are fitted to make up for what is not; it needs Hessians.
        nbytes: the size of the file that is wanted; as much is kept as fits, of ``by``.
        by: which kind is cut for a size; the experts of a model that has some, otherwise channels.
    """

    layers: int | None = None
    channels: int | None = None
    heads: int | None = None
    experts: int | None = None
    hidden: int | None = None
    dropped: tuple[int, ...] = ()
    block: int = 1
    uneven: bool = False
    refit: bool = False
    nbytes: int | None = None
    by: str | None = None

    def __post_init__(self) -> None:
        if self.layers is not None and self.dropped:
            raise RecipeError("a number of layers to keep, or the numbers of layers to drop; not both")
        if self.uneven and (self.channels is None):
            raise RecipeError("only channels can be uneven: say how many are to be kept in the mean")
        if self.by is not None and (self.by not in KINDS or self.nbytes is None):
            raise RecipeError(f"{self.by!r}: for a size, one of {', '.join(KINDS)} is cut")
        if self.nbytes is not None and self.counts:
            raise RecipeError("a size is met by cutting one kind: give a size, or numbers to keep")
        if not self.counts and not self.dropped and self.nbytes is None:
            raise RecipeError(
                "nothing to prune: say how many layers, channels, heads, experts or hidden channels to keep, or a size"
            )

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """Parse ``layers=20,channels=1024,refit``; ``drop=3+5`` names layers to leave out.

        Raises:
            RecipeError: a key is unknown or repeated, or a value is no positive number.
        """
        values: dict[str, object] = {}
        for part in text.split(","):
            key, _, value = part.partition("=")
            name = {"drop": "dropped", "size": "nbytes"}.get(key, key)
            if name not in {each.name for each in fields(cls)} or name in values:
                known = f"{', '.join(f'{kind}=N' for kind in KINDS)}, drop=N+N, block=N, uneven, refit, size=N, by=KIND"
                raise RecipeError(f"pruning: {part!r} is not understood, or repeated; known: {known}")
            values[name] = _value(key, value)
        return cls(**values)  # type: ignore[arg-type]

    @property
    def counts(self) -> dict[str, int]:
        """Return how many of each kind are to be kept, of those kinds that are cut."""
        return {kind: value for kind in KINDS if (value := vars(self)[kind]) is not None}

    @property
    def text(self) -> str:
        """Return it as users write it."""
        parts = [f"{kind}={count}" for kind, count in self.counts.items()]
        parts += ["drop=" + "+".join(map(str, self.dropped))] if self.dropped else []
        parts += [f"size={self.nbytes}"] if self.nbytes is not None else []
        parts += [f"by={self.by}"] if self.by else []
        parts += [f"block={self.block}"] if self.block > 1 else []
        parts += ["uneven"] if self.uneven else []
        return ",".join(parts + (["refit"] if self.refit else []))

    def keeping(self, kind: str, count: int) -> Wanted:
        """Return the same with a number of one kind instead of a size."""
        return replace(self, nbytes=None, by=None, **{kind: count})


def _value(key: str, value: str) -> object:
    if key == "by":
        return value
    if key in ("refit", "uneven"):
        if value not in ("", "0", "1"):
            raise RecipeError(f"pruning: {key} {value!r}, 0 or 1")
        return value != "0"
    if key == "drop":
        if not re.fullmatch(r"\d{1,5}(\+\d{1,5})*", value):
            raise RecipeError(f"pruning: drop {value!r}: numbers of layers with + between them are needed")
        return tuple(sorted({int(number) for number in value.split("+")}))
    if not _NUMBER.fullmatch(value) and not (key == "size" and re.fullmatch(r"[1-9]\d{0,17}", value)):
        raise RecipeError(f"pruning: {key} {value!r}: a positive number is needed")
    return int(value)


Numbers = Mapping[
    int, np.ndarray
]  # by layer of the original: which are kept, i64 [n]; channels of experts [experts, n]


@dataclass(frozen=True)
class Plan:
    """Say what is kept of a model, by number, ascending; a kind or a layer that is not named is kept whole.

    Attributes:
        layers: i64 [n]; ``None`` for all.
        hidden: channels of the residual stream, i64 [n]; ``None`` for all.
        gains: by what the weights of norms are multiplied, by name.
        channels: of the MLP of each layer, or of each of its experts.
        heads: of keys and values in each layer; queries that belong to them are kept with them.
        experts: of each layer.
        refit: as in ``Wanted``.
        how: as users write it.
    """

    layers: np.ndarray | None = None
    channels: Numbers = field(default_factory=dict)
    heads: Numbers = field(default_factory=dict)
    experts: Numbers = field(default_factory=dict)
    hidden: np.ndarray | None = None
    gains: Mapping[str, float] = field(default_factory=dict)
    refit: bool = False
    how: str = ""

    @property
    def widths(self) -> dict[str, Numbers]:
        """Return what is kept by layer, of those kinds of which not all is."""
        return {kind: found for kind in BY_LAYER if (found := vars(self)[kind])}

    def rows(self) -> Iterator[Kept]:
        """Yield what is kept, as a file lists it: of the whole model first, then of the layers that stay."""
        for kind in ("layers", "hidden"):
            if (of_all := vars(self)[kind]) is not None:
                yield Kept(0, kind, of_all)
        for kind, found in self.widths.items():
            order = sorted(found) if self.layers is None else [each for each in self.layers.tolist() if each in found]
            for number in order:
                each = found[number]
                if each.ndim == 1:
                    yield Kept(0, kind, each, number)
                else:
                    yield from (Kept(0, kind, row, number, expert) for expert, row in enumerate(each))
