"""Reads 4-bit codes in 32-bit words in place of the weights of Linear modules, for GPTQ's and AWQ's checkpoints.

A module ``X`` with a weight [N, K] has ``X.qweight`` (i32: its codes, eight to a word), ``X.qzeros`` (i32 [G, N / 8]:
the zero points of its groups) and ``X.scales`` (f16 [G, N]); all other tensors are as in any Hugging Face directory.
Here ``X.weight`` [N, K] takes their place, with the scheme ``int4-group``. The config and the tensors must agree.
What it says of all modules may be other for some; see ``overrides``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...container.metadata import Value
from ...dtypes import to_float32
from ...errors import SourceError
from ...schemes import make, parse
from ...schemes.base import ROW
from ...schemes.int4_group import GROUP_SIZES
from ..source import SourceFile, SourceTensor
from .bitsandbytes import conv1d_rule, weight_dtype
from .origin import record
from .overrides import Overrides
from .settings import settings
from .source import HuggingFace

BITS = 4
CODES = 8  # in a word
_WORD = 32  # bits
# Parts of a module and their dtypes. Scales of other floating-point dtypes are accepted if float16 holds them exactly.
_PARTS = {"qweight": ("i32",), "qzeros": ("i32",), "scales": ("f16", "bf16", "f32"), "g_idx": ("i32",)}

Parts = Mapping[str, SourceTensor]  # the parts of one module, by the last word of their names


@dataclass(frozen=True, slots=True)
class Layout:
    """Say how the weight of a module is quantized: bits of a code, columns of a group (0: the row), and more.

    ``symmetric`` says that every zero point is the middle code, ``ordered`` that columns may be in another order.
    """

    bits: int
    group: int
    symmetric: bool
    ordered: bool


def unpack(words: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Unpack words i32 [R, W] to codes u8 [8 W, R]; nibble i of a word, from the lowest, holds column ``order[i]``."""
    columns = words.T.astype(np.uint32, order="C")
    codes = np.empty((columns.shape[0], CODES, columns.shape[1]), np.uint8)
    for nibble, column in enumerate(order):
        codes[:, column] = (columns >> (BITS * nibble)) & 15
    return codes.reshape(-1, columns.shape[1])


class PackedInt4(ABC):
    """Provide the tensors of a directory of either kind; a subclass says where the codes of a weight are in its words.

    Raises:
        SourceError: this kind of quantization is not supported, a part of a module is missing, or dtypes or shapes of
            parts contradict the config.
    """

    kind: ClassVar[str]
    WIDTHS: ClassVar[tuple[int, ...]] = (BITS,)  # of codes
    no_model = None
    architecture = None
    metadata: Mapping[str, Value] = {}

    def __init__(self, path: str) -> None:
        self.path = path
        self._directory = HuggingFace(path)
        self._dtype = weight_dtype(self._directory.config, path)
        self._is_conv1d = conv1d_rule(self._directory.config)
        found = settings(path)
        self._said = found.said
        self._layout_of(self._said)
        self._check_said(self._said)
        self._overrides = Overrides(self._said, self._refused)
        self.tensors: dict[str, SourceTensor] = {}
        self._modules: dict[str, tuple[dict[str, SourceTensor], Layout]] = {}
        modules: dict[str, dict[str, SourceTensor]] = {}
        for name, tensor in self._directory.tensors.items():
            module, _, part = name.rpartition(".")
            if part in _PARTS:
                modules.setdefault(module, {})[part] = tensor
            else:
                self.tensors[name] = tensor
        if not modules:
            raise self._refused(f"none of {len(self.tensors)} tensors quantized: no name ends in .qweight")
        for module, parts in modules.items():
            name = f"{module}.weight"
            if name in self.tensors:
                raise self._error(self.tensors[name], f"is there beside {', '.join(sorted(parts))}")
            layout = self._layout(module, parts)
            self.tensors[name] = self._tensor(module, parts, layout)
            self._modules[name] = parts, layout
        self.metadata = record(found, ((name, parts.values()) for name, (parts, _) in self._modules.items()))

    @property
    def files(self) -> list[SourceFile]:
        return self._directory.files

    @property
    def documents(self) -> dict[str, bytes]:
        return self._directory.documents

    def planes(self, name: str) -> dict[str, np.ndarray]:
        if name not in self._modules:
            return self._directory.planes(name)
        (parts, layout), scheme = self._modules[name], self.tensors[name].stored
        words, bits = self._values(parts["qweight"]), layout.bits
        planes = {"codes": self._codes(words, bits), "scale": self._scale(parts["scales"])}
        zero = self._zeros(self._values(parts["qzeros"]), bits)
        if not layout.symmetric:
            planes["zero_point"] = zero
        elif (zero != 1 << (bits - 1)).any():
            what = f"has zero points {zero.min()} to {zero.max()}, a symmetric checkpoint {1 << (bits - 1)}"
            raise self._error(parts["qzeros"], what + self._hint(zero))
        if "group_index" in {spec.role for spec in scheme.planes(self.tensors[name].shape, self._dtype)}:
            planes["group_index"] = self._values(parts["g_idx"])
        return planes

    @abstractmethod
    def _symmetric(self, said: Mapping[str, Any]) -> bool:
        """Tell whether settings say that every zero point is the middle code."""

    @abstractmethod
    def _check_said(self, said: Mapping[str, Any]) -> None:
        """Raise SourceError for settings, of all modules or of some, that this source does not support."""

    @abstractmethod
    def _shape(self, qweight: tuple[int, ...], bits: int) -> tuple[int, int]:
        """Return the shape [N, K] of a weight whose ``qweight`` has this shape."""

    @abstractmethod
    def _codes(self, words: np.ndarray, bits: int) -> np.ndarray:
        """Unpack ``qweight`` to the plane of codes, u8 [N, K * bits / 8]."""

    @abstractmethod
    def _zeros(self, words: np.ndarray, bits: int) -> np.ndarray:
        """Unpack ``qzeros`` to zero points, u8 [N, G]."""

    def _ordered(self, parts: Parts, groups: int, columns: int, layout: Layout) -> bool:
        """Tell whether the columns of a weight are in another order than their groups."""
        return False

    def _hint(self, zero: np.ndarray) -> str:
        """Suggest, for an error message, why zero points are not those of a symmetric checkpoint."""
        return ""

    def _layout(self, module: str, parts: Parts) -> Layout:
        """Return how a module is quantized, after what is said of it alone."""
        rule = self._overrides.rule(module)
        if rule is None:
            return self._layout_of(self._said)
        if rule.said is None:
            raise self._error(next(iter(parts.values())), f"is quantized, but {rule.key} {rule.name!r} leaves it out")
        said = {**self._said, **rule.said}
        self._check_said(said)
        return self._layout_of(said, f" for modules {rule.name[:80]!r}")

    def _layout_of(self, said: Mapping[str, Any], where: str = "") -> Layout:
        bits, size = said.get("bits"), said.get("group_size")
        if type(bits) is not int or bits not in self.WIDTHS:
            raise self._refused(f"bits {bits!r}{where}, only {' and '.join(map(str, self.WIDTHS))} read here")
        if isinstance(size, bool) or size not in (-1, *GROUP_SIZES[1:]):
            sizes = ", ".join(map(str, (-1, *GROUP_SIZES[1:])))
            raise self._refused(f"group_size {size!r}{where}, expected one of {sizes}")
        return Layout(bits, ROW if size == -1 else int(size), self._symmetric(said), bool(said.get("desc_act")))

    def _tensor(self, module: str, parts: Parts, layout: Layout) -> SourceTensor:
        some = next(iter(parts.values()))
        for part, dtypes in _PARTS.items():
            found, rank = parts.get(part), 1 if part == "g_idx" else 2
            if found is None:
                if part != "g_idx":
                    raise self._error(some, f"belongs to a quantized weight, but {module}.{part} is missing")
            elif found.dtype not in dtypes or len(found.shape) != rank:
                raise self._error(found, f"is {found.dtype}{list(found.shape)}, expected {dtypes[0]} of rank {rank}")
        qweight, bits, group = parts["qweight"], layout.bits, layout.group
        rows, columns = shape = self._shape(qweight.shape, bits)
        if rows * bits % _WORD or columns * bits % _WORD or not rows * columns:
            whole = _WORD // math.gcd(_WORD, bits)
            raise self._error(qweight, f"stands for a weight [{rows}, {columns}], not in multiples of {whole}")
        groups = -(-columns // (group or columns or 1))
        wanted = {"qzeros": (groups, rows * bits // _WORD), "scales": (groups, rows), "g_idx": (columns,)}
        for part, expected in wanted.items():
            if part in parts and parts[part].shape != expected:
                raise self._error(
                    parts[part],
                    f"has shape {list(parts[part].shape)}, {list(expected)} go with qweight {list(qweight.shape)}, "
                    f"bits {bits} and group_size {group or -1}",
                )
        ordered = self._ordered(parts, groups, columns, layout)
        if bits == BITS:
            scheme = make("int4-group", 1, (group, int(layout.symmetric), int(ordered)))
        else:
            zero = "none" if layout.symmetric else "code"
            scheme = parse(f"int-group,bits={bits},group={group or 'row'},zero={zero},ordered={int(ordered)}")
        name = f"{module}.weight"
        return SourceTensor(name, shape, self._dtype, qweight.file, scheme, transposed=self._is_conv1d(name))

    def _values(self, tensor: SourceTensor) -> np.ndarray:
        return self._directory.planes(tensor.name)["values"]

    def _scale(self, tensor: SourceTensor) -> np.ndarray:
        scales = to_float32(self._values(tensor), tensor.dtype).T
        with np.errstate(over="ignore"):
            stored = scales.astype(np.float16, order="C")
        bad = np.argwhere(~(np.isfinite(stored) & (stored == scales)))
        if len(bad):
            row, group = bad[0].tolist()
            where = f"for group {group}, row {row}"
            raise self._error(tensor, f"has {scales[row, group]} {where}: no finite float16 number")
        return stored

    def _refused(self, what: str) -> SourceError:
        """Make an error about a setting in the config."""
        return SourceError(f"{self.path}: {self.kind} quantization with {what}")

    def _error(self, tensor: SourceTensor, what: str) -> SourceError:
        """Make an error about a tensor."""
        return SourceError(f"{self.path}/{tensor.file}: tensor {tensor.name!r} {what}")
