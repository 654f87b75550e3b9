"""What a source is."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from ..container.layout import MAX_ELEMENTS, MAX_RANK
from ..container.metadata import Value
from ..errors import SourceError
from ..schemes import Scheme, make


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor as the source has it: name, logical shape and dtype, and the file it is in.

    ``scheme`` is how a quantized one is stored, ``None`` for values as they are. ``transposed`` says that ``shape``
    is that of the stored tensor, and the architecture wants its transpose (GPT-2's quantized Conv1D weights).
    ``alias_of`` names an earlier tensor that this is another name of, where the source says so. ``offset`` is the byte
    of the file at which its values begin, if they lie there as they are: in order, and not encoded; whoever wants them
    may read them there, instead of asking for its planes.

    Raises:
        SourceError: the format has no place for a tensor of this shape.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    scheme: Scheme | None = None
    transposed: bool = False
    alias_of: str | None = None
    offset: int | None = None

    def __post_init__(self) -> None:
        # Beside a size of 0 any others are no bytes, and no array can have them all.
        elements = math.prod(size for size in self.shape if size)
        if len(self.shape) > MAX_RANK or min(self.shape, default=0) < 0 or elements > MAX_ELEMENTS:
            raise SourceError(
                f"{self.file}: tensor {self.name!r}: shape {str(list(self.shape))[:80]}; sizes are not negative, "
                f"at most {MAX_RANK} dimensions and {MAX_ELEMENTS} elements, without the sizes that are 0"
            )

    @property
    def stored(self) -> Scheme:
        """The scheme of what is stored: the plain one of its dtype for values as they are."""
        return self.scheme or make(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of its planes."""
        return sum(plane.nbytes for plane in self.stored.planes(self.shape, self.dtype))


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of weights: its name inside the source, where it is, and its bytes."""

    name: str
    path: str
    size: int

    @property
    def state(self) -> tuple[int, ...] | None:
        """What is another if it is another file by now, or has been written to; ``None`` if it is gone."""
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Source(Protocol):
    """Tensors, documents and files of something that can be converted."""

    kind: ClassVar[str]
    path: str
    no_model: str | None  # why no transformers model can be built of it; its tensors can be stored all the same
    metadata: Mapping[str, Value]  # what the output's metadata say besides
    architecture: str | None  # the model's class, where the source knows better than the config

    @property
    def tensors(self) -> Mapping[str, SourceTensor]:
        """Every tensor by name."""
        ...

    @property
    def files(self) -> list[SourceFile]:
        """The files of weights, sorted by name."""
        ...

    @property
    def documents(self) -> dict[str, bytes]:
        """Documents by name, as they are."""
        ...

    def planes(self, name: str) -> Mapping[str, np.ndarray]:
        """The tensor's planes in its ``stored`` scheme, views of the file if possible.

        Raises:
            SourceError: they contradict what the source says of them.
        """
        ...


def values(source: Source, name: str) -> tuple[np.ndarray, str]:
    """A tensor's values in the storage of a dtype, and that dtype: float32 for a quantized one."""
    tensor, planes = source.tensors[name], source.planes(name)
    if tensor.scheme is None:
        return planes["values"], tensor.dtype
    return tensor.scheme.decode(planes, tensor.shape, tensor.dtype), "f32"
