"""Writes checkpoints of compressed-tensors: integers, 8-bit floats and small floats in groups. See ``source``.

A weight goes into the config group that the source had for its module, if that is still true of it, else into one that
is made for its kind: the largest is for all Linears, others name their modules.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ...dtypes import from_float32, to_float32
from ...schemes.base import ROW, TENSOR
from ...schemes.fp8 import Fp8E4M3
from ...schemes.fp8_block import Fp8Block
from ...schemes.int8_affine import Int8Absmax
from ...schemes.microscaling import MXFP4, MXFP8, NVFP4
from ...schemes.w8a8 import INPUT_SCALE, INPUT_ZERO_POINT, Int8Dynamic, Int8Static
from ..fp8.scales import E4M3, E8M0, grid
from ..huggingface.forms import Form, NotHeldError, Part, Planes, Stored
from ..huggingface.integers import Integers, codes, integers_of, packed_words, stream, word_count, words
from .groups import (
    Arguments,
    ConfigError,
    Group,
    InputArguments,
    check_expression,
    group_of,
    names_module,
    read_groups,
    rounds_inputs,
)

_PACKED, _INTEGERS, _FLOATS = "pack-quantized", "int-quantized", "float-quantized"
_NVFP4, _MXFP4, _MXFP8 = "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"
_NAIVE = "naive-quantized"
_WIDER = {7: 8}  # bits of codes that no plane has -> those in which they are stored


@dataclass(frozen=True, slots=True)
class _Kind:
    """Describe the weights of a config group: their format, and how they are quantized."""

    format: str
    weights: Arguments
    inputs: InputArguments | None = None


class CompressedTensorsForm(Form):
    """Write all formats but those of sparse or rotated weights."""

    name: ClassVar[str] = "compressed-tensors"
    METHODS = ("compressed-tensors",)
    PLACES = frozenset({"linear", "embedding", "experts"})
    LISTS = ("ignore",)

    @cached_property
    def _groups(self) -> list[Group]:
        try:
            return read_groups(self.said) if self.said else []
        except ConfigError:
            return []

    def settings(self, stored: Stored) -> None:
        if not stored.is_weight or len(stored.shape) < 2:
            raise NotHeldError("compressed-tensors has weights of modules alone")
        self._kind(stored)

    def parts(self, stored: Stored) -> dict[str, Part]:
        kind = self._kind(stored)
        if kind.weights.is_float:
            return self._floats(stored, kind) if kind.weights.bits == 8 else self._small(stored)
        return self._integers(stored, kind)

    def config(self, kept: Sequence[Stored], skipped: Sequence[str]) -> dict[str, Any]:
        groups: dict[str, Any] = {}
        made: dict[_Kind, list[Stored]] = {}
        said = self.said.get("config_groups")
        for each in kept:
            source = self._source_group(each)
            if source is not None and isinstance(said, dict):
                own = self._own_kind(each).inputs
                groups[source.name] = said[source.name] if own else self._without_inputs(said[source.name])
            else:
                made.setdefault(self._own_kind(each), []).append(each)
        sizes = Counter({kind: len(modules) for kind, modules in made.items()})
        for number, (kind, _) in enumerate(sizes.most_common()):
            by_class = ["Linear"] if not groups else []
            named = [each.module for each in made[kind] if not by_class or each.kind == "embedding"]
            groups[f"group_{number}" if not self.said else f"made_{number}"] = {
                "targets": [*by_class, *sorted(named)],
                "weights": _described(kind.weights), "input_activations": _described_inputs(kind.inputs),
                "output_activations": None, "format": kind.format,
            }  # fmt: skip
        default = self.said.get("format")
        formats = {str(group.get("format") or default) for group in groups.values()}
        more = {"quant_method": "compressed-tensors", "quantization_status": "compressed", "kv_cache_scheme": None}
        result: dict[str, Any] = {
            **more, **self.said, "config_groups": groups,
            "format": formats.pop() if len(formats) == 1 else "mixed-precision", **self.lists(kept, skipped),
        }  # fmt: skip
        if self.origin.left_out:
            result["kv_cache_scheme"] = None
        return result

    def entry(self, name: str, layers: Sequence[str]) -> str:
        return name

    def names_module(self, listed: str, module: str) -> bool:
        return names_module(listed, module)

    def is_entry(self, listed: str) -> bool:
        try:
            check_expression(listed)
        except ConfigError:
            return False
        return True

    def _without_inputs(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return a group of the source without how inputs are quantized, if their scales are not in the file."""
        inputs = group.get("input_activations")
        static = isinstance(inputs, dict) and inputs.get("dynamic") is not True and self.origin.left_out
        return {**group, "input_activations": None} if static else group

    # Which group a weight is in.

    def _kind(self, stored: Stored) -> _Kind:
        group = self._source_group(stored)
        own = self._own_kind(stored)
        return own if group is None else _Kind(group.format, group.weights, own.inputs)

    def _source_group(self, stored: Stored) -> Group | None:
        """Return the source's group of a module, if it is true of the weight."""
        group = group_of(self._groups, stored.module)
        if group is None:
            return None
        own, weights = self._own_kind(stored), group.weights
        theirs = group.inputs if rounds_inputs(group) else None
        # A weight that says nothing of inputs may be in a group that quantizes them as they come, without a scale.
        if own.inputs != theirs and (own.inputs is not None or theirs is None or not theirs.dynamic):
            return None
        columns = stored.shape[-1]
        format = {True: _FLOATS, False: _INTEGERS}[weights.is_float] if group.format == _NAIVE else group.format
        if not weights.is_float and not own.weights.is_float:
            size = 0 if weights.group is None or weights.group >= columns else weights.group
            same = (_WIDER.get(weights.bits, weights.bits), weights.symmetric, size) == (
                own.weights.bits, own.weights.symmetric, own.weights.group or 0)  # fmt: skip
            return group if same and not weights.block and format in (_PACKED, _INTEGERS) else None
        same = (format, weights.bits, weights.is_float) == (own.format, own.weights.bits, own.weights.is_float)
        return group if same and _block(weights) == _block(own.weights) else None

    def _own_kind(self, stored: Stored) -> _Kind:
        """Return the kind of a weight by its scheme alone."""
        scheme = stored.scheme
        if isinstance(scheme, Int8Dynamic):
            static = scheme if isinstance(scheme, Int8Static) else None
            inputs = InputArguments(static is None, static is None or not static.asymmetric)
            weights = Arguments(8, False, True, "channel", None, None)
            return _Kind(_INTEGERS, weights, None if stored.kind == "embedding" else inputs)
        found = integers_of(scheme)
        if found is not None and found.zero in ("none", "code"):
            strategy = "group" if found.group else "channel"
            format = _INTEGERS if found.bits == 8 and not found.group else _PACKED
            weights = Arguments(found.bits, False, found.zero == "none", strategy, found.group or None, None)
            return _Kind(format, weights)
        if isinstance(scheme, Int8Absmax) and scheme.group in (ROW, TENSOR):
            return _Kind(_INTEGERS, Arguments(8, False, True, _whole(scheme.group == TENSOR), None, None))
        if isinstance(scheme, Fp8E4M3) and scheme.group in (ROW, TENSOR):
            return _Kind(_FLOATS, Arguments(8, True, True, _whole(scheme.group == TENSOR), None, None))
        if isinstance(scheme, Fp8Block) and scheme.steps["scale"] != E8M0:
            rows, columns = scheme.block
            if (rows, columns) in ((0, 0), (1, 0)):
                return _Kind(_FLOATS, Arguments(8, True, True, _whole(rows == 0), None, None))
            if rows == 1:
                return _Kind(_FLOATS, Arguments(8, True, True, "group", columns, None))
            if rows and columns:
                return _Kind(_FLOATS, Arguments(8, True, True, "block", None, (rows, columns)))
        if isinstance(scheme, MXFP4) and stored.shape[-1] % 2 == 0:
            return _Kind(_MXFP4, Arguments(4, True, True, "group", 32, None))
        if isinstance(scheme, MXFP8) and scheme.codes == E4M3:
            return _Kind(_MXFP8, Arguments(8, True, True, "group", 32, None))
        if isinstance(scheme, NVFP4) and scheme.reciprocal and stored.shape[-1] % 2 == 0:
            return _Kind(_NVFP4, Arguments(4, True, True, "tensor_group", 16, None))
        raise NotHeldError("compressed-tensors has no format for that")

    # The tensors of a weight.

    def _integers(self, stored: Stored, kind: _Kind) -> dict[str, Part]:
        said, shape = kind.weights, stored.shape
        *rows, columns = shape
        parts: dict[str, Part] = {}
        if kind.format == _PACKED:
            parts[".weight_packed"] = Part("i32", (*rows, word_count(columns, said.bits)),
                                           lambda planes: self._packed(stored, planes, said.bits))  # fmt: skip
            dtype = (self.origin.part(".weight_shape", ("i64", "i32")) or ("i64", 1))[0]
            numbers = np.array(shape, np.int64 if dtype == "i64" else np.int32)
            parts[".weight_shape"] = Part(dtype, numbers.shape, lambda planes: numbers)
        else:
            parts[".weight"] = Part("i8", shape, lambda planes: self._signed(stored, planes, said.bits))
        found = integers_of(stored.scheme) or Integers(8, ROW, "f32", "none", False)
        scales = (*rows, -(-columns // (found.group or max(columns, 1))))
        parts[".weight_scale"] = self._scale(stored, ".weight_scale", "scale", found.scale, scales, said)
        if isinstance(stored.scheme, Int8Dynamic):
            return self._as_in_source(stored, parts) | self._inputs(stored, kind)
        if not said.symmetric:
            if kind.format == _PACKED and said.strategy in ("group", "channel"):
                *lead, count, groups = scales
                parts[".weight_zero_point"] = Part(
                    "i32", (*lead, word_count(count, said.bits), groups),
                    lambda planes: self._packed_zeros(stored, planes, said.bits),
                )  # fmt: skip
            else:
                zero = self._scale(stored, ".weight_zero_point", "zero_point", "i8", scales, said)
                parts[".weight_zero_point"] = Part("i8", zero.shape, lambda planes: _signed(
                    self._checked(stored, zero.make(planes), said.bits), said.bits))  # fmt: skip
        if found.ordered:
            dtype = (self.origin.part(".weight_g_idx", ("i32", "i64")) or ("i32", 1))[0]
            parts[".weight_g_idx"] = Part(dtype, (columns,), lambda planes: planes["group_index"].astype(
                np.int64 if dtype == "i64" else np.int32))  # fmt: skip
        return parts

    def _inputs(self, stored: Stored, kind: _Kind) -> dict[str, Part]:
        """Return the parts that say how inputs are quantized."""
        if kind.inputs is None or kind.inputs.dynamic:
            return {}
        shape = (*stored.shape[:-2], 1)
        scale = self.floats(".input_scale", INPUT_SCALE, "f32", shape)
        parts = self._as_in_source(stored, {".input_scale": scale})
        if not kind.inputs.symmetric:
            parts[".input_zero_point"] = self.floats(".input_zero_point", INPUT_ZERO_POINT, "i8", shape)
        return parts

    def _as_in_source(self, stored: Stored, parts: dict[str, Part]) -> dict[str, Part]:
        """Return the parts with scales in the dtype and rank of the source's, if the weight is from there."""
        if self._source_group(stored) is None:
            return parts

        def rounded(end: str, part: Part) -> Part:
            dtype, rank = self.origin.part(end, ("bf16", "f16")) or ("f32", len(part.shape))
            if part.dtype != "f32" or dtype == "f32":
                return part

            def make(planes: Planes) -> np.ndarray:
                values = part.make(planes)
                found = from_float32(values, dtype)
                if not np.array_equal(to_float32(found, dtype), values):
                    raise self.error(stored, f"has scales that are not those of the source, which were {dtype}")
                return found

            return Part(dtype, part.shape[: max(rank, 0)] if math.prod(part.shape[rank:]) == 1 else part.shape, make)

        return {end: rounded(end, part) for end, part in parts.items()}

    def _floats(self, stored: Stored, kind: _Kind) -> dict[str, Part]:
        scheme, shape = stored.scheme, stored.shape
        if kind.format == _MXFP8:
            return {".weight": Part(E4M3, shape, lambda planes: planes["codes"]), **self._exponents(shape)}
        dtype = scheme.steps["scale"] if isinstance(scheme, Fp8Block) else "f32"
        scale = self.floats(".weight_scale", "scale", dtype, grid(shape, _block(kind.weights)))
        if kind.weights.strategy == "tensor" and self.origin.part(".weight_scale", (dtype,)) is None:
            scale = Part(dtype, (1,), scale.make)
        return {".weight": Part(E4M3, shape, lambda planes: planes["codes"]), ".weight_scale": scale}

    def _small(self, stored: Stored) -> dict[str, Part]:
        *rows, columns = stored.shape
        packed = {".weight_packed": Part("u8", (*rows, columns // 2), lambda planes: planes["codes"])}
        if not isinstance(stored.scheme, NVFP4):
            return packed | self._exponents(stored.shape)
        return packed | {
            ".weight_scale": Part(E4M3, grid(stored.shape, stored.scheme.block), lambda planes: planes["scale"]),
            ".weight_global_scale": self.floats(".weight_global_scale", "global_scale", "f32", (*rows[:-1], 1)),
        }

    def _exponents(self, shape: tuple[int, ...]) -> dict[str, Part]:
        return {".weight_scale": self.floats(".weight_scale", "scale", E8M0, grid(shape, (1, 32)), ("u8", E8M0))}

    def _scale(self, stored: Stored, end: str, role: str, dtype: str, shape: tuple[int, ...], said: Arguments) -> Part:
        """Return the part for numbers of groups, of which a tensor may have one alone, repeated in the plane."""
        if said.strategy != "tensor":
            return self.floats(end, role, dtype, shape)
        found = self.floats(end, role, dtype, (1, 1))
        written = found.shape if self.origin.part(end, (dtype,)) else (1,)

        def one(planes: Planes) -> np.ndarray:
            values = planes[role].reshape(-1)
            if (values != values[:1]).any():
                raise self.error(stored, f"has more than one {role}, and its config group has one a tensor")
            return values[:1]

        return Part(dtype, written, one)

    def _packed(self, stored: Stored, planes: Planes, bits: int) -> np.ndarray:
        found = integers_of(stored.scheme)
        if found is not None and found.bits == bits:
            return words(stream(stored.scheme, planes))
        return packed_words(self._narrowed(stored, planes, bits), bits)

    def _signed(self, stored: Stored, planes: Planes, bits: int) -> np.ndarray:
        if isinstance(stored.scheme, (Int8Absmax, Int8Dynamic)):
            return planes["codes"]
        return _signed(self._narrowed(stored, planes, bits), bits)

    def _narrowed(self, stored: Stored, planes: Planes, bits: int) -> np.ndarray:
        """Return codes u8 of fewer bits than they may be stored in, where the middle is that of more."""
        found = integers_of(stored.scheme)
        numbers = codes(stored.scheme, planes, stored.shape[-1])
        if found is not None and found.bits != bits and found.zero == "none":
            numbers = numbers - np.uint8((1 << (found.bits - 1)) - (1 << (bits - 1)))
        return self._checked(stored, numbers, bits)

    def _packed_zeros(self, stored: Stored, planes: Planes, bits: int) -> np.ndarray:
        zeros = self._checked(stored, planes["zero_point"], bits)
        streams = packed_words(np.ascontiguousarray(np.swapaxes(zeros, -1, -2)), bits)
        return np.swapaxes(streams, -1, -2)

    def _checked(self, stored: Stored, numbers: np.ndarray, bits: int) -> np.ndarray:
        if bits < 8 and numbers.size and numbers.max() >> bits:
            raise self.error(stored, f"has a code or zero point of {numbers.max()}, beyond {bits} bits")
        return numbers


def _described_inputs(inputs: InputArguments | None) -> dict[str, Any] | None:
    """Return what a config says of inputs."""
    if inputs is None:
        return None
    strategy = "token" if inputs.dynamic else "tensor"
    return {
        "num_bits": 8, "type": "int", "symmetric": inputs.symmetric, "strategy": strategy, "group_size": None,
        "dynamic": inputs.dynamic,
    }  # fmt: skip


def _signed(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Return unsigned codes as signed ones, i8, zero being in the middle."""
    return (numbers - np.uint8(1 << (bits - 1))).view(np.int8)


def _whole(tensor: bool) -> str:
    return "tensor" if tensor else "channel"


def _block(weights: Arguments) -> tuple[int, int]:
    """Return the rows and columns that share a scale, 0 for all."""
    if weights.block:
        return weights.block
    return (1, weights.group) if weights.group else (0, 0) if weights.strategy == "tensor" else (1, 0)


def _described(weights: Arguments) -> dict[str, Any]:
    """Return what a config says of weights, with the library's own keys."""
    said: dict[str, Any] = {
        "num_bits": weights.bits, "type": "float" if weights.is_float else "int", "symmetric": weights.symmetric,
        "strategy": weights.strategy, "group_size": weights.group, "dynamic": False,
    }  # fmt: skip
    if weights.block:
        said["block_structure"] = list(weights.block)
    if (weights.is_float and weights.bits == 4) or (weights.bits, weights.group) == (8, 32):
        said["scale_dtype"] = "torch.float8_e4m3fn" if weights.strategy == "tensor_group" else "torch.uint8"
    return said
