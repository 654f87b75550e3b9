"""Reads directories in which a quantized weight is several tensors, its parts, and joins them to one tensor.

A subclass says with ``SUFFIXES`` how the names of parts end, and from the parts of a weight makes its scheme and the
planes of that. Parts whose names end in ``.something`` belong to ``.weight`` of the same module; others, such as
``_scales``, to the tensor whose name is before them. All other tensors are as in any directory.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...dtypes import DTYPES
from ...errors import SchemeError, SourceError
from ...schemes import Scheme, parse
from ...schemes.packing import bad_tail, pack, pack_plane, unpack
from ..source import SourceTensor
from .bitsandbytes import weight_dtype
from .origin import left_out, record
from .settings import settings
from .source import HuggingFace

CODES = "codes"  # the part that holds the elements; a tensor with the weight's own name is that part
PACKED = "packed"  # the elements too, of a weight that may have a tensor of its own name beside them
LEFT_OUT = "left out"  # a part that says nothing of the weight, such as the scale of activations

Parts = Mapping[str, SourceTensor]  # of one weight
Planes = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Weight:
    """Describe a quantized weight: its shape, its scheme as users write it, and a function that reads its planes.

    ``transposed`` says that the architecture wants the transpose of its last two dimensions.
    """

    shape: tuple[int, ...]
    scheme: str
    read: Callable[[], Planes]
    transposed: bool = False


class QuantizedModules(HuggingFace, ABC):
    """Provide the tensors of the directory ``path``, parts of weights joined.

    ``metadata`` counts the parts that are left out, and keeps what else an export needs to write the same parts.

    Raises:
        SourceError: no weight is quantized, a part is missing, or dtypes or shapes of parts contradict each other or
            what is said of them.
    """

    SUFFIXES: ClassVar[Mapping[str, str]]  # end of a tensor's name -> the part it is
    CODE_DTYPES: ClassVar[tuple[str, ...]] = ()  # of weights that mean nothing without their other parts

    def __init__(self, path: str) -> None:
        super().__init__(path)
        found = settings(path)
        self.said, self._said_in = found.said, found.file
        self._dtype = weight_dtype(self.config, path)
        self._weights: dict[str, Weight] = {}
        self._left = Counter[str]()  # parts that are left out, by the ends of their names
        self._parts = self._grouped()
        self.prepare()
        self.metadata = {
            **self.metadata,
            **(left_out(self._left) if self._left else {}),
            **record(found, ((name, each.values()) for name, each in self._parts.items())),
        }
        for name, parts in self._parts.items():
            self.tensors[name] = self._joined(name, parts)
        if not self._parts:
            endings = ", ".join(sorted(self.SUFFIXES))
            raise self.refused(f"none of {len(self.tensors)} tensors quantized: no name ends in {endings}")
        for tensor in self.tensors.values():
            if tensor.dtype in self.CODE_DTYPES and tensor.scheme is None:
                self._check_plain(tensor)

    def planes(self, name: str) -> Planes:
        """Read a tensor's planes.

        Raises:
            SourceError: a scale is not finite, or codes contradict what is said of them.
        """
        weight = self._weights.get(name)
        if weight is None:
            return {"values": self.value(self.tensors[name])}
        planes, scheme = weight.read(), self.tensors[name].stored
        for role, problem in scheme.bad_values(planes):
            raise self.error(self._parts[name].get(role, next(iter(self._parts[name].values()))), problem)
        return planes

    @abstractmethod
    def weight(self, name: str, parts: Parts) -> Weight:
        """Join the parts of the weight ``name``.

        Raises:
            SourceError: a part is missing, or parts contradict each other or what is said of them.
        """

    def prepare(self) -> None:
        """Read what is said of all weights. The parts of each are known, and none is joined yet."""

    def value(self, tensor: SourceTensor) -> np.ndarray:
        """Read a tensor of the directory, in the storage of its dtype."""
        return self._shards[tensor.file].read(tensor.name)

    def part(
        self, name: str, parts: Parts, part: str, dtypes: Sequence[str] = (), shape: tuple[int, ...] | None = None
    ) -> SourceTensor:
        """Return a part of a weight, after checking that it is there, and has one of the dtypes, and the shape.

        Elements are in rows and columns, and have what further dimensions there are before these.

        Raises:
            SourceError: it is not there, or is something else.
        """
        found = parts.get(part)
        if found is None:
            ending = next((suffix for suffix, role in self.SUFFIXES.items() if role == part), "")
            whole = name.removesuffix(".weight") + ending if ending.startswith(".") else name + ending
            raise self.error(next(iter(parts.values())), f"belongs to a quantized weight, but {whole} is missing")
        if dtypes and found.dtype not in dtypes:
            raise self.error(found, f"is {found.dtype}{list(found.shape)}, expected {' or '.join(dtypes)}")
        if part in (CODES, PACKED) and len(found.shape) < 2:
            raise self.error(found, f"has shape {list(found.shape)}, expected rows and columns")
        if shape is not None and found.shape != shape:
            raise self.error(found, f"has shape {list(found.shape)}, expected {list(shape)} for {name!r}")
        return found

    def error(self, tensor: SourceTensor, what: str) -> SourceError:
        """Make an error about a tensor."""
        return SourceError(f"{self.path}/{tensor.file}: tensor {tensor.name!r} {what}")

    def refused(self, what: str) -> SourceError:
        """Make an error about what is said of the quantization."""
        return SourceError(f"{self.path}/{self._said_in}: {self.kind} quantization with {what}")

    def names(self, key: str) -> list[str]:
        """Return the names that a key of the settings lists; none where it is null or absent."""
        found = self.said.get(key) or []
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise self.refused(f"{key} {str(found)[:80]!r}, expected a list of names")
        return found

    def choice(self, key: str, known: Collection[str], default: str | None = None) -> str:
        """Return what a key of the settings chooses of the names that are known."""
        found = self.said.get(key, default)
        if not isinstance(found, str) or found not in known:
            raise self.refused(f"{key} {str(found)[:80]!r}, known: {', '.join(known)}")
        return found

    def check_listed(self, key: str) -> None:
        """Raise SourceError if a module that a key of the settings keeps from being quantized is quantized."""
        for kept in self.names(key):
            for name, parts in self._parts.items():
                if re.search(rf"(^|\.){re.escape(kept)}(\.|$)", name.removesuffix(".weight")):
                    raise self.error(next(iter(parts.values())), f"is quantized, but {key} names {kept!r}")

    def leave_out(self, tensor: SourceTensor) -> None:
        """Count a tensor of the directory that no scheme has a place for."""
        self._left[tensor.name.rpartition(".")[2]] += 1

    def _split(self, name: str) -> tuple[str, str] | None:
        """Return the weight that a tensor is a part of, and which; ``None`` for a name of another kind."""
        for suffix in sorted(self.SUFFIXES, key=len, reverse=True):
            if name.endswith(suffix) and len(name) > len(suffix):
                return name.removesuffix(suffix) + ".weight" * suffix.startswith("."), self.SUFFIXES[suffix]
        return None

    def _grouped(self) -> dict[str, dict[str, SourceTensor]]:
        """Take the parts out of the tensors, and return them by the weights they belong to."""
        stored, groups = self.tensors, {}
        self.tensors = {}
        for name, tensor in stored.items():
            found = self._split(name)
            if found is None:
                self.tensors[name] = tensor
            elif found[1] == LEFT_OUT:
                self.leave_out(tensor)
            elif found[1] in (group := groups.setdefault(found[0], {})):
                raise self.error(tensor, f"is {found[1]} of {found[0]!r}, and so is {group[found[1]].name!r}")
            else:
                group[found[1]] = tensor
        for name, parts in groups.items():
            if name in self.tensors:
                if CODES in parts:
                    raise self.error(self.tensors[name], f"is there beside {parts[CODES].name!r}")
                parts[CODES] = self.tensors.pop(name)
        return groups

    def _joined(self, name: str, parts: Parts) -> SourceTensor:
        weight = self.weight(name, parts)
        some = parts.get(CODES, next(iter(parts.values())))
        try:
            scheme: Scheme = parse(weight.scheme)
            tensor = SourceTensor(name, weight.shape, self._dtype, some.file, scheme, weight.transposed)
            scheme.planes(weight.shape, self._dtype)
        except SchemeError as error:
            raise self.error(some, f"cannot be {weight.scheme} of shape {list(weight.shape)}: {error}") from error
        self._weights[name] = weight
        return tensor

    def _check_plain(self, tensor: SourceTensor) -> None:
        parts = " or ".join(suffix for suffix, part in self.SUFFIXES.items() if part not in (CODES, LEFT_OUT))
        raise self.error(tensor, f"is {tensor.dtype}, codes of a quantized weight, without its {parts}")


def listed(names: Iterable[str], shown: int = 3) -> str:
    """Return the first few names, and how many more there are."""
    found = list(names)
    return ", ".join(found[:shown]) + (f" and {len(found) - shown} more" if len(found) > shown else "")


def stream_codes(words: np.ndarray, bits: int, columns: int, dtype: str) -> np.ndarray:
    """Return the plane of ``dtype`` for rows of packed codes of ``bits``, the first in the lowest bits.

    Args:
        words: [..., W] in little-endian order: bytes, or words of 32 bits, over whose ends codes may reach.
        bits: of a code.
        columns: codes in a row.
        dtype: of the plane; it may be wider than the codes.

    Raises:
        ValueError: a bit after the last code is set.
    """
    data = np.ascontiguousarray(words).view(np.uint8)
    used = -(-columns * bits // 8)
    if data[..., used:].any() or bad_tail(data[..., :used], bits, columns, "little"):
        raise ValueError("a bit after the last code of a row is set")
    data = data[..., :used]
    if DTYPES[dtype].bits == bits:
        return np.ascontiguousarray(data)
    return pack_plane(unpack(data, bits, columns, "little"), dtype)


def plane_of(codes: np.ndarray, bits: int, dtype: str) -> np.ndarray:
    """Pack codes, one in each u8 [..., K], to a plane of ``dtype``.

    Raises:
        ValueError: a code does not fit into so many bits.
    """
    if codes.size and int(codes.max()) >> bits:
        raise ValueError(f"a code is {int(codes.max())}, beyond {bits} bits")
    return pack(codes, DTYPES[dtype].bits, "little")
