"""Defines the interface of a scheme, which encodes a tensor to planes of bytes and decodes them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import ClassVar, Self

import numpy as np

from ..dtypes import DTYPES
from ..errors import SchemeError
from .packing import bad_tail

Planes = Mapping[str, np.ndarray]
Rows = slice | np.ndarray  # of the matrix that ``matrix`` makes of a shape: consecutive rows, or int64 indices

FLOATS = ("f16", "bf16", "f32")  # logical dtypes of weights that can be quantized

_INFINITY = 0x7F80_0000  # float32's

# Values of a group size that are not a number of elements, and how users write them.
ROW, TENSOR = 0, 0xFFFF_FFFF
GROUPS = {"row": ROW, "tensor": TENSOR}


@dataclass(frozen=True, slots=True)
class PlaneSpec:
    """Describe a plane that a scheme stores: its role, the dtype of its elements and its shape."""

    role: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Return the size in bytes, a Python int: even an absurd shape from a file does not overflow."""
        return DTYPES[self.dtype].nbytes(self.shape)

    @property
    def stored(self) -> tuple[int, ...]:
        """Return the shape of the array that holds it: another than its own where elements are packed."""
        return DTYPES[self.dtype].stored(self.shape)


@dataclass(frozen=True)
class Scheme(ABC):
    """The base of all schemes, each of which stores a tensor in its own way. Instances compare by their parameters.

    A subclass is a frozen dataclass. Its fields are the parameters that a file stores, all ints with defaults: at most
    six in the scheme table, and after them at most two in the record of each tensor, which ``of_tensor`` names. Options
    of the encoder are keyword-only, and make no difference in comparisons. Its constructor raises a SchemeError,
    made by ``refuse``, for values without a meaning.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    is_numbered: ClassVar[bool] = False  # users name its version, as the name alone stands for another one
    of_tensor: ClassVar[tuple[str, ...]] = ()  # parameters that follow from the values of one tensor
    of_encoder: ClassVar[tuple[str, ...]] = ()  # options of ``encode``, which no file stores: keyword-only fields
    lossy: ClassVar[bool] = True
    gains_alone: ClassVar[bool] = False  # whether conversions use ``encode_weighted`` also where there is no importance
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
        """Return the parameters as the scheme table of a file stores them."""
        return tuple(int(getattr(self, name)) for name in parameters_of(type(self)))

    @property
    def tensor_parameters(self) -> tuple[int, ...]:
        """Return the parameters as the record of a tensor stores them."""
        return tuple(int(getattr(self, name)) for name in self.of_tensor)

    def for_tensor(self, parameters: Sequence[int]) -> Scheme:
        """Return this scheme with the parameters that the record of a tensor states; it takes those that it has."""
        return replace(self, **dict(zip(self.of_tensor, parameters, strict=False))) if self.of_tensor else self

    @property
    def stated(self) -> Scheme:
        """Return this scheme as the scheme table states it, with zeros for the parameters of a tensor."""
        return self.for_tensor((0,) * len(self.of_tensor))

    @property
    def text(self) -> str:
        """Return the scheme as users write it and ``schemes.parse`` reads it: ``nf4,block_size=128,nested=1``."""
        parts = [self.name, f"version={self.version}"] if self.is_numbered else [self.name]
        for name, default in all_parameters_of(type(self)).items():
            value = int(getattr(self, name))
            if value != default:
                words = {number: word for word, number in self.words.get(name, {}).items()}
                parts.append(f"{name}={words.get(value, value)}")
        return ",".join(parts)

    @abstractmethod
    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        """Return the planes of a tensor of this logical shape and dtype; they depend on nothing else.

        Raises:
            SchemeError: the scheme cannot hold such a tensor.
        """

    @property
    def unordered(self) -> Scheme:
        """Return the scheme of the planes without ``column_order``: columns are as they are stored. Most have none."""
        return self

    def fitted(self, array: np.ndarray, dtype: str) -> Scheme:
        """Return this scheme with parameters that depend on the tensor's values set; most schemes have none."""
        return self

    @property
    def needs_inputs(self) -> bool:
        """Tell whether ``encode`` has to be told the range of a layer's inputs first; see ``calibrated``."""
        return False

    def calibrated(self, low: np.ndarray, high: np.ndarray) -> Scheme:
        """Return this scheme for a tensor whose inputs lie between ``low`` and ``high``, f32 with a number a matrix.

        Only schemes that store how inputs are quantized have a use for it. Not finite ranges are refused by ``encode``.
        """
        return self

    def input_steps(self) -> np.ndarray:
        """Return the steps to which inputs are rounded, f32 with a number a matrix; none before ``calibrated``."""
        return np.empty(0, np.float32)

    @property
    def uncalibrated(self) -> Scheme:
        """Return the scheme of the same weight for a layer whose inputs nobody has seen."""
        return self

    @abstractmethod
    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        """Encode ``array``, whose elements are ``dtype`` in ``DTYPES[dtype].numpy`` storage, to planes.

        Elements of less than a byte are codes, one in each u8; planes of such a dtype are packed.

        Raises:
            SchemeError: a value is not finite or does not fit, or only other tools encode for this scheme.
        """

    @property
    def takes_importance(self) -> bool:
        """Tell whether ``encode_weighted`` has a choice, and so makes other planes than ``encode``."""
        return False

    def encode_weighted(self, array: np.ndarray, dtype: str, importance: np.ndarray | None) -> dict[str, np.ndarray]:
        """Encode as ``encode`` does, with as little error as is found where it matters.

        Args:
            array, dtype: as for ``encode``.
            importance: a weight of the squared error of each column, f32 [columns], or of each element of the tensor
                seen as a matrix, f32 [rows, columns]; see ``check_importance``. None: all are alike.

        Raises:
            SchemeError: as for ``encode``, or the importance is not one of this tensor.
        """
        return self.encode(array, dtype)

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
        """Yield (role, what is wrong) for errors that only looking at every code finds.

        Examples are spare bits that are not zero, and a plane that should repeat another one's codes but differs. Only
        full verification and the writer call this.
        """
        return iter(())

    def other_forms(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        """Yield (role, what is otherwise) where valid planes decode like others, which ``encode`` would have written.

        Examples are the spare nibble of an odd number of codes, and the scale of a row of zeros. No reader refuses
        them. Planes that came with a checkpoint may have them too.
        """
        return iter(())

    def by_rows(self, shape: tuple[int, ...]) -> bool:
        """Tell whether each row is encoded independently of the others, to whole elements of every plane.

        The planes of the tensor are then those of its rows, one after another, so rows can be encoded in any order.
        """
        return False

    def row_multiple(self, shape: tuple[int, ...]) -> int:
        """Return n such that slices of a matrix must begin and end at multiples of n rows."""
        return 1

    @property
    def fallback(self) -> Scheme | None:
        """Return the scheme for tensors whose shape this one cannot hold.

        It is used if this scheme is the default of a conversion. If a rule names this scheme for such a tensor, that is
        an error instead.
        """
        return None

    def bits_per_weight(self, shape: tuple[int, ...], dtype: str) -> float:
        """Return the stored bits per element, scales included."""
        elements = math.prod(shape)
        return 8 * sum(plane.nbytes for plane in self.planes(shape, dtype)) / elements if elements else 0.0


def parameters_of(scheme: type[Scheme]) -> dict[str, int]:
    """Return the names of a scheme's parameters, in the order that the scheme table stores them, and their defaults."""
    others = (*scheme.of_tensor, *scheme.of_encoder)
    return {name: default for name, default in all_parameters_of(scheme).items() if name not in others}


def all_parameters_of(scheme: type[Scheme]) -> dict[str, int]:
    """Return the same, then the parameters that the record of a tensor stores, and last the encoder's options."""
    options = [f for f in fields(scheme) if f.name in scheme.of_encoder]
    stored = [f for f in fields(scheme) if not f.kw_only]
    return {f.name: f.default for f in [*stored, *options] if f.default is not MISSING}


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, columns) of a tensor seen as a matrix: rows run along the last dimension; a vector is one row."""
    return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)


def swapped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a tensor whose last two dimensions are swapped."""
    return (*shape[:-2], *shape[:-3:-1])


def check_weights(name: str, shape: tuple[int, ...], dtype: str, rank: int = 2) -> None:
    """Raise SchemeError unless the tensor has a floating-point dtype and ``rank`` dimensions or more."""
    if len(shape) < rank:
        raise SchemeError(f"{name} needs rows: rank {rank} or more, found shape {shape}")
    if dtype not in FLOATS:
        raise SchemeError(f"{name} stands for floating-point values, not {dtype}")


def check_importance(importance: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise SchemeError unless an importance has a finite number that is not negative for each column or element."""
    rows, columns = matrix(shape)
    if importance.shape not in ((columns,), (rows, columns)):
        raise SchemeError(f"an importance of shape {importance.shape}, where {columns} columns are")
    if importance.dtype != np.float32:
        raise SchemeError(f"an importance of {importance.dtype}, not float32")
    if not ((importance >= 0) & (importance < np.inf)).all():  # NaN is neither
        raise SchemeError("an importance is negative or not finite")


def bad_scales(planes: Planes, role: str) -> Iterator[tuple[str, str]]:
    """Yield the problems of a plane of scales: each must be finite and not negative (minus zero is negative)."""
    scales = planes[role]
    # As unsigned integers, the bits of finite values without a sign are below those of infinity: one pass, no copies.
    if scales.dtype == np.float32 and scales.view(np.uint32).max(initial=0) < _INFINITY:
        return
    if not np.isfinite(scales).all():
        yield role, "a scale is not finite"
    elif np.signbit(scales).any():
        yield role, "a scale is negative"


def bad_tails(specs: Iterable[PlaneSpec], planes: Planes) -> Iterator[tuple[str, str]]:
    """Yield the problems of packed planes, of which the bits after the last element of a row must be zero."""
    for spec in specs:
        dtype = DTYPES[spec.dtype]
        if dtype.is_packed and bad_tail(planes[spec.role], dtype.bits, (spec.shape or (1,))[-1], "little"):
            yield spec.role, f"a bit after the last {spec.dtype} of a row is not zero"
