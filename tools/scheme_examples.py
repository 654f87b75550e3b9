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
    result[2::3] *= 8
    result[0, -1:] = 5.5
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
        scheme = parse(text)
        kind = name.removeprefix("gguf:")
        if kind in _K_QUANTS:
            yield Example(scheme, shape, "f16", {"blocks": _blocks(*_K_QUANTS[kind], shape)})
            continue
        array = from_float32(values(*shape), "f16")
        if "ordered=1" in text:
            planes = dict(parse(text.replace(",ordered=1", "")).encode(array, "f16"))
            groups = planes["scale"].shape[-1]
            planes["group_index"] = (np.arange(shape[-1], dtype=np.int32) * 3 + 1) % groups
            yield Example(scheme, shape, "f16", planes)
            continue
        scheme = scheme.fitted(array, "f16")
        yield Example(scheme, shape, "f16", scheme.encode(array, "f16"), array)


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
