"""Reads checkpoints that the compressed-tensors library writes, in all its formats of quantized weights.

    pack-quantized        weight_packed i32 [N, ceil(K * bits / 32)]: code + 2^(bits - 1), a stream from the lowest bits
                          weight_shape [2], weight_scale [N, G], [N, 1] or [1]
                          weight_zero_point i32 [ceil(N * bits / 32), G], a stream along the rows; weight_g_idx [K]
    int-quantized         weight i8 [N, K], weight_scale, weight_zero_point i8; with 8-bit inputs input_scale [1] and
                          input_zero_point i8 [1], if these are not dynamic
    float-quantized       weight f8_e4m3 [N, K], weight_scale [N, 1], [1], [N, G] or that of blocks
    naive-quantized       either of the two
    nvfp4-pack-quantized  weight_packed u8 [N, K / 2], the first code in the low half; weight_scale f8_e4m3 [N, K / 16],
                          weight_global_scale f32 [1], by which scales are divided
    mxfp4-pack-quantized  weight_packed u8 [N, K / 2], weight_scale u8 [N, K / 32]: an exponent
    mxfp8-quantized       weight f8_e4m3 [N, K], weight_scale u8 [N, K / 32]

Weights of 8 bits around zero with a scale for each row, or one, whose inputs are 8-bit integers are ``int8-dynamic`` or
``int8-static``. Scales of other activations and of the KV cache are left out. See ``compressed_tensors.compressors``
0.20. What is computed with a rotation of the weights (``transform_config``), or with sparse ones, is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from ...dtypes import to_float32
from ...schemes.w8a8 import INPUT_SCALE, INPUT_ZERO_POINT
from ..fp8.scales import E4M3, E8M0, grid, scheme_of, without_blocks
from ..huggingface.modules import (
    CODES,
    LEFT_OUT,
    PACKED,
    Parts,
    Planes,
    QuantizedModules,
    Weight,
    listed,
    plane_of,
    stream_codes,
)
from ..source import SourceTensor
from .groups import Arguments, ConfigError, Group, check_expression, group_of, names_module, read_groups, rounds_inputs

_FLOATS = ("f32", "bf16", "f16")
_ZERO, _INDEX, _SHAPE, _GLOBAL = "zero_point", "group_index", "shape", "global_scale"
_OF_INPUTS = (INPUT_SCALE, INPUT_ZERO_POINT)
_MX_COLUMNS, _NV_COLUMNS = 32, 16
_WIDER = {7: 8}  # bits of codes that no plane has -> those in which they are stored


class CompressedTensors(QuantizedModules):
    """Provide the tensors of the directory ``path``, whose ``quant_method`` is "compressed-tensors"."""

    kind: ClassVar[str] = "compressed-tensors"
    CODE_DTYPES = (E4M3, "i8")
    SUFFIXES = {
        ".weight_packed": PACKED, ".weight_scale": "scale", ".weight_zero_point": _ZERO, ".weight_g_idx": _INDEX,
        ".weight_shape": _SHAPE, ".weight_global_scale": _GLOBAL,
        ".input_scale": INPUT_SCALE, ".input_zero_point": INPUT_ZERO_POINT,
        **dict.fromkeys((".input_global_scale", ".output_scale", ".output_zero_point",
                          ".k_scale", ".v_scale", ".q_scale"), LEFT_OUT),
    }  # fmt: skip

    def prepare(self) -> None:
        for key, what in (("transform_config", "rotations"), ("sparsity_config", "sparse weights")):
            said = self.said.get(key)
            if said and not (
                isinstance(said, dict) and said.get("format") in ("dense", None) and not said.get("config_groups")
            ):
                raise self.refused(f"{key}, {what}, which are not followed here; export the model without")
        try:
            self._groups = read_groups(self.said)
            ignored = self.names("ignore")
            for target in ignored:
                check_expression(target)
        except ConfigError as error:
            raise self.refused(str(error)) from error
        for group in self._groups:
            if group.format not in _FORMATS:
                known = ", ".join(_FORMATS)
                raise self.refused(f"format {group.format!r} of config group {group.name!r}, known: {known}")
        self._leave_out_inputs()
        for name, parts in self._parts.items():
            module = name.removesuffix(".weight")
            some = next(iter(parts.values()))
            for target in filter(lambda target: names_module(target, module), ignored):
                raise self.error(some, f"is quantized, but ignore names it: {target!r}")
            found = group_of(self._groups, module)
            if found is None:
                raise self.error(some, f"is quantized, and no config group has a target that {module!r} matches")
            found.used.append(name)
        unused = [group for group in self._groups if not group.used]
        if self._parts and unused:
            names = listed(unused[0].targets)
            raise self.refused(f"config group {unused[0].name!r}, whose targets match no quantized module: {names}")
        self._group_of = {name: group for group in self._groups for name in group.used}

    def _leave_out_inputs(self) -> None:
        """Leave out scales of inputs where no scheme keeps them, and take modules that have no more for plain ones."""
        for name, parts in list(self._parts.items()):
            group = group_of(self._groups, name.removesuffix(".weight"))
            if group is not None and rounds_inputs(group):
                continue
            found = [parts.pop(role) for role in _OF_INPUTS if role in parts]
            for tensor in found:
                self.leave_out(tensor)
            if found and not parts.keys() - {CODES}:
                del self._parts[name]
                if CODES in parts:
                    self.tensors[name] = parts[CODES]

    def weight(self, name: str, parts: Parts) -> Weight:
        group = self._group_of[name]
        return _FORMATS[group.format](self, name, parts, group)

    def naive(self, name: str, parts: Parts, group: Group) -> Weight:
        """Join codes of a byte each: integers, or 8-bit floats."""
        join = self.floats if group.weights.is_float else self.integers
        return join(name, parts, group)

    def packed_integers(self, name: str, parts: Parts, group: Group) -> Weight:
        """Join integers that are packed into words."""
        bits = group.weights.bits
        packed, said = self.part(name, parts, PACKED, ("i32",)), self.part(name, parts, _SHAPE, ("i64", "i32"))
        shape = tuple(self.value(said).reshape(-1).tolist()) if said.nbytes <= 64 else ()
        words = shape and (*shape[:-1], -(-shape[-1] * bits // 32))
        if len(shape) != len(packed.shape) or len(shape) < 2 or words != packed.shape:
            what = f"is {list(shape)}, and {packed.name!r} with {bits} bits is {list(packed.shape)}"
            raise self.error(said, what)
        return self._integers(name, parts, group, shape, packed, lambda dtype: self._stream(packed, bits, shape, dtype))

    def integers(self, name: str, parts: Parts, group: Group) -> Weight:
        """Join integers of a byte each."""
        if rounds_inputs(group):
            return self._with_inputs(name, parts, group)
        bits, codes = group.weights.bits, self.part(name, parts, CODES, ("i8",))

        def read(dtype: str) -> np.ndarray:
            return self._unsigned(codes, bits, dtype)

        return self._integers(name, parts, group, codes.shape, codes, read)

    def _with_inputs(self, name: str, parts: Parts, group: Group) -> Weight:
        """Join integers of a byte each, and the scale of their inputs, if there is one."""
        codes, scale = self.part(name, parts, CODES, ("i8",)), self.part(name, parts, "scale", _FLOATS)
        shape = (*codes.shape[:-1], 1)
        self._check_scales(name, parts, group.weights, "scale", shape)
        if group.inputs is None or group.inputs.dynamic:
            for role in filter(parts.__contains__, _OF_INPUTS):
                raise self.error(parts[role], f"is there, and the inputs of config group {group.name!r} are dynamic")
            return Weight(codes.shape, "int8-dynamic", lambda: {
                CODES: self.value(codes), "scale": _spread(self._f32(scale), shape)})  # fmt: skip
        step, matrices, symmetric = (
            self.part(name, parts, INPUT_SCALE, _FLOATS),
            codes.shape[:-2],
            group.inputs.symmetric,
        )
        zero = parts.get(INPUT_ZERO_POINT) if symmetric else self.part(name, parts, INPUT_ZERO_POINT, ("i8",))
        for each in (step, zero):
            if each is not None and each.shape not in ((*matrices, 1), matrices):
                raise self.error(each, f"has shape {list(each.shape)}, expected {[*matrices, 1]}")

        def read() -> Planes:
            planes = {CODES: self.value(codes), "scale": _spread(self._f32(scale), shape)}
            planes[INPUT_SCALE] = self._f32(step).reshape(*matrices, 1)
            if zero is not None and not symmetric:
                planes[INPUT_ZERO_POINT] = self.value(zero).reshape(*matrices, 1)
            elif zero is not None and self.value(zero).any():
                raise self.error(zero, f"is not 0, and the inputs of config group {group.name!r} are symmetric")
            return planes

        return Weight(codes.shape, "int8-static" if symmetric else "int8-static,asymmetric=1", read)

    def _f32(self, tensor: SourceTensor) -> np.ndarray:
        return np.ascontiguousarray(to_float32(self.value(tensor), tensor.dtype))

    def floats(self, name: str, parts: Parts, group: Group) -> Weight:
        """Join 8-bit floats and their scales."""
        said, codes = group.weights, self.part(name, parts, CODES, (E4M3,))
        scale = self.part(name, parts, "scale", _FLOATS)
        self._check_float(group, 8)
        block = said.block or ((1, said.group) if said.group else without_blocks(codes.shape, scale.shape))
        if block is None:
            raise self.error(scale, f"has shape {list(scale.shape)}: {said.strategy} scales of {list(codes.shape)}")
        shape = grid(codes.shape, block)
        if said.strategy != "tensor" and scale.shape != shape[:-1]:
            self.part(name, parts, "scale", shape=shape)

        def read() -> Planes:
            return {CODES: self.value(codes), "scale": self.value(scale).reshape(shape)}

        return Weight(codes.shape, scheme_of(block, scale.dtype), read)

    def mxfp8(self, name: str, parts: Parts, group: Group) -> Weight:
        """Join 8-bit floats and scales that are powers of two."""
        self._check_float(group, 8, _MX_COLUMNS)
        codes = self.part(name, parts, CODES, (E4M3,))
        scale = self.part(name, parts, "scale", ("u8", E8M0), grid(codes.shape, (1, _MX_COLUMNS)))
        return Weight(codes.shape, "mxfp8", lambda: {CODES: self.value(codes), "scale": self.value(scale)})

    def mxfp4(self, name: str, parts: Parts, group: Group) -> Weight:
        """Join 4-bit floats and scales that are powers of two."""
        self._check_float(group, 4, _MX_COLUMNS)
        codes = self.part(name, parts, PACKED, ("u8",))
        shape = (*codes.shape[:-1], 2 * codes.shape[-1])
        scale = self.part(name, parts, "scale", ("u8", E8M0), grid(shape, (1, _MX_COLUMNS)))
        return Weight(shape, "mxfp4", lambda: {CODES: self.value(codes), "scale": self.value(scale)})

    def nvfp4(self, name: str, parts: Parts, group: Group) -> Weight:
        """Join 4-bit floats, their scales, and the number by which scales are divided."""
        self._check_float(group, 4, _NV_COLUMNS)
        codes = self.part(name, parts, PACKED, ("u8",))
        shape = (*codes.shape[:-1], 2 * codes.shape[-1])
        scale = self.part(name, parts, "scale", (E4M3,), grid(shape, (1, _NV_COLUMNS)))
        divisor = self.part(name, parts, _GLOBAL, ("f32",))
        wanted = (*shape[:-2], 1)  # experts have one each
        if divisor.shape not in (wanted, shape[:-2]):
            raise self.error(divisor, f"has shape {list(divisor.shape)}, expected {list(wanted)}")

        def read() -> Planes:
            return {CODES: self.value(codes), "scale": self.value(scale), _GLOBAL: self.value(divisor).reshape(wanted)}

        return Weight(shape, "nvfp4,reciprocal=1", read)

    def _integers(
        self, name: str, parts: Parts, group: Group, shape: tuple[int, ...], codes: SourceTensor,
        read_codes: Callable[[str], np.ndarray],
    ) -> Weight:  # fmt: skip
        said, stored = group.weights, _WIDER.get(group.weights.bits, group.weights.bits)
        if said.is_float or said.block:
            raise self.refused(f"config group {group.name!r}: {group.format} of {said.strategy} weights, not integers")
        scale, size = self.part(name, parts, "scale", _FLOATS), self._columns(said, shape)
        *rows, columns = shape
        scales = (*rows, -(-columns // (size or max(columns, 1))))
        self._check_scales(name, parts, said, "scale", scales)
        zero = None if said.symmetric else self._zero(name, parts, group, scales)
        if said.symmetric and _ZERO in parts:
            raise self.error(parts[_ZERO], f"is there, and config group {group.name!r} is symmetric")
        index = parts.get(_INDEX)
        if index is not None:
            self.part(name, parts, _INDEX, ("i32", "i64"), (columns,))
        text = ",".join([
            f"int-group,bits={stored},group={size or 'row'},scale={scale.dtype}",
            f"zero={'code' if zero else 'none'}", f"ordered={int(index is not None)}",
        ])  # fmt: skip

        def read() -> Planes:
            tensor = self.tensors[name]
            dtypes = {spec.role: spec.dtype for spec in tensor.stored.planes(shape, tensor.dtype)}
            planes = {CODES: read_codes(dtypes[CODES]), "scale": _spread(self.value(scale), scales)}
            if zero is not None:
                planes[_ZERO] = zero()
            elif stored != said.bits:
                planes[CODES] = planes[CODES] + np.uint8((1 << (stored - 1)) - (1 << (said.bits - 1)))
            if index is not None:
                planes[_INDEX] = self._group_index(index, scales[-1])
            return planes

        return Weight(shape, text, read)

    def _zero(self, name: str, parts: Parts, group: Group, scales: tuple[int, ...]) -> Callable[[], np.ndarray]:
        """Return a function that reads zero points, u8 of the shape of the scales."""
        bits, said = group.weights.bits, group.weights
        if group.format == "pack-quantized" and said.strategy in ("group", "channel"):
            *lead, rows, groups = scales
            found = self.part(name, parts, _ZERO, ("i32",), (*lead, -(-rows * bits // 32), groups))

            def packed() -> np.ndarray:
                words = np.ascontiguousarray(np.swapaxes(self.value(found), -1, -2))
                codes = self._checked(found, lambda: stream_codes(words, bits, rows, "u8"))
                return np.ascontiguousarray(np.swapaxes(codes, -1, -2))

            return packed
        found = self.part(name, parts, _ZERO, ("i8",))
        self._check_scales(name, parts, said, _ZERO, scales)
        return lambda: _spread(self._unsigned(found, bits, "u8"), scales)

    def _stream(self, packed: SourceTensor, bits: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        words = self.value(packed)
        return self._checked(packed, lambda: stream_codes(words, bits, shape[-1], dtype))

    def _unsigned(self, tensor: SourceTensor, bits: int, dtype: str) -> np.ndarray:
        """Return signed codes of a byte each as unsigned ones of fewer bits."""
        codes = self.value(tensor).view("u1") + np.uint8(1 << (bits - 1))  # a negative code beyond them becomes large
        return self._checked(tensor, lambda: plane_of(codes, bits, dtype))

    def _checked(self, tensor: SourceTensor, make: Callable[[], np.ndarray]) -> np.ndarray:
        try:
            return make()
        except ValueError as error:
            raise self.error(tensor, f"holds codes that do not fit: {error}") from error

    def _group_index(self, tensor: SourceTensor, groups: int) -> np.ndarray:
        index = self.value(tensor)
        if index.size and (index.min() < 0 or index.max() >= groups):
            raise self.error(tensor, f"names groups {index.min()} to {index.max()}, there are {groups}")
        return index.astype(np.int32)

    def _check_scales(self, name: str, parts: Parts, said: Arguments, part: str, scales: tuple[int, ...]) -> None:
        """Check that there is a scale or zero point for each group, or one a tensor."""
        found = parts.get(part)
        if said.strategy == "tensor" and found is not None and found.shape in ((), (1,), (*scales[:-2], 1, 1)):
            return
        if said.strategy == "channel" and found is not None and found.shape == scales[:-1]:
            return
        self.part(name, parts, part, shape=scales)

    def _columns(self, said: Arguments, shape: tuple[int, ...]) -> int:
        """Return the number of columns that share a scale; 0 for all."""
        return 0 if said.group is None or said.group >= shape[-1] else said.group

    def _check_float(self, group: Group, bits: int, columns: int | None = None) -> None:
        said = group.weights
        if not said.is_float or said.bits != bits or not said.symmetric or (columns and said.group != columns):
            raise self.refused(
                f"config group {group.name!r}: {group.format} of {said.bits} bits, type "
                f"{'float' if said.is_float else 'int'}, group_size {said.group}, symmetric {said.symmetric}"
            )


def _spread(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return scales in the shape of a plane: one for the whole tensor is repeated in each row."""
    return (
        np.ascontiguousarray(np.broadcast_to(values.reshape(-1), shape)) if values.size == 1 else values.reshape(shape)
    )


_Join = Callable[[CompressedTensors, str, Parts, Group], Weight]
# Format -> the method that joins the parts of a weight.
_FORMATS: dict[str, _Join] = {
    "pack-quantized": CompressedTensors.packed_integers,
    "int-quantized": CompressedTensors.integers,
    "float-quantized": CompressedTensors.floats,
    "naive-quantized": CompressedTensors.naive,
    "nvfp4-pack-quantized": CompressedTensors.nvfp4,
    "mxfp4-pack-quantized": CompressedTensors.mxfp4,
    "mxfp8-quantized": CompressedTensors.mxfp8,
}
