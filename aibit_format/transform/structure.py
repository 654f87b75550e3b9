"""Tells which weights of a decoder read what other weights write.

Between some weights nothing happens but products with numbers, channel by channel: a norm's weight and the matrices
behind it, ``up`` and ``down`` of a gated MLP, values and the output of attention. A factor can be moved from one to the
other there. The residual stream is read through norms and written by sums: it can be rotated as a whole, if no norm
stands in between that multiplies what is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import RecipeError
from ..hf.meta_model import MetaModel, ParameterSpec
from .families import (
    ATTENTION_READS,
    ATTENTION_WRITES,
    BESIDE,
    FAMILIES,
    FUSED_VALUES,
    GATED,
    MLP_READS,
    MLP_WRITES,
    UNLESS,
    VALUES,
    Family,
)

Kind = Literal["norm", "gated", "values"]
_LAYER = re.compile(r"(?P<before>.*?)layers\.(?P<number>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True, slots=True)
class Port:
    """Say where channels lie in a parameter, seen as matrices [rows, columns]; a vector is one column.

    A weight reads channels with its columns (axis -1), and writes them with its rows (axis -2), from ``start`` on. A
    group of ``width`` channels is read ``repeat`` times in a row, where several heads share values.
    """

    name: str
    axis: Literal[-1, -2]
    start: int = 0
    repeat: int = 1
    width: int = 1

    def spread(self, factors: np.ndarray) -> np.ndarray:
        """Return the factors [..., channels] for each row or column."""
        groups = factors.reshape(*factors.shape[:-1], -1, 1, self.width)
        return np.repeat(groups, self.repeat, -2).reshape(*factors.shape[:-1], -1)

    def gathered(self, columns: np.ndarray) -> np.ndarray:
        """Return the mean over the columns that read the same channel: [..., columns] to [..., channels]."""
        groups = columns.reshape(*columns.shape[:-1], -1, self.repeat, self.width)
        return groups.mean(-2).reshape(*columns.shape[:-1], -1)


@dataclass(frozen=True, slots=True)
class Channels:
    """Name channels that ``writers`` write and ``readers`` read, with nothing but products between, by channel.

    ``matrices`` is the number of experts that have such channels each; 1 for all else. The first writer of kind
    ``norm`` is the weight of a norm, to which ``gain`` is added before it multiplies. ``beside`` are rows that belong
    to the same channels and are not linear (gates).
    """

    kind: Kind
    count: int
    writers: tuple[Port, ...]
    readers: tuple[Port, ...]
    matrices: int = 1
    gain: float = 0.0
    beside: tuple[Port, ...] = ()

    @property
    def name(self) -> str:
        """Return the name of the first weight that reads the channels."""
        return self.readers[0].name


@dataclass(frozen=True, slots=True)
class Stream:
    """Name what writes to the residual stream of ``size`` channels, and what reads it through which norm."""

    size: int
    writers: tuple[Port, ...]
    norms: tuple[Channels, ...]  # the last one is that of the head
    embedding: str
    head: str


@dataclass(frozen=True, slots=True)
class Decoder:
    """Hold the relations of a decoder. ``stream`` is ``None`` if it cannot be rotated, for the reason ``barred``."""

    channels: tuple[Channels, ...]
    stream: Stream | None
    barred: str = ""
    head_size: int = 0


def decoder_of(model: MetaModel) -> Decoder:
    """Return the relations of a model's weights.

    Raises:
        RecipeError: the model is of a family that is not known, or has weights in its layers that its family lacks.
    """
    family = FAMILIES.get(model.model_type)
    if family is None:
        raise RecipeError(
            f"it is not known which weights of {model.architecture} (model type {model.model_type!r}) read what others "
            f"write, so nothing can be folded into them; known are the decoders {', '.join(sorted(FAMILIES))}"
        )
    config = model.module.config
    if found := [key for key in UNLESS if getattr(config, key, None)]:
        raise RecipeError(f"nothing can be folded into {model.architecture} with {', '.join(found)} in its config")
    layers: dict[str, dict[str, ParameterSpec]] = {}
    outside = []
    for name, spec in model.parameters.items():
        if spec.role == "buffer":
            continue
        if found := _LAYER.fullmatch(name):
            layers.setdefault(f"{found['before']}layers.{found['number']}.", {})[found["rest"]] = spec
        else:
            outside.append(name)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    made = [_Layer(family, prefix, tensors, heads, kv_heads) for prefix, tensors in layers.items()]
    if not made:
        raise RecipeError(f"{model.architecture} has no layers of which it is known what they read")
    channels = tuple(each for layer in made for each in layer.channels())
    stream, barred = _stream(model, family, made, outside)
    return Decoder(channels, stream, barred, made[0].head_size)


class _Layer:
    """Find the relations of one layer; ``tensors`` are its parameters by their names in the layer."""

    def __init__(
        self, family: Family, prefix: str, tensors: Mapping[str, ParameterSpec], heads: int, kv_heads: int
    ) -> None:
        self._family, self._prefix, self._tensors = family, prefix, tensors
        self._heads, self._kv_heads = heads, kv_heads
        output = tensors.get(f"{ATTENTION_WRITES}.weight")
        self.head_size = 0 if output is None else output.columns // heads
        norms = (family.attention_norm, family.mlp_norm, *family.ends)
        known = {*ATTENTION_READS, ATTENTION_WRITES, *MLP_READS, *MLP_WRITES, *BESIDE, *filter(None, norms)}
        left = [each for each in tensors if re.sub(r"\.(weight|bias)$", "", each) not in known]
        lacking = [each for each in filter(None, norms) if f"{each}.weight" not in tensors]
        if left or lacking or output is None:
            raise RecipeError(
                f"nothing can be folded into {prefix}*: its family has no {', '.join(left[:3])}"
                if left
                else f"nothing can be folded into {prefix}*: it lacks {', '.join(lacking) or ATTENTION_WRITES}"
            )

    def channels(self) -> Iterator[Channels]:
        """Yield the channels of the layer."""
        for norm, reads in ((self._family.attention_norm, ATTENTION_READS), (self._family.mlp_norm, MLP_READS)):
            if norm is not None:
                yield self._norm(norm, reads)
        if self._family.gated:
            for up, gate, down in GATED:
                if self._weight(down) is not None and self._weight(up) is not None:
                    yield self._gated(up, gate, down)
        yield self._values()

    def writes(self) -> Iterator[Port]:
        """Yield what the layer adds to the residual stream."""
        for name in (ATTENTION_WRITES, *MLP_WRITES):
            yield from self._ports(name, -2)

    def _weight(self, name: str) -> str | None:
        return next((each for each in (f"{name}.weight", name) if each in self._tensors), None)

    def _ports(self, name: str, axis: Literal[-1, -2], start: int = 0) -> Iterator[Port]:
        """Yield the ports of a module: its weight and, if rows are meant, its bias."""
        weight = self._weight(name)
        if weight is not None:
            yield Port(self._prefix + weight, axis, start)
        if axis == -2 and f"{name}.bias" in self._tensors:
            yield Port(f"{self._prefix}{name}.bias", axis, start)

    def _norm(self, norm: str, reads: tuple[str, ...]) -> Channels:
        readers = tuple(port for name in reads for port in self._ports(name, -1))
        count = self._tensors[f"{norm}.weight"].shape[0]
        return Channels("norm", count, tuple(self._ports(norm, -2)), readers, gain=self._family.gain)

    def _gated(self, up: str, gate: str | None, down: str) -> Channels:
        spec = self._tensors[str(self._weight(down))]
        count = spec.columns
        start = count if gate is None else 0  # gate's rows come first where they are one weight
        beside = tuple(self._ports(up if gate is None else gate, -2))
        matrices = spec.shape[0] if len(spec.shape) == 3 else 1
        writers = tuple(self._ports(up, -2, start))
        return Channels("gated", count, writers, tuple(self._ports(down, -1)), matrices, beside=beside)

    def _values(self) -> Channels:
        size, repeat = self.head_size, self._heads // self._kv_heads
        fused = self._weight(FUSED_VALUES) is not None
        start = (self._heads + self._kv_heads) * size if fused else 0
        writers = tuple(self._ports(FUSED_VALUES if fused else VALUES, -2, start))
        (reader,) = self._ports(ATTENTION_WRITES, -1)
        return Channels(
            "values", self._kv_heads * size, writers, (Port(reader.name, -1, 0, repeat, size),)
        )  # fmt: skip


def _stream(
    model: MetaModel, family: Family, layers: list[_Layer], outside: list[str]
) -> tuple[Stream | None, str]:  # fmt: skip
    """Return the residual stream, or why it cannot be rotated."""
    names = {module: name for name, module in model.module.named_modules()}
    embedding, head = (names.get(each) for each in _ends(model.module))
    prefix = "" if embedding is None else embedding.rpartition(".")[0] + "."
    norm = f"{prefix}norm.weight"
    if family.centred:
        return None, "its norms subtract the mean, which a rotation does not keep"
    if family.ends or family.attention_norm is None:
        where = family.ends[0] if family.ends else "no norm"
        return None, f"what its layers write is multiplied by {where} before it is added to the residual stream"
    if head is None or {*outside} - {f"{head}.bias"} != {f"{embedding}.weight", norm, f"{head}.weight"}:
        return None, "more or less reads the residual stream than its layers, one norm and a head"
    size = model.parameters[f"{embedding}.weight"].shape[-1]
    last = Channels("norm", size, (Port(norm, -2),), (Port(f"{head}.weight", -1),), gain=family.gain)
    norms = tuple(each for layer in layers for each in layer.channels() if each.kind == "norm")
    writers = (Port(f"{embedding}.weight", -1), *(port for layer in layers for port in layer.writes()))
    return Stream(size, writers, (*norms, last), f"{embedding}.weight", f"{head}.weight"), ""


def _ends(module: Any) -> tuple[Any, Any]:
    return module.get_input_embeddings(), module.get_output_embeddings()
