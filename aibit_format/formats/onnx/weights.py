"""Makes initializers of tensors: quantized weights as onnxruntime multiplies them, others as floats.

``MatMulNBits`` multiplies codes of 4 or 8 bits in groups of columns; its codes of 4 bits have the first in the low
nibble, those here in the high one, and its codes of 8 bits are unsigned. Planes that ONNX reads as they are can stay in
the ``.aibit`` file: plain tensors, and the signed codes of ``int8``, which ``DequantizeLinear`` decodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...container.tables import Plane, TensorInfo
from ...dtypes import to_float32
from ...file.sharded_reader import Opened
from ...schemes.base import Scheme
from ...schemes.int4_group import Int4Group
from ...schemes.int8 import Int8
from ...schemes.int8_affine import Int8Absmax, Int8ZeroPoint
from ...schemes.plain import Plain

_LEAST_GROUP = 16  # columns that MatMulNBits takes
_GROUP_OF_ROWS = 128  # into which rows with one scale are cut
IN_PLACE = ("f32", "f16", "bf16", "i8")  # dtypes of plain tensors that ONNX has too


@dataclass(frozen=True)
class Initializer:
    """Describes an initializer: its dtype, by numpy's name or ``bfloat16``, its shape, and where its bytes come from.

    They are a ``plane`` of a ``tensor`` in the file, those of another initializer, ``alias``, or what ``make`` gives.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    make: Callable[[], np.ndarray] = lambda: np.empty(0)
    alias: str | None = None
    tensor: str | None = None
    plane: Plane | None = None


@dataclass(frozen=True)
class Packed:
    """Holds what ``MatMulNBits`` takes: names of codes, scales and perhaps zero points, bits and columns of a group."""

    operands: tuple[str, ...]
    bits: int
    group: int


@dataclass
class Weights:
    """Collects the initializers of a file's tensors, each once.

    Args:
        file: the model.
        decoded: write floats, whatever the scheme.
        in_place: leave in the file what ONNX reads as it lies there.
    """

    file: Opened
    decoded: bool = False
    in_place: bool = False
    made: dict[str, Initializer] = field(default_factory=dict)
    as_floats: list[str] = field(default_factory=list)  # quantized tensors that are decoded

    def info(self, name: str) -> TensorInfo:
        """Describe a tensor; an alias by what it stands for."""
        info = self.file.info(name)
        return info if info.alias_of is None else self.file.info(info.alias_of)

    def packed(self, name: str) -> Packed | None:
        """Return what ``MatMulNBits`` takes of a weight; ``None`` if its scheme is none of those."""
        info = self.info(name)
        if self.decoded or self.in_place or len(info.shape) != 2:
            return None
        form = _packed_form(info.scheme, info.shape)
        if form is None or (form[0] == 4 and form[2] and self.file.planes(info.name)["zero_point"].max(initial=0) > 15):
            return None  # GPTQ's zero points go to 16, which four bits do not hold
        bits, group, has_zeros = form
        rows, columns = info.shape
        groups = columns // group
        self._beside(f"{info.name}.codes", "uint8", (rows, groups, group * bits // 8), lambda: self._codes(info, bits))
        self._beside(f"{info.name}.scales", "float32", (rows * groups,), lambda: self._scales(info, groups))
        names = [f"{info.name}.codes", f"{info.name}.scales"]
        if has_zeros:
            size = rows * (groups if bits == 8 else (groups + 1) // 2)
            self._beside(f"{info.name}.zero_points", "uint8", (size,), lambda: self._zero_points(info, bits))
            names.append(f"{info.name}.zero_points")
        return Packed(tuple(names), bits, group)

    def rows_of_codes(self, name: str) -> tuple[str, str, int] | None:
        """Return codes [N, K] of 8 bits, scales [N, 1], and what is taken off codes; ``None`` for other schemes."""
        info = self.info(name)
        if self.decoded or not isinstance(info.scheme, Int8) or len(info.shape) != 2:
            return None
        rows, columns = info.shape
        scales = f"{info.name}.row_scales"
        self._beside(scales, "float32", (rows, 1), lambda: self._scales(info, 1))
        if self.in_place:
            codes = next(plane for plane in info.planes if plane.role == "codes")
            self._within(info.name, f"{info.name}.signed", "int8", (rows, columns), codes)
            return f"{info.name}.signed", scales, 0
        packed = _packed_form(info.scheme, info.shape)
        if packed is None:
            self._beside(f"{info.name}.rows", "uint8", (rows, columns), lambda: self._codes(info, 8))
            return f"{info.name}.rows", scales, 128
        self.packed(name)
        again, whole = f"{info.name}.rows", f"{info.name}.codes"  # the same bytes as a matrix
        self.made.setdefault(again, Initializer(again, "uint8", (rows, columns), rows * columns, alias=whole))
        return again, scales, 128

    def values(self, name: str, shape: tuple[int, ...] | None = None) -> tuple[str, str]:
        """Return the name and the dtype of an initializer that holds a tensor's values.

        They are float32, but for plain tensors that are left in the file.
        """
        info = self.info(name)
        if self.in_place and isinstance(info.scheme, Plain) and info.dtype in IN_PLACE and not info.transposed:
            dtype = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8"}[info.dtype]
            self._within(info.name, info.name, dtype, info.shape, info.planes[0])
            return info.name, dtype
        if info.scheme.lossy and info.name not in self.as_floats:
            self.as_floats.append(info.name)
        self._beside(info.name, "float32", shape or info.shape, lambda: self._floats(info))
        return info.name, "float32"

    def constant(self, array: np.ndarray) -> str:
        """Return the name of an initializer with these few numbers."""
        key = f"constant_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()[:400]}"
        self.made.setdefault(key, Initializer(key, str(array.dtype), array.shape, array.nbytes, lambda: array))
        return key

    def _beside(self, name: str, dtype: str, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.made.setdefault(name, Initializer(name, dtype, shape, nbytes, make))

    def _within(self, tensor: str, name: str, dtype: str, shape: tuple[int, ...], plane: Plane) -> None:
        self.made.setdefault(name, Initializer(name, dtype, shape, plane.length, tensor=tensor, plane=plane))

    def _floats(self, info: TensorInfo) -> np.ndarray:
        planes = self.file.planes(info.name)
        if isinstance(info.scheme, Plain):
            return to_float32(planes["values"], info.dtype)
        return info.scheme.decode(planes, info.shape, info.dtype)

    def _codes(self, info: TensorInfo, bits: int) -> np.ndarray:
        codes = self.file.planes(info.name)["codes"]
        if bits == 4:
            return (codes << 4) | (codes >> 4)
        return codes if codes.dtype == np.uint8 else codes.view(np.uint8) ^ np.uint8(128)

    def _scales(self, info: TensorInfo, groups: int) -> np.ndarray:
        planes = self.file.planes(info.name)
        if isinstance(info.scheme, Int8):
            scale = planes["row_absmax"] * np.float32(1 / 127)
        else:
            scale = planes["scale"].astype(np.float32)
        rows = info.shape[0]
        return np.ascontiguousarray(np.broadcast_to(scale.reshape(rows, -1), (rows, groups)))

    def _zero_points(self, info: TensorInfo, bits: int) -> np.ndarray:
        zeros = self.file.planes(info.name)["zero_point"].reshape(info.shape[0], -1)
        if bits == 8:
            groups = info.shape[1] // _group_of(info.scheme, info.shape[1])
            return np.ascontiguousarray(np.broadcast_to(zeros, (len(zeros), groups)))
        even = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
        return even[:, ::2] | (even[:, 1::2] << 4)


def _group_of(scheme: Scheme, columns: int) -> int:
    """Return the columns of a group that ``MatMulNBits`` can have: the scheme's, or a part of a row; 0 if none fits."""
    group = getattr(scheme, "group", 0)
    if isinstance(scheme, Int8) or group == 0:
        group = _GROUP_OF_ROWS
        while columns % group and group > _LEAST_GROUP:
            group //= 2
    return group if group >= _LEAST_GROUP and not group & (group - 1) and not columns % group else 0


def _packed_form(scheme: Scheme, shape: tuple[int, ...]) -> tuple[int, int, bool] | None:
    """Return bits, columns of a group and whether there are zero points, if ``MatMulNBits`` can have such a weight."""
    group = _group_of(scheme, shape[-1])
    if not group or scheme.of_tensor:
        return None
    if isinstance(scheme, Int4Group):
        return (
            None if scheme.ordered or (not scheme.symmetric and scheme.group == 0) else (4, group, not scheme.symmetric)
        )
    if isinstance(scheme, Int8 | Int8Absmax):
        return 8, group, False
    return (8, group, True) if isinstance(scheme, Int8ZeroPoint) else None
