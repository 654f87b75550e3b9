"""Stands for schemes and dtypes that this reader does not know, so that files with them can be handled all the same.

The tables of a file say where the planes of such a tensor lie and what their bytes hash to. So it can be listed,
checked, copied and signed like any other; only its values cannot be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import SchemeError
from .base import Planes, PlaneSpec, Rows, Scheme


@dataclass(frozen=True, slots=True)
class StoredPlane(PlaneSpec):
    """Describe a plane by what a file says of it: ``length`` in bytes, whatever its elements are."""

    length: int

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return self.length


@dataclass(frozen=True, kw_only=True)  # as the class of all schemes has a version, which would be a default here
class Opaque(Scheme):
    """Hold what a file says of a scheme that is not known here, and of the planes of one tensor in it.

    ``code`` is that of the error for whoever wants values: AIB-E406 for an unknown scheme or version, AIB-E404 for an
    unknown dtype; ``reason`` says which.
    """

    name: str  # type: ignore[misc] - of an instance here
    version: int  # type: ignore[misc]
    stored: tuple[int, ...]  # parameters as the scheme table has them
    code: str
    reason: str
    specs: tuple[StoredPlane, ...] = ()
    stored_of_tensor: tuple[int, ...] = ()  # parameters as the record of the tensor has them

    @property
    def parameters(self) -> tuple[int, ...]:
        """Return the parameters as the scheme table of the file stores them."""
        return self.stored

    @property
    def tensor_parameters(self) -> tuple[int, ...]:
        """Return the parameters as the record of the tensor stores them."""
        return self.stored_of_tensor

    def for_tensor(self, parameters: Sequence[int]) -> Scheme:
        """Return this scheme with all parameters of a tensor's record: nobody here knows which of them it takes."""
        return replace(self, stored_of_tensor=tuple(parameters))

    @property
    def stated(self) -> Scheme:
        """Return this scheme without what belongs to a tensor."""
        return replace(self, stored_of_tensor=())

    @property
    def text(self) -> str:
        """Return the name, with the version and the parameters that are not zero; nobody parses it."""
        numbers = [str(number) for number in self.stored]
        while numbers and numbers[-1] == "0":
            numbers.pop()
        return f"{self.name} v{self.version}" + (f" ({', '.join(numbers)})" if numbers else "")

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        """Return the planes that the file has for the tensor."""
        return self.specs

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        """Raise SchemeError: nobody here knows how."""
        raise self.unknown()

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        """Raise SchemeError: nobody here knows how."""
        raise self.unknown()

    def unknown(self) -> SchemeError:
        """Return the error for whoever wants values."""
        error = SchemeError(f"{self.reason}; a newer version of the reader may know it")
        error.code = self.code
        return error
