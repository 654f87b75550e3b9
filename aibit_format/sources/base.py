"""What a source is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor as the source has it: name, logical shape, dtype, and the file it is in."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of weights: its name inside the source, where it is, and its bytes."""

    name: str
    path: str
    size: int


class Source(Protocol):
    """Tensors, documents and files of something that can be converted."""

    kind: ClassVar[str]
    path: str

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

    def read(self, name: str) -> np.ndarray:
        """The tensor's values in the storage of its dtype (``DTYPES[dtype].numpy``), without a copy if possible."""
        ...
