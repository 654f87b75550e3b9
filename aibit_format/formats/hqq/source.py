"""Reads HQQ checkpoints as transformers saves them: each layer's codes, and its settings as tensors beside them.

    W_q                        codes, packed by blocks of rows, of the matrix [N * K / group_size, group_size]
    scale, zero                [N * K / group_size, 1]: weight = (code - zero) * scale
    nbits, group_size, axis, shape, packing (text in u8), view_as_float, compute_dtype, and others

With ``axis`` 0, hqq's own default, that is the matrix [group_size, N * K / group_size], and its columns are groups: in
a column of the weight, rows that are N / group_size apart. So the weight's transpose is stored, with an order of its
columns.
Codes of 5 and 6 bits are in bytes. Scales that are quantized themselves are written by old versions only, and refused.
Values are those of ``Quantizer.dequantize`` in ``hqq.core.quantize`` with compute_dtype float32; with others it rounds
after each operation.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..huggingface.modules import CODES, Parts, Planes, QuantizedModules, Weight, plane_of
from .packing import PACKINGS, unpack

_FLOATS = ("f16", "bf16", "f32")
_NUMBERS = ("nbits", "group_size", "axis", "view_as_float", "shape", "packing")
_MOST = 64  # elements of a setting
_WIDER = {("8bit_u8", 5), ("8bit_u8", 6)}  # packings that are wider than their codes


class HQQ(QuantizedModules):
    """Provide the tensors of the directory ``path``, whose ``quant_method`` is "hqq"."""

    kind: ClassVar[str] = "hqq"
    CODE_DTYPES = ("u8",)
    SUFFIXES = {
        ".W_q": CODES, ".scale": "scale", ".zero": "zero", **{f".{key}": key for key in _NUMBERS},
        **{f".{key}": f"setting {key}" for key in (
            "channel_wise", "compute_dtype", "encoded_state_dict", "offload_meta", "optimize", "quant_scale",
            "quant_zero", "round_zero", "stores_quant_config", "unpack_view_dtype")},
    }  # fmt: skip

    def prepare(self) -> None:
        for name, parts in list(self._parts.items()):  # other tensors may be named scale or shape too
            if not {CODES, "nbits"} & parts.keys():
                self.tensors |= {tensor.name: tensor for tensor in self._parts.pop(name).values()}
        self.check_listed("skip_modules")

    def weight(self, name: str, parts: Parts) -> Weight:
        bits, group, axis = (self._number(name, parts, key) for key in ("nbits", "group_size", "axis"))
        shape = tuple(self._setting(name, parts, "shape").tolist())
        packing = bytes(self._setting(name, parts, "packing").astype(np.uint8)).decode("latin-1")
        codes = self.part(name, parts, CODES)
        if packing not in PACKINGS or (PACKINGS[packing][2] != bits and (packing, bits) not in _WIDER):
            known = ", ".join(PACKINGS)
            raise self.error(parts["packing"], f"is {packing!r} for {bits} bits, known: {known}")
        if self._number(name, parts, "view_as_float"):
            raise self.error(
                parts["view_as_float"], "says that codes are stored as floats; save with view_as_float=False"
            )
        for key in ("setting quant_scale", "setting quant_zero"):
            if key in parts and self._number(name, parts, key):
                raise self.error(parts[key], "says that scales are quantized themselves, which is not read; dequantize "
                                 "the model first")  # fmt: skip
        if axis not in (0, 1):
            raise self.error(parts["axis"], f"is {axis}, expected 0 or 1")
        stored, count, _ = PACKINGS[packing]
        if len(shape) != 2 or min(shape) < 1 or group < 1 or shape[axis] % group:
            what = "rows" if axis else "columns"
            raise self.error(parts["shape"], f"is {list(shape)}, not {what} of whole groups of {group}")
        groups = shape[1 - axis] * (shape[axis] // group)
        height, width = (groups, group) if axis else (group, groups)
        if codes.dtype != stored or codes.shape != (-(-height // count), width):
            raise self.error(
                codes, f"is {codes.dtype}{list(codes.shape)}, expected {stored}[{-(-height // count)}, {width}]"
            )
        numbers = (groups, 1) if axis else (1, groups)
        scale = self.part(name, parts, "scale", _FLOATS, numbers)
        zero = self.part(name, parts, "zero", (scale.dtype,), numbers)

        def read() -> Planes:
            unpacked = unpack(self.value(codes), packing, height).reshape(shape)
            steps = [self.value(each).reshape(shape[0] // (1 if axis else group), -1) for each in (scale, zero)]
            if not axis:
                unpacked, *steps = (np.ascontiguousarray(each.T) for each in (unpacked, *steps))
            try:
                planes = {CODES: plane_of(unpacked, bits, f"u{bits}"), "scale": steps[0], "zero_point": steps[1]}
            except ValueError as error:
                raise self.error(codes, f"holds codes that do not fit: {error}") from error
            return planes if axis else planes | {"group_index": np.arange(shape[0], dtype="<i4") % (shape[0] // group)}

        scheme = f"int-group,bits={bits},group={group},scale={scale.dtype},zero=float,ordered={1 - axis}"
        return Weight(shape if axis else shape[::-1], scheme, read, transposed=not axis)

    def _setting(self, name: str, parts: Parts, part: str) -> np.ndarray:
        """Read a setting, which is a small tensor of integers."""
        found = self.part(name, parts, part, ("u8", "i32", "i64"))
        if sum(found.shape) > _MOST or len(found.shape) > 1:
            raise self.error(found, f"has shape {list(found.shape)}, expected a few numbers")
        return self.value(found).reshape(-1)

    def _number(self, name: str, parts: Parts, part: str) -> int:
        found = self._setting(name, parts, part)
        if found.size != 1:
            raise self.error(parts[part], f"holds {found.size} numbers, expected one")
        return int(found[0])
