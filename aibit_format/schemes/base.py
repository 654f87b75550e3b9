"""Defines what a scheme is: how a tensor becomes planes of bytes, and values again."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import ClassVar, Self

import numpy as np

from ..dtypes import DTYPES
from ..errors import SchemeError

Planes = Mapping[str, np.ndarray]
Rows = slice | np.ndarray  # of the matrix that ``matrix`` makes of a shape: consecutive rows, or int64 indices

FLOATS = ("f16", "bf16", "f32")  # logical dtypes of weights that can be quantized

_INFINITY = 0x7F80_0000  # float32's

# Values of a group size that are not a number of elements, and how users write them.
ROW, TENSOR = 0, 0xFFFF_FFFF
GROUPS = {"row": ROW, "tensor": TENSOR}


@dataclass(frozen=True, slots=True)
class PlaneSpec:
    """One plane a scheme asks for: its role, the dtype of its elements and its shape."""

    role: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Return the size in bytes, exact whatever the shape claims."""
        return -(-math.prod(self.shape) * DTYPES[self.dtype].bits // 8)


@dataclass(frozen=True)
class Scheme(ABC):
    """A way to store a tensor. Instances are immutable and compare by their parameters.

    A subclass is a frozen dataclass whose fields, at most six, all ints with defaults, are the parameters that the
    file stores. Its constructor refuses values that mean nothing (SchemeError, through ``refuse``).
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    lossy: ClassVar[bool] = True
    words: ClassVar[Mapping[str, Mapping[str, int]]] = {}  # parameter -> words users may write for numbers
    cpu_roles: ClassVar[frozenset[str]] = frozenset()  # planes that repeat others in a layout that only CPUs read

    @classmethod
    def build(cls, name: str, parameters: tuple[int, ...]) -> Self:
        """Make the instance for stored parameters; missing ones take their defaults."""
        count = len(parameters_of(cls))
        if len(parameters) > count and any(parameters[count:]):
            raise cls.refuse(f"scheme {name!r} takes {count} parameters, found {parameters}")
        # A class that serves several names keeps its name in an instance, as the first field.
        named = any(field.name == "name" for field in fields(cls))
        return cls(*((name,) if named else ()), *parameters[:count])

    @staticmethod
    def refuse(message: str) -> SchemeError:
        """Return the error for parameters that a scheme does not take: AIB-E407."""
        error = SchemeError(message)
        error.code = "AIB-E407"
        return error

    @property
    def parameters(self) -> tuple[int, ...]:
        """Return the numbers that go into the scheme table."""
        return tuple(int(getattr(self, name)) for name in parameters_of(type(self)))

    @property
    def text(self) -> str:
        """Return the scheme as users write it and ``schemes.parse`` reads it: ``nf4,block_size=128,nested=1``."""
        parts = [self.name]
        for (name, default), value in zip(parameters_of(type(self)).items(), self.parameters, strict=True):
            if value != default:
                words = {number: word for word, number in self.words.get(name, {}).items()}
                parts.append(f"{name}={words.get(value, value)}")
        return ",".join(parts)

    @abstractmethod
    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        """Return the planes of a tensor of this logical shape and dtype: a pure function.

        Raises:
            SchemeError: the scheme cannot hold such a tensor.
        """

    def fitted(self, array: np.ndarray, dtype: str) -> Scheme:
        """Return this scheme with the parameters set that follow from a tensor's values; most have none."""
        return self

    @abstractmethod
    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        """Encode ``array``, whose elements are ``dtype`` in ``DTYPES[dtype].numpy`` storage, to planes.

        Raises:
            SchemeError: a value is not finite or does not fit, or this scheme only keeps what others have made.
        """

    @abstractmethod
    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        """Decode some rows of the tensor seen as a matrix (see ``matrix``), to float32 [rows, columns].

        Only these rows' bytes are touched. ``shape`` and ``dtype`` are the whole tensor's.
        """

    def decode(self, planes: Planes, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Decode all values, to float32 in ``shape``."""
        return self.decode_rows(planes, shape, dtype, slice(0, matrix(shape)[0])).reshape(shape)

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        """Yield (role, what is wrong) for planes whose contents no encoder writes, such as a negative scale."""
        return iter(())

    def bad_codes(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        """Yield (role, what is wrong) for what takes a look at every code; full verification and the writer look.

        Examples are spare bits that are not zero, and a plane that repeats another one's codes and differs.
        """
        return iter(())

    def by_rows(self, shape: tuple[int, ...]) -> bool:
        """Return whether each row is encoded on its own, to whole elements of every plane.

        Planes are then those of the rows, one after another, and rows can be encoded whenever they are at hand.
        """
        return False

    def row_multiple(self, shape: tuple[int, ...]) -> int:
        """Return the number of rows that slices of a matrix must begin and end at a multiple of."""
        return 1

    @property
    def fallback(self) -> Scheme | None:
        """Return the scheme for tensors of a shape that this one cannot hold.

        It is used where this scheme is the default of a conversion. A rule that names this scheme for a tensor which
        it cannot hold is an error instead.
        """
        return None

    def bits_per_weight(self, shape: tuple[int, ...], dtype: str) -> float:
        """Return the stored bits per element, scales included."""
        elements = math.prod(shape)
        return 8 * sum(plane.nbytes for plane in self.planes(shape, dtype)) / elements if elements else 0.0


def parameters_of(scheme: type[Scheme]) -> dict[str, int]:
    """Return the names of a scheme's parameters, in the order they are stored, and their defaults."""
    return {f.name: f.default for f in fields(scheme) if f.default is not MISSING}


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return rows and columns of a tensor seen as a matrix: rows run along the last dimension; a vector is one row."""
    return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)


def check_weights(name: str, shape: tuple[int, ...], dtype: str, rank: int = 2) -> None:
    """Raise SchemeError unless these are floating-point values of ``rank`` dimensions or more."""
    if len(shape) < rank:
        raise SchemeError(f"{name} needs rows: rank {rank} or more, found shape {shape}")
    if dtype not in FLOATS:
        raise SchemeError(f"{name} stands for floating-point values, not {dtype}")


def bad_scales(planes: Planes, role: str) -> Iterator[tuple[str, str]]:
    """Yield the problems of a plane of scales: each must be finite and not negative (minus zero is negative)."""
    scales = planes[role]
    # Their bits, taken for whole numbers, are below infinity's exactly for what is neither: one look, and no copies.
    if scales.dtype == np.float32 and scales.view(np.uint32).max(initial=0) < _INFINITY:
        return
    if not np.isfinite(scales).all():
        yield role, "a scale is not finite"
    elif np.signbit(scales).any():
        yield role, "a scale is negative"
