"""Encoding and decoding, scheme by scheme, beside the library that each scheme is known from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.bench.probe import Result, alternate

Ways = dict[str, Callable[[], object]]


def codec(scheme: str, shape: list[int], rounds: int) -> Result:
    """One random float16 tensor to planes and back to float32; whether planes and values are the library's."""
    import torch

    from aibit_format import schemes
    from aibit_format.convert import encoders
    from aibit_format.interop import to_torch
    from aibit_format.torch.kernels.decode import decode_rows

    found = schemes.parse(scheme)
    values = np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(0.02)
    array = values.astype(np.float16)
    found = found.fitted(array, "f16")
    made = scheme not in _KEPT
    planes = encoders.encode(found, array, "f16") if made else _random_blocks(scheme, shape)
    dtypes = {spec.role: spec.dtype for spec in found.planes(tuple(shape), "f16")}
    tensors = {role: to_torch(plane, dtypes[role]) for role, plane in planes.items()}

    def decode() -> torch.Tensor:
        return decode_rows(found, tensors, tuple(shape), "f16", slice(0, shape[0]))

    theirs, same = _REFERENCES.get(scheme.split(",")[0], _nothing)(scheme, array, planes, decode())
    encode: Ways = {"encode": lambda: encoders.encode(found, array, "f16")} if made else {}
    ways = {**encode, "decode": decode, **theirs}
    return {"bytes": array.nbytes, "seconds": alternate(ways, rounds), "same": same}


def _nothing(scheme: str, array: np.ndarray, planes: dict[str, np.ndarray], decoded: Any) -> tuple[Ways, bool | None]:
    return {}, None


def _int8(scheme: str, array: np.ndarray, planes: dict[str, np.ndarray], decoded: Any) -> tuple[Ways, bool | None]:
    import torch
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    tensor = torch.from_numpy(array)
    codes, absmax, _ = int8_vectorwise_quant(tensor)
    values = int8_vectorwise_dequant(codes, absmax)
    same = np.array_equal(codes.numpy(), planes["codes"]) and torch.equal(decoded, values)
    return {
        "encode, bitsandbytes": lambda: int8_vectorwise_quant(tensor),
        "decode, bitsandbytes": lambda: int8_vectorwise_dequant(codes, absmax),
    }, same


def _four_bit(scheme: str, array: np.ndarray, planes: dict[str, np.ndarray], decoded: Any) -> tuple[Ways, bool | None]:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    tensor = torch.from_numpy(array)
    options: dict[str, Any] = {"quant_type": scheme[:3], "compress_statistics": "nested" in scheme}
    codes, state = quantize_4bit(tensor, **options)
    state.dtype = torch.float32
    same = np.array_equal(codes.numpy().ravel(), planes["codes"])
    if "nested" not in scheme:  # the offset of nested scales is another float32, see the page of the scheme
        same = same and torch.equal(decoded, dequantize_4bit(codes, state))
    return {
        "encode, bitsandbytes": lambda: quantize_4bit(tensor, **options),
        "decode, bitsandbytes": lambda: dequantize_4bit(codes, state),
    }, same


def _gguf(scheme: str, array: np.ndarray, planes: dict[str, np.ndarray], decoded: Any) -> tuple[Ways, bool | None]:
    import gguf

    kind = gguf.GGMLQuantizationType[scheme.removeprefix("gguf:").upper()]
    wide, blocks = array.astype(np.float32), planes["blocks"]
    same = np.array_equal(gguf.quants.dequantize(blocks, kind), decoded.numpy())
    ways: Ways = {"decode, gguf-py": lambda: gguf.quants.dequantize(blocks, kind)}
    if scheme not in _KEPT:
        same = same and np.array_equal(gguf.quants.quantize(wide, kind), blocks)
        ways["encode, gguf-py"] = lambda: gguf.quants.quantize(wide, kind)
    return ways, same


_KEPT = frozenset(f"gguf:q{n}_k" for n in range(2, 7))  # no encoder here, nor in gguf-py
_REFERENCES: dict[str, Callable[..., tuple[Ways, bool | None]]] = {
    "int8": _int8,
    **dict.fromkeys(("nf4", "fp4", "nf4-cpu"), _four_bit),
    **dict.fromkeys(("gguf:q4_0", "gguf:q4_1", "gguf:q5_0", "gguf:q5_1", "gguf:q8_0", *_KEPT), _gguf),
}


def _random_blocks(scheme: str, shape: list[int]) -> dict[str, np.ndarray]:
    """Blocks of any bytes, but for their float16 scales, which are small and finite."""
    from aibit_format.schemes.ggml import LAYOUTS

    layout = LAYOUTS[scheme]
    blocks = np.random.default_rng(0).integers(0, 256, (shape[0] * shape[1] // layout.block, layout.size), np.uint8)
    start = 0
    for name, size in layout.fields.items():
        if name in ("d", "dmin", "m"):
            blocks[:, start : start + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        start += size
    return {"blocks": blocks.reshape(shape[0], -1)}
