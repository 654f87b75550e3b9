"""What a scheme is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import numpy as np

from ..dtypes import DTYPES
from ..errors import SchemeError

Planes = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class PlaneSpec:
    """One plane a scheme asks for: its role, the dtype of its elements and its shape."""

    role: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes, exact whatever the shape claims."""
        return -(-math.prod(self.shape) * DTYPES[self.dtype].bits // 8)


@dataclass(frozen=True)
class Scheme(ABC):
    """A way to store a tensor. Instances are immutable and compare by their parameters.

    A subclass is a frozen dataclass whose fields, all ints, are the parameters that the file stores.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    lossy: ClassVar[bool] = True

    @classmethod
    def build(cls, name: str, parameters: tuple[int, ...]) -> Self:
        """The instance for stored parameters; missing ones take their defaults."""
        count = len(fields(cls))
        if len(parameters) > count and any(parameters[count:]):
            error = SchemeError(f"scheme {name!r} takes {count} parameters, found {parameters}")
            error.code = "AIB-E407"
            raise error
        return cls(*parameters[:count])

    @property
    def parameters(self) -> tuple[int, ...]:
        """The numbers that go into the scheme table."""
        return tuple(int(getattr(self, field.name)) for field in fields(self))

    @abstractmethod
    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        """The planes of a tensor of this logical shape and dtype: a pure function.

        Raises:
            SchemeError: the scheme cannot hold such a tensor.
        """

    @abstractmethod
    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        """Planes of ``array``, whose elements are ``dtype`` in ``DTYPES[dtype].numpy`` storage.

        Raises:
            SchemeError: a value is not finite or does not fit.
        """

    @abstractmethod
    def decode(self, planes: Planes, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """The float32 values, in ``shape``, that the planes stand for."""

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        """(role, what is wrong) for planes whose contents no encoder writes, such as a negative scale."""
        return iter(())

    def bits_per_weight(self, shape: tuple[int, ...], dtype: str) -> float:
        """Stored bits per element, scales included."""
        elements = math.prod(shape)
        return 8 * sum(plane.nbytes for plane in self.planes(shape, dtype)) / elements if elements else 0.0


def bad_scales(planes: Planes, role: str) -> Iterator[tuple[str, str]]:
    """Problems of a plane of scales: each must be finite and not negative (minus zero is negative)."""
    scales = planes[role]
    if not np.isfinite(scales).all():
        yield role, "a scale is not finite"
    elif np.signbit(scales).any():
        yield role, "a scale is negative"
