"""Reads checkpoints of torchao's tensors in safetensors: parts of MODULE.weight are MODULE._weight_PART.

    Int8Tensor                qdata i8 [N, K], scale [N, 1] or one number, maybe zero_point
    IntxUnpackedToInt8Tensor  qdata i8 [N, K] of 1 to 8 bits, scale and zero_point [N, K / group]
    Float8Tensor              qdata f8_e4m3 [N, K], scale f32 of rows, blocks or one number
    Int4Tensor                qdata [N, K / 2], signed codes, the first in the low half of a byte; scale and
                              zero_point [K / group, N], floats: weight = code * scale + zero_point

The metadata of each file hold under the name of a weight JSON with ``_type``, and in ``_data`` its ``block_size`` and
others. See ``torchao.prototype.safetensors`` and ``dequantize_affine`` in torchao 0.18. Layouts for a GPU
(Int4TilePackedTo4dTensor) are refused.

The library has no code that decodes an Int4Tensor, only products for a GPU: weights are the inverse of
``int4_row_quantize_zp`` in mslk. Codes are stored here without sign, 8 more, so that the bias of a group is
zero_point - 8 * scale. In float32 that is exact, unless the two differ by many powers of two: then the weight is
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from ...container.documents import parse_json
from ...dtypes import to_float32
from ...errors import FormatError
from ..fp8.scales import E4M3, grid, scheme_of
from ..huggingface.modules import CODES, Parts, Planes, QuantizedModules, Weight, plane_of
from ..source import SourceTensor

_FLOATS = ("f32", "bf16", "f16")
_GPU = "is laid out for one kind of GPU; save the model with a plain layout"
_REFUSED = {
    "Int4TilePackedTo4dTensor": _GPU,
    "Int4PreshuffledTensor": _GPU,
    "Int4PlainInt32Tensor": _GPU,
    "MXTensor": "is read from other libraries' checkpoints only; save as compressed-tensors",
    "NVFP4Tensor": "is read from other libraries' checkpoints only; save as compressed-tensors",
}
_INTEGERS = {f"torch.int{bits}": bits for bits in range(1, 9)} | {f"int{bits}": bits for bits in range(1, 9)}
_WIDER = {7: 8}  # bits of codes that no plane has -> those in which they are stored


class TorchAO(QuantizedModules):
    """Provide the tensors of the directory ``path``, whose ``quant_method`` is "torchao"."""

    kind: ClassVar[str] = "torchao"
    CODE_DTYPES = (E4M3, "i8")
    SUFFIXES = {
        "._weight_qdata": CODES, "._weight_scale": "scale", "._weight_zero_point": "zero_point",
        "._weight_act_pre_scale": "act_pre_scale",
    }  # fmt: skip

    def prepare(self) -> None:
        self.check_listed("modules_to_not_convert")

    def weight(self, name: str, parts: Parts) -> Weight:
        kind, said = self._metadata(name, parts)
        some = next(iter(parts.values()))
        if "act_pre_scale" in parts:
            raise self.error(parts["act_pre_scale"], "scales the inputs of its layer, which no scheme here does")
        if kind in _REFUSED:
            raise self.error(some, f"belongs to {kind}, which {_REFUSED[kind]}")
        join = _KINDS.get(kind)
        if join is None:
            raise self.error(some, f"belongs to {kind[:80]!r}, known: {', '.join(_KINDS)}")
        block = said.get("block_size")
        shape = self.part(name, parts, CODES).shape
        if not isinstance(block, list) or len(block) != len(shape) or not all(type(n) is int and n > 0 for n in block):
            raise self.error(some, f"has block_size {str(block)[:80]} for shape {list(shape)}")
        whole = [0 if each >= size else each for each, size in zip(block, shape, strict=True)]
        if any(whole[:-2]) and whole[:-2] != [1] * (len(shape) - 2):
            raise self.error(some, f"has block_size {block}, over several matrices of {list(shape)}")
        return join(self, name, parts, said, (whole[-2], whole[-1]))

    def integers(self, name: str, parts: Parts, said: Mapping[str, Any], block: tuple[int, int]) -> Weight:
        """Join integers of a byte each, of fewer bits if ``target_dtype`` says so."""
        target = said.get("target_dtype", {"_data": "int8"})
        bits = _INTEGERS.get(str(target.get("_data") if isinstance(target, Mapping) else target))
        codes, scale = self.part(name, parts, CODES, ("i8",)), self.part(name, parts, "scale", _FLOATS)
        if bits is None:
            raise self.error(codes, f"has target_dtype {str(target)[:80]}, expected int1 to int8")
        rows, group = block
        if rows > 1:
            raise self.error(codes, f"has a block_size of {rows} rows, and integers have scales of rows")
        shape = codes.shape
        grids = (*shape[:-1], -(-shape[-1] // (group or max(shape[-1], 1))))
        self._check(scale, grids, rows)
        zero = parts.get("zero_point")
        if zero is not None:
            self.part(name, parts, "zero_point", ("i8", "i32", "i64", "i16"))
            self._check(zero, grids, rows)
        stored = _WIDER.get(bits, bits)

        def read() -> Planes:
            unsigned = self.value(codes).view("u1") + np.uint8(1 << (bits - 1))
            planes = {CODES: self._packed(codes, unsigned, bits, stored, zero is None)}
            planes["scale"] = _spread(self.value(scale), grids)
            if zero is not None:
                points = _spread(self.value(zero), grids).astype(np.int64) + (1 << (bits - 1))
                if points.size and (points.min() < 0 or points.max() >= 1 << bits):
                    raise self.error(zero, f"holds zero points beyond {bits} bits")
                planes["zero_point"] = points.astype(np.uint8)
            return planes

        kind = "none" if zero is None else "code"
        return Weight(shape, f"int-group,bits={stored},group={group or 'row'},scale={scale.dtype},zero={kind}", read)

    def floats(self, name: str, parts: Parts, said: Mapping[str, Any], block: tuple[int, int]) -> Weight:
        """Join 8-bit floats."""
        codes, scale = self.part(name, parts, CODES, (E4M3,)), self.part(name, parts, "scale", _FLOATS)
        wanted = grid(codes.shape, block)
        self._check(scale, wanted, block[0])

        def read() -> Planes:
            return {CODES: self.value(codes), "scale": self.value(scale).reshape(wanted)}

        return Weight(codes.shape, scheme_of(block, scale.dtype), read)

    def nibbles(self, name: str, parts: Parts, said: Mapping[str, Any], block: tuple[int, int]) -> Weight:
        """Join integers of 4 bits, two to a byte, with a number that is added to each group."""
        codes, scale = self.part(name, parts, CODES, ("u8", "i8")), self.part(name, parts, "scale", _FLOATS)
        *lead, rows, half = codes.shape
        shape, size = (*lead, rows, 2 * half), said["block_size"]  # of codes, of which a byte has two
        group = size[-1]
        if any(each != 1 for each in size[:-1]) or shape[-1] % group:
            raise self.error(codes, f"has block_size {size}, expected whole groups of the {shape[-1]} columns of a row")
        grid_there = (*lead, shape[-1] // group, rows)
        self._check(scale, grid_there, 1)
        zero = self.part(name, parts, "zero_point", (scale.dtype,), scale.shape)
        centred = not to_float32(self.value(zero), zero.dtype).any()

        def read() -> Planes:
            plane = np.ascontiguousarray(self.value(codes).view(np.uint8) ^ np.uint8(0x88))
            steps = np.ascontiguousarray(np.swapaxes(self.value(scale), -1, -2))
            if centred:
                return {CODES: plane, "scale": steps}
            scales = to_float32(steps, scale.dtype)
            zeros = to_float32(np.ascontiguousarray(np.swapaxes(self.value(zero), -1, -2)), zero.dtype)
            if not np.isfinite(zeros).all():
                raise self.error(zero, "holds a number that is not finite")
            with np.errstate(over="ignore", invalid="ignore"):
                bias = zeros - scales * np.float32(8)
                for code in range(16):
                    there = np.float32(code - 8) * scales + zeros
                    differ = (there != np.float32(code) * scales + bias) & np.isfinite(scales)
                    if bad := np.argwhere(differ).tolist():
                        where = f"group {bad[0][-1]} of row {bad[0][-2]}"
                        raise self.error(zero, f"is, in {where}, too far from its scale to be held without rounding; "
                                         "dequantize the model first")  # fmt: skip
            return {CODES: plane, "scale": scales, "bias": bias}

        kind, stored = ("none", scale.dtype) if centred else ("bias", "f32")
        return Weight(shape, f"int-group,bits=4,group={group},scale={stored},zero={kind}", read)

    def _packed(self, tensor: SourceTensor, codes: np.ndarray, bits: int, stored: int, centred: bool) -> np.ndarray:
        try:
            plane = plane_of(codes, bits, f"u{stored}")
        except ValueError as error:
            raise self.error(tensor, f"holds codes that do not fit: {error}") from error
        return plane + np.uint8((1 << (stored - 1)) - (1 << (bits - 1))) if centred and stored != bits else plane

    def _check(self, tensor: SourceTensor, wanted: tuple[int, ...], rows: int) -> None:
        alone = rows == 0 and int(np.prod(tensor.shape)) == 1
        if tensor.shape not in (wanted, wanted[:-1] if wanted[-1] == 1 else wanted) and not alone:
            raise self.error(tensor, f"has shape {list(tensor.shape)}, expected {list(wanted)}")

    def _metadata(self, name: str, parts: Parts) -> tuple[str, Mapping[str, Any]]:
        """Return the class of a weight, and its attributes."""
        some = next(iter(parts.values()))
        shards = [self._shards[part.file] for part in parts.values()]
        text = next((found[name] for shard in shards if name in (found := getattr(shard, "metadata", {}))), None)
        if text is None:
            raise self.error(some, f"belongs to {name!r}, of which the file's metadata say nothing")
        try:
            found = parse_json(name, text.encode())
        except FormatError as error:
            raise self.error(some, f"belongs to {name!r}, whose metadata are no JSON: {error}") from error
        said = found.get("_data") if isinstance(found, Mapping) else None
        if not isinstance(said, Mapping) or not isinstance(found.get("_type"), str):
            raise self.error(some, f"belongs to {name!r}, whose metadata are {text[:80]!r}")
        return found["_type"], said


def _spread(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return (
        np.ascontiguousarray(np.broadcast_to(values.reshape(-1), shape)) if values.size == 1 else values.reshape(shape)
    )


_Join = Callable[[TorchAO, str, Parts, Mapping[str, Any], tuple[int, int]], Weight]
_KINDS: dict[str, _Join] = {
    "Int8Tensor": TorchAO.integers,
    "IntxUnpackedToInt8Tensor": TorchAO.integers,
    "Float8Tensor": TorchAO.floats,
    "Int4Tensor": TorchAO.nibbles,
}
