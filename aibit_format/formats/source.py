"""Defines what a source provides: tensors, documents and files of something that can be converted."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..container.layout import MAX_ELEMENTS, MAX_RANK
from ..container.metadata import Value
from ..errors import SourceError
from ..schemes import Scheme, make


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """Describe a tensor as the source has it: name, logical shape and dtype, and the file it is in.

    ``scheme`` says how a quantized tensor is stored; it is ``None`` for plain values, unless these are smaller than a
    byte, and so packed. ``transposed`` says that ``shape`` is that of the stored tensor, and the architecture wants its
    last two dimensions swapped (GPT-2's quantized Conv1D weights, gpt-oss' experts).
    ``alias_of`` names the earlier tensor that this one is another name for, if the source says so. ``offset`` is the
    byte of the file at which its values begin, if they lie there in order and without encoding; they may then be read
    from there instead of through ``planes``. ``computed`` says that values are computed whenever they are read.

    Raises:
        SourceError: the format cannot hold a tensor of this shape, or it is to be transposed and is no matrix.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    scheme: Scheme | None = None
    transposed: bool = False
    alias_of: str | None = None
    offset: int | None = None
    computed: bool = False
    intended: Scheme | None = None

    def __post_init__(self) -> None:
        # A size of 0 makes the tensor empty whatever the other sizes, but no array can have sizes beyond the limit.
        # Sizes and their number are checked first: the product of many large ones takes minutes.
        shape = self.shape[: MAX_RANK + 1]
        in_bounds = len(shape) <= MAX_RANK and all(0 <= size <= MAX_ELEMENTS for size in shape)
        if not in_bounds or math.prod(size for size in shape if size) > MAX_ELEMENTS:
            raise SourceError(
                f"{self.file}: tensor {self.name!r}: shape {str(list(shape))[:80]}; sizes are not negative, "
                f"at most {MAX_RANK} dimensions and {MAX_ELEMENTS} elements, without the sizes that are 0"
            )
        if self.transposed and len(shape) < 2:
            raise SourceError(
                f"{self.file}: tensor {self.name!r}: shape {list(shape)}, where the architecture has a matrix"
            )

    @property
    def stored(self) -> Scheme:
        """Return the scheme it is stored in: for plain values, the plain one of its dtype."""
        return self.scheme or make(self.dtype)

    @property
    def nbytes(self) -> int:
        """Return the bytes of its planes."""
        return sum(plane.nbytes for plane in self.stored.planes(self.shape, self.dtype))


@dataclass(frozen=True, slots=True)
class SourceFile:
    """Describe a file of weights: its name inside the source, its path, and its size in bytes."""

    name: str
    path: str
    size: int

    @property
    def state(self) -> tuple[int, ...] | None:
        """Return numbers that change if the file is replaced or written to; ``None`` if it is gone."""
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Source(Protocol):
    """Provide the tensors, documents and files of something that can be converted."""

    path: str
    no_model: str | None  # why no transformers model can be built from it; its tensors can still be stored
    metadata: Mapping[str, Value]  # to be added to the output's metadata
    architecture: str | None  # the model's class, if the source knows better than the config

    @property
    def kind(self) -> str:
        """Return the name of the kind of source."""
        ...

    @property
    def tensors(self) -> Mapping[str, SourceTensor]:
        """Return every tensor by name."""
        ...

    @property
    def files(self) -> list[SourceFile]:
        """Return the files of weights, sorted by name."""
        ...

    @property
    def documents(self) -> dict[str, bytes]:
        """Return the documents by name, unchanged."""
        ...

    def planes(self, name: str) -> Mapping[str, np.ndarray]:
        """Read the tensor's planes in its ``stored`` scheme, as views of the file if possible.

        Raises:
            SourceError: they contradict what the source says about them.
        """
        ...


def values(source: Source, name: str) -> tuple[np.ndarray, str]:
    """Return a tensor's values in the storage of a dtype, and that dtype; a quantized one is decoded to float32."""
    tensor, planes = source.tensors[name], source.planes(name)
    if tensor.scheme is None:
        return planes["values"], tensor.dtype
    return tensor.scheme.decode(planes, tensor.shape, tensor.dtype), "f32"
