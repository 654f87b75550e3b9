"""A small tensor in each scheme, and in its variants: what the fixtures hold, the pages show and the tests go over.

Values and bytes follow formulas, so any machine makes the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aibit_format.dtypes import DTYPES, from_float32
from aibit_format.schemes import BUILTIN, Scheme, make, parse

# Scheme -> what users write, and the shape, of each example; the first is the plainest.
TEXTS: dict[str, dict[str, tuple[int, ...]]] = {
    "int8": {"int8": (2, 4)},
    "int8-absmax": {"int8-absmax": (2, 4), "int8-absmax,group=16": (2, 20), "int8-absmax,group=tensor": (2, 4)},
    "int8-zp": {"int8-zp": (2, 4), "int8-zp,group=16": (2, 20), "int8-zp,group=tensor": (2, 4)},
    "int8-outlier": {"int8-outlier,threshold=2": (3, 8), "int8-outlier": (3, 8)},
    "fp8-e4m3": {"fp8-e4m3": (2, 4), "fp8-e4m3,group=tensor": (2, 4)},
    "cluster": {"cluster,bits=2": (2, 5), "cluster,bits=3": (2, 5), "cluster": (2, 5), "cluster,bits=8": (2, 5)},
    "int4-group": {
        "int4-group,group=row": (2, 5), "int4-group,group=16,symmetric=1": (2, 20),
        "int4-group,group=16,ordered=1": (2, 20), "int4-group": (1, 130),
    },
    "nf4": {"nf4,block_size=32": (2, 18), "nf4": (3, 25), "nf4,block_size=32,nested=1": (4, 40)},
    "fp4": {"fp4,block_size=32": (2, 18), "fp4": (3, 25), "fp4,block_size=32,nested=1": (4, 40)},
    "nf4-cpu": {"nf4-cpu": (32, 64), "nf4-cpu,nested=1": (32, 64)},
    **{f"gguf:{kind}": {f"gguf:{kind}": (2, 64)} for kind in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")},
    **{f"gguf:{kind}": {f"gguf:{kind}": (2, 256)} for kind in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")},
}  # fmt: skip
# More of the same, in files of their own: parameters, ranks, dtypes, and shapes without elements.
VARIANTS: dict[str, list[tuple[str, tuple[int, ...], str]]] = {
    "int8": [
        ("int8", (2, 3, 4), "bf16"), ("int8", (3, 0), "f32"), ("int8", (0, 4), "f32"), ("int8", (1, 1, 1, 2), "f16"),
    ],
    "int8-absmax": [
        ("int8-absmax", (7,), "f32"), ("int8-absmax,group=16", (33,), "bf16"),
        ("int8-absmax,group=32", (2, 2, 40), "f16"),
        ("int8-absmax,group=tensor", (5,), "f32"), ("int8-absmax,group=65536", (2, 4), "f16"),
        ("int8-absmax,group=16", (2, 0), "f16"), ("int8-absmax,group=tensor", (0,), "f16"),
    ],
    "int8-zp": [
        ("int8-zp", (7,), "f32"), ("int8-zp,group=16", (33,), "bf16"), ("int8-zp,group=32", (2, 2, 40), "f16"),
        ("int8-zp,group=tensor", (5,), "f32"), ("int8-zp,group=16", (2, 0), "f16"),
    ],
    "int8-outlier": [
        ("int8-outlier,threshold=1", (3, 8), "f32"), ("int8-outlier,threshold=2", (2, 3, 8), "bf16"),
        ("int8-outlier,threshold=65535", (3, 8), "f16"), ("int8-outlier", (0, 8), "f16"),
    ],
    "fp8-e4m3": [
        ("fp8-e4m3", (7,), "f32"), ("fp8-e4m3", (2, 3, 4), "bf16"), ("fp8-e4m3,group=tensor", (5,), "f32"),
        ("fp8-e4m3", (0, 4), "f16"),
    ],
    "cluster": [
        ("cluster,bits=5", (2, 5), "f32"), ("cluster,bits=6", (2, 3, 3), "bf16"), ("cluster,bits=7", (9,), "f16"),
        ("cluster", (0,), "f16"), ("cluster,bits=3", (3, 0), "f16"),
    ],
    "int4-group": [
        ("int4-group,group=16,symmetric=1,ordered=1", (2, 40), "f16"),
        ("int4-group,group=row,symmetric=1", (2, 5), "f32"),
        ("int4-group,group=32", (2, 2, 33), "bf16"), ("int4-group,group=64", (1, 65), "f16"),
        ("int4-group,group=256", (1, 8), "f16"), ("int4-group,group=1024,symmetric=1", (1, 8), "f16"),
        ("int4-group,group=row", (2, 0), "f16"), ("int4-group,group=16", (0, 20), "f16"),
    ],
    **{
        name: [
            (f"{name},block_size=32,nested=1", (16, 520), "f16"), (name, (5,), "f32"), (name, (2, 3, 7), "bf16"),
            (f"{name},block_size=128", (3, 50), "f16"), (f"{name},block_size=256,nested=1", (3, 100), "f16"),
            (f"{name},block_size=4096", (3, 5), "f16"), (name, (0, 4), "f16"), (f"{name},nested=1", (0,), "f16"),
        ]
        for name in ("nf4", "fp4")
    },
    "nf4-cpu": [
        ("nf4-cpu,block_size=128", (32, 128), "bf16"), ("nf4-cpu,block_size=32,nested=1", (64, 64), "f32"),
        ("nf4-cpu", (0, 64), "f16"),
    ],
    "gguf": [
        *((f"gguf:{kind}", shape, dtype) for kind in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
          for shape, dtype in (((32,), "f32"), ((2, 1, 32), "bf16"), ((0, 32), "f16"))),
        *((f"gguf:{kind}", shape, dtype) for kind in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
          for shape, dtype in (((256,), "f32"), ((1, 2, 256), "bf16"), ((2, 0), "f16"))),
    ],
}  # fmt: skip
# k-quants are not encoded here, so their bytes follow a formula, but for the float16 scales in each block of so many.
_K_QUANTS = {
    "q2_k": (84, (80, 82)), "q3_k": (110, (108,)), "q4_k": (144, (0, 2)), "q5_k": (176, (0, 2)), "q6_k": (210, (208,)),
}  # fmt: skip
_SCALES = np.array([0.0625, 0.25], "<f2")


@dataclass(frozen=True)
class Example:
    """A tensor stored in a scheme; ``values`` are what was encoded, in ``dtype``'s storage, if anything was."""

    scheme: Scheme
    shape: tuple[int, ...]
    dtype: str
    planes: Mapping[str, np.ndarray]
    values: np.ndarray | None = None


def values(*shape: int) -> np.ndarray:
    """float32: a wave in steps of a quarter between -2 and 2; every third row is eight times as wide.

    The last element of the first row stands out.
    """
    result = (((np.arange(np.prod(shape, dtype=int)) * 5 + 3) % 17 - 8) / 4).astype(np.float32).reshape(shape)
    if result.size and result.ndim > 1:
        result[2::3] *= 8
        result[0, ..., -1:] = 5.5
    return result


def examples(name: str) -> Iterator[Example]:
    """The examples of a registered scheme.

    Raises:
        KeyError: it has none yet: add it to ``TEXTS``.
    """
    if name in DTYPES:
        yield _plain(name)
        return
    for text, shape in TEXTS[name].items():
        yield _made(text, shape, "f16")


def variants(name: str) -> Iterator[Example]:
    """What ``VARIANTS`` has of a scheme, or of a family of them."""
    return (_made(*variant) for variant in VARIANTS[name])


def _made(text: str, shape: tuple[int, ...], dtype: str) -> Example:
    scheme = parse(text)
    kind = scheme.name.removeprefix("gguf:")
    if kind in _K_QUANTS:
        return Example(scheme, shape, dtype, {"blocks": _blocks(*_K_QUANTS[kind], shape)})
    array = from_float32(values(*shape), dtype)
    if "ordered=1" in text:
        planes = dict(parse(text.replace(",ordered=1", "")).encode(array, dtype))
        groups = planes["scale"].shape[-1]
        planes["group_index"] = (np.arange(shape[-1], dtype=np.int32) * 3 + 1) % groups
        return Example(scheme, shape, dtype, planes)
    scheme = scheme.fitted(array, dtype)
    return Example(scheme, shape, dtype, scheme.encode(array, dtype), array)


def names() -> list[str]:
    """Registered schemes that are more than a dtype."""
    return [name for name in BUILTIN if name not in DTYPES]


def _plain(name: str) -> Example:
    dtype = DTYPES[name].numpy
    if name == "f8_e8m0":
        array = np.array([[0, 126], [127, 254]], np.uint8)
    elif DTYPES[name].is_float:
        array = from_float32(values(2, 3), name)
    else:
        array = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    return Example(make(name), array.shape, name, make(name).encode(array, name), array)


def _blocks(size: int, scales: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    rows = int(np.prod(shape)) // 256
    blocks = ((np.arange(rows * size) * 37 + 11) % 256).astype(np.uint8).reshape(rows, size)
    for place, scale in zip(scales, _SCALES, strict=False):
        blocks[:, place : place + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    return blocks.reshape(*shape[:-1], -1)
