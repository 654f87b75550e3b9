"""Make the directories that fuzzing of quantized checkpoints begins with: one or more for each ``quant_method``."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from .safetensors_bytes import BITS, pack

_Tensor = tuple[str, tuple[int, ...], bytes]
_ONE = {"BF16": b"\x80\x3f", "F16": b"\x00\x3c", "F32": b"\x00\x00\x80\x3f", "F8_E4M3": b"\x38", "F8_E8M0": b"\x7f"}


def checkpoints() -> dict[str, dict[str, bytes]]:
    """Return the files of each directory, by its name. Each holds the module ``q`` and a plain tensor."""
    return {
        name: _directory(said, key, tensors, metadata)
        for name, (said, key, tensors, metadata) in {
            **_floats(), **_compressed_tensors(), **_groups(), **_self_describing(),
        }.items()
    }  # fmt: skip


_Checkpoint = tuple[dict[str, Any], str, dict[str, _Tensor], dict[str, str] | None]


def _directory(
    said: Mapping[str, Any], key: str, tensors: Mapping[str, _Tensor], metadata: Mapping[str, str] | None
) -> dict[str, bytes]:
    config = {"dtype": "bfloat16", "model_type": "llama", key: said}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": pack({**tensors, "b": _ones("F32", 3)}, metadata),
    }


def _ones(dtype: str, *shape: int) -> _Tensor:
    return dtype, shape, _ONE[dtype] * prod(shape)


def _codes(dtype: str, *shape: int, below: int = 256) -> _Tensor:
    """Bytes that are any codes; of E4M3 none is NaN."""
    rng = random.Random(prod(shape))
    return dtype, shape, bytes(rng.randrange(min(below, 127)) for _ in range(prod(shape) * BITS[dtype] // 8))


def _numbers(dtype: str, *values: int, shape: tuple[int, ...] | None = None) -> _Tensor:
    numpy_dtype = {"I32": "<i4", "I64": "<i8", "U8": "u1"}[dtype]
    return dtype, (len(values),) if shape is None else shape, np.array(values, numpy_dtype).tobytes()


def _method(
    name: str, tensors: Mapping[str, _Tensor], metadata: dict[str, str] | None = None, **said: Any
) -> _Checkpoint:
    return {"quant_method": name, **said}, "quantization_config", dict(tensors), metadata


def _floats() -> dict[str, _Checkpoint]:
    """Small floats with scales."""
    codes, packed = _codes("F8_E4M3", 4, 64), _codes("U8", 4, 32)
    nvfp4 = {"q.weight": packed, "q.weight_scale": _ones("F8_E4M3", 4, 4), "q.weight_scale_2": _ones("F32")}
    experts = {
        "mlp.experts.gate_up_proj_blocks": _codes("U8", 2, 4, 2, 16),
        "mlp.experts.gate_up_proj_scales": _codes("U8", 2, 4, 2),
    }
    return {
        "fp8": _method("fp8", {"q.weight": codes, "q.weight_scale_inv": _ones("F32", 2, 2)}, weight_block_size=[2, 32]),
        "fp8-e8m0": _method(
            "fp8", {"q.weight": codes, "q.weight_scale_inv": _ones("F8_E8M0", 1, 1)}, scale_fmt="ue8m0"
        ),
        "fp8-fp4": _method(
            "fp8", {"q.weight": packed, "q.scale": _ones("F8_E8M0", 4, 2)}, scale_fmt="ue8m0", expert_dtype="fp4"
        ),
        "fbgemm": _method("fbgemm_fp8", {"q.weight": codes, "q.weight_scale": _ones("F32", 4, 1)}),
        "mxfp8": _method("mxfp8", {"q.weight": codes, "q.weight_scale_inv": _codes("U8", 4, 2)}),
        "mxfp4": _method("mxfp4", experts, modules_to_not_convert=["lm_head"]),
        "modelopt": _method("modelopt", nvfp4 | {"q.input_scale": _ones("F32")}, quant_algo="NVFP4", ignore=["b"]),
    }


def _compressed_tensors() -> dict[str, _Checkpoint]:
    """Each format of compressed-tensors."""
    shape, scale = _numbers("I64", 4, 64), _ones("BF16", 4, 2)

    def said(kind: str, tensors: Mapping[str, _Tensor], **weights: Any) -> _Checkpoint:
        group = {"targets": ["Linear", "re:q$"], "weights": {"type": "float", "symmetric": True} | weights}
        return _method(
            "compressed-tensors", {f"q.{end}": tensor for end, tensor in tensors.items()},
            format=kind, config_groups={"group_0": group}, ignore=["lm_head"],
        )  # fmt: skip

    by_group = {"strategy": "group", "group_size": 32, "num_bits": 4, "type": "int"}
    zeros = _numbers("I32", 0x1234, 0x4321, shape=(1, 2))
    pack4 = {"weight_packed": _codes("I32", 4, 8), "weight_shape": shape, "weight_scale": scale}
    order = _numbers("I32", *(column // 32 for column in range(64)))
    fp4 = {"weight_packed": _codes("U8", 4, 32)}
    fp8 = {"weight": _codes("F8_E4M3", 4, 64), "weight_scale": _ones("BF16", 4, 1)}
    nvfp4 = fp4 | {"weight_scale": _ones("F8_E4M3", 4, 4), "weight_global_scale": _ones("F32", 1)}
    return {
        "ct-packed": said("pack-quantized", pack4, **by_group),
        "ct-asymmetric": said("pack-quantized", pack4 | {"weight_zero_point": zeros}, **by_group, symmetric=False),
        "ct-ordered": said("pack-quantized", pack4 | {"weight_g_idx": order}, **by_group, actorder="group"),
        "ct-int8": said("int-quantized", {"weight": _codes("I8", 4, 64), "weight_scale": _ones("BF16", 4, 1)},
                        type="int", num_bits=8, strategy="channel"),
        "ct-fp8": said("float-quantized", fp8, num_bits=8, strategy="channel"),
        "ct-nvfp4": said("nvfp4-pack-quantized", nvfp4, num_bits=4, strategy="tensor_group", group_size=16),
        "ct-mxfp4": said("mxfp4-pack-quantized", fp4 | {"weight_scale": _codes("U8", 4, 2)},
                         num_bits=4, strategy="group", group_size=32),
    }  # fmt: skip


def _groups() -> dict[str, _Checkpoint]:
    """Integers with scales for groups or rows, and ternary ones."""
    affine = {"q.weight": _codes("U32", 4, 8), "q.scales": _ones("F16", 4, 1), "q.biases": _ones("F16", 4, 1)}
    small = {"q.weight": _codes("U32", 4, 8), "q.scales": _codes("U8", 4, 2)}
    ternary = {"q.weight": ("U8", (1, 64), bytes([0b01100100] * 64)), "q.weight_scale": _ones("BF16", 1)}
    return {
        "mlx": ({"group_size": 64, "bits": 4, "q": {"group_size": 64, "bits": 4}}, "quantization", affine, None),
        "mlx-mxfp4": ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "quantization", small, None),
        "bitnet": _method("bitnet", ternary, linear_class="bitlinear"),
        "gemma": _method("gemma", {"q.weight": _codes("U8", 4, 32), "q.weight_scale": _ones("F32", 4, 1)}, num_bits=4),
        "gemma-8": _method(
            "gemma", {"q.weight": _codes("I8", 4, 64), "q.weight_scale": _ones("F32", 4, 1)},
            module_quant_configs={"q": {"num_bits": 8}},
        ),
    }  # fmt: skip


def _self_describing() -> dict[str, _Checkpoint]:
    """Modules that bring their own settings: as tensors, or in the metadata of the file."""
    hqq = {
        "W_q": _codes("U8", 4, 32), "scale": _ones("F16", 8, 1), "zero": _ones("F16", 8, 1),
        **{key: _numbers("I32", value, shape=()) for key, value in (("nbits", 4), ("group_size", 32), ("axis", 1))},
        "shape": _numbers("I64", 4, 64), "packing": _numbers("U8", *b"4bit_u8"),
        "view_as_float": _numbers("U8", 0, shape=()),
    }  # fmt: skip

    def torchao(kind: str, said: Mapping[str, Any], parts: Mapping[str, _Tensor]) -> _Checkpoint:
        about = {"_type": kind, "_data": said, "_tensor_data_names": list(parts)}
        metadata = {"q.weight": json.dumps(about), "tensor_names": json.dumps(["q.weight"])}
        tensors = {f"q._weight_{end}": part for end, part in parts.items()}
        return _method("torchao", tensors, metadata, quant_type={"default": {"_type": "Int8WeightOnlyConfig"}})

    integers = {"qdata": _codes("I8", 4, 64), "scale": _ones("BF16", 4, 1)}
    return {
        "hqq": _method("hqq", {f"q.{end}": part for end, part in hqq.items()}, quant_config={}),
        "torchao": torchao("Int8Tensor", {"block_size": [1, 64]}, integers),
        "torchao-fp8": torchao(
            "Float8Tensor", {"block_size": [1, 64]},
            {"qdata": _codes("F8_E4M3", 4, 64), "scale": _ones("F32", 4, 1)},
        ),
    }  # fmt: skip
