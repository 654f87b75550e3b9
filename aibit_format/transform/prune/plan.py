"""Says what of a model is wanted, as users write it (``layers=20,channels=1024``), and what is kept, by number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np

from ...container.metadata import Value
from ...errors import RecipeError

APPLIED = "pruning.applied"  # how a model was pruned, as users write it
SCORED = "pruning.scores"  # by what: statistics of activations, or weights alone
STEP = "pruning.step"  # begins, with the number of the step, the keys of what is kept
KINDS = ("layers", "channels", "heads", "experts")  # of which numbers are kept, the first for all, the others by layer

_NUMBER = re.compile(r"[1-9]\d{0,8}")


@dataclass(frozen=True)
class Wanted:
    """Hold what is wanted of a model: how many of its layers, of the channels, heads and experts of each; None: all.

    Attributes:
        layers, channels, heads, experts: numbers to keep. Heads are those of queries.
        dropped: numbers of layers to leave out, instead of a number of them.
        block: channels are kept in blocks of so many, so that codes of schemes with such blocks can stay.
        uneven: whether layers may have different numbers of channels, as many together, by what they contribute.
        refit: whether matrices that read what is left are fitted to make up for what is not; it needs Hessians.
        nbytes: the size of the file that is wanted; as much is kept as fits, of ``by``.
        by: which kind is cut for a size; the experts of a model that has some, otherwise channels.
    """

    layers: int | None = None
    channels: int | None = None
    heads: int | None = None
    experts: int | None = None
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
            raise RecipeError("nothing to prune: say how many layers, channels, heads or experts to keep, or a size")

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
    refit: bool = False
    how: str = ""

    @property
    def widths(self) -> dict[str, Numbers]:
        """Return what is kept by layer, of those kinds of which not all is."""
        return {kind: found for kind in KINDS[1:] if (found := vars(self)[kind])}

    def metadata(self, before: Mapping[str, Value], scored: str) -> dict[str, Value]:
        """Return what a file says of it, after what it says of earlier steps, whose keys have the numbers before.

        Args:
            before: the metadata of the source.
            scored: by what the choice was made.
        """
        applied: list[str] = list(before.get(APPLIED, ()))
        said: dict[str, Value] = {APPLIED: [*applied, self.how], SCORED: [*before.get(SCORED, ()), scored]}
        step = f"{STEP}{len(applied)}"
        if self.layers is not None:
            said[f"{step}.layers"] = self.layers.astype(np.int64)
        for kind, found in self.widths.items():
            order = sorted(found) if self.layers is None else [each for each in self.layers.tolist() if each in found]
            said[f"{step}.{kind}"] = np.concatenate([found[each].reshape(-1) for each in order]).astype(np.int64)
            said[f"{step}.{kind}_layers"] = np.array(order, np.int64)
            said[f"{step}.{kind}_counts"] = np.array([found[each].size for each in order], np.int64)
        return said
